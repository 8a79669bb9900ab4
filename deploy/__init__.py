"""The deploy stage: what runs the bundle."""
