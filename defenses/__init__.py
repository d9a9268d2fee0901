"""Defenses: adversarial training for deep metric learning, one family a file."""
