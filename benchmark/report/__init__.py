"""Boards from stored results: pure functions of cells, the same bytes from the same cells."""
