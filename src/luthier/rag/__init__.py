"""Retrieval: a corpus is read, cut into passages, and searched by words, by vectors, or by both."""
