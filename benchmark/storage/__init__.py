"""The results folder: cells, trained models, and the reading of foreign weights."""
