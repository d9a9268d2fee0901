"""Evaluation of a model: clean metrics, attacks, and pictures of attacked queries."""
