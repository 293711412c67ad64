"""Systems that can be evaluated: one file each; the file name is the `type` in a recipe."""
