"""Linear layers that store less: one file for each number format."""
