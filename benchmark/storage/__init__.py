"""Everything that is written to and read from a results folder."""
