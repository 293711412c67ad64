"""What a run can be exported as: one file for each format (see `base.py`)."""
