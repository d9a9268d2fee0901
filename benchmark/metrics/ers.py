"""The Empirical Robustness Score (Zhou et al., arXiv 2106.03614, section on ERS)."""

from __future__ import annotations

from collections.abc import Mapping

ERS_COLUMNS = ("CA+", "CA-", "QA+", "QA-", "TMA", "ES:D", "ES:R", "LTM", "GTM", "GTT")


def ers(columns: Mapping[str, float]) -> float:
    """The mean of the ten ``terms``, each 0..100; higher is more robust.

    Args and errors are those of ``terms``.
    """
    found = terms(columns)
    return sum(found.values()) / len(found)


def terms(columns: Mapping[str, float]) -> dict[str, float]:
    """The ten terms of ERS by the column that each comes from, 0..100; higher is more robust.

    2 CA+, 100 - CA-, 2 QA+, 100 - QA-, 100 (1 - TMA), 50 (2 - ES:D), ES:R, LTM, GTM, GTT

    Args:
        columns: the ten attack columns of ``ERS_COLUMNS``: ranks, R@1 and GTT in percent, TMA
            a cosine similarity in [-1, 1], ES:D a distance in [0, 2] (metric N only).

    Raises:
        KeyError: a column is missing.
        ValueError: ES:D is above 2, which metric N cannot give.
    """
    if columns["ES:D"] > 2:
        raise ValueError(f"ERS is defined for metric N, where ES:D <= 2; got {columns['ES:D']}")
    mapped = {
        "CA+": 2 * columns["CA+"],
        "CA-": 100 - columns["CA-"],
        "QA+": 2 * columns["QA+"],
        "QA-": 100 - columns["QA-"],
        "TMA": 100 * (1 - columns["TMA"]),
        "ES:D": 50 * (2 - columns["ES:D"]),
    }
    return mapped | {name: columns[name] for name in ERS_COLUMNS if name not in mapped}
