"""Networks: one family a file. They import no torch before they are built."""
