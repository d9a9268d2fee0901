"""Data sets for retrieval, each with the card that makes ``run`` need no other flag."""
