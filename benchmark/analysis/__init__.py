"""Stored cells as records: tables, seeds, pivots and comparisons, without torch."""
