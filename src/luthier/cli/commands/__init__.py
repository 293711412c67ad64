"""One file for each verb; its docstring is the verb's help."""
