"""What the logs say afterwards: export, compare, verdict, report."""
