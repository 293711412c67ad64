"""Where a training is followed beside its own folder: one file for each tracker (see `base.py`)."""
