"""Boards: ranked tables and plots of stored results. The same results give the same bytes."""
