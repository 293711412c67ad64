"""The loop, the parts of a run, and checkpoints."""
