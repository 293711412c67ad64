"""How frozen matrices are held in fewer bits: one file for each format (see `base.py`)."""
