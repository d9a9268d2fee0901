"""Data sets for retrieval. The card of each names network, recipe and threat model for it."""
