"""Checks of the data: each file finds one kind of damage; `base.run_checks` streams the rows through all of them."""
