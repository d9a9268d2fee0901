"""Retrieval attacks, one family a file. They share ``dmlbench.attacks.engine``."""
