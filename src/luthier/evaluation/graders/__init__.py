"""Graders: what gives a reward to an answer. None is built yet."""
