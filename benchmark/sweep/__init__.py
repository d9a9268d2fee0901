"""A run: which tasks there are, what is stored already, and who does them."""
