"""The training stage: raw tables to feature tables, joined rows, models, and the registry."""
