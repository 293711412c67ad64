"""Remedies against forgetting: trained and measured within a budget, and the best that forgets little enough kept."""

from luthier.remember.run import Plain, begin_search, remember, require_no_choice

__all__ = ["Plain", "begin_search", "remember", "require_no_choice"]
