"""Helpers that are independent of retrieval: errors, files, hashing, lazy imports, progress."""
