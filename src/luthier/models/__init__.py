"""From a name to a model in memory, and what is computed with it."""
