"""How the learning rate moves: one file for each schedule (see `base.py`)."""
