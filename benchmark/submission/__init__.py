"""Rows that anyone can measure again: bundles that are handed in, their check, reproduction."""
