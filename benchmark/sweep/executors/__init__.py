"""Executors do the tasks of a run: in this process, in worker processes, or on a cluster."""
