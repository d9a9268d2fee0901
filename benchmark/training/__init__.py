"""Trains a model with a defense."""
