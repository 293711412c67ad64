"""What is minimized: one file for each objective (see `base.py`)."""
