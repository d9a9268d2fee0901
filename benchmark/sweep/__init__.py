"""A run: the plan of its tasks, their status in the store, and the processes that do them."""
