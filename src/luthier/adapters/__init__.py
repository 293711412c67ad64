"""What is trained: one file for each family of adapters (see `base.py`)."""
