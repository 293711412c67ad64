"""What a run was worth: systems answer the same held-out rows, metrics score them, intervals say how sure that is."""
