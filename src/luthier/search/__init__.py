"""Search over the settings of a recipe: what may be tried, one trial, and the search as a whole."""
