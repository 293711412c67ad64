"""How steps are taken: one file for each optimizer (see `base.py`)."""
