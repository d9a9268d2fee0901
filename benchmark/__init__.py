"""dmlbench: the benchmark of adversarial robustness for deep metric learning."""

__version__ = "0.1.0"
