"""Measures a model: benign metrics, attacks, pictures of what an attack did."""
