"""Small helpers that know nothing of retrieval: errors, files, hashing, lazy imports, progress."""
