"""Retrieval attacks: one family a file, on one PGD engine."""
