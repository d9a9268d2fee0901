"""The functions of ``import dmlbench``: thin, above the same run that the command line makes."""
