"""How several trained adapters become one: one file for each way (see `base.py`)."""
