"""Checks for the author of an attack, a defense, a data set or a network, built in or not.

In a test of your own package::

    import dmlbench.testing
    from my_package.attacks import Towards

    def test_towards():
        dmlbench.testing.check(Towards)

A function returns the list of its findings, or raises ``ConformanceError``, which says what is
wrong, why it matters and how to mend it. The command line has the same checks:
``dmlbench check my_package.attacks:Towards``. Everything is computed on a CPU with a tiny network
and tiny images, in seconds.
"""

from dmlbench.testing.checks import (
    check,
    check_attack,
    check_dataset,
    check_defense,
    check_model,
)
from dmlbench.testing.findings import ConformanceError, Finding
from dmlbench.testing.tiny import make_split, tiny_data, tiny_network

__all__ = [
    "ConformanceError",
    "Finding",
    "check",
    "check_attack",
    "check_dataset",
    "check_defense",
    "check_model",
    "make_split",
    "tiny_data",
    "tiny_network",
]
