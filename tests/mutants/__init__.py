"""Failures seeded on purpose, to measure what the pre-flight catches."""
