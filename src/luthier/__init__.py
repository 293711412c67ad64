"""Luthier fine-tunes foundation models on the user's own machines, and proves whether it was worth it."""

__version__ = "0.1.0"
