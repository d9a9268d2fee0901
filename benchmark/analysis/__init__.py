"""Tables, statistics over seeds, pivots and comparisons of stored cells. Imports no torch."""
