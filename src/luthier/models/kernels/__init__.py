"""Fused pieces that make models fast, each with a plain reference beside it."""
