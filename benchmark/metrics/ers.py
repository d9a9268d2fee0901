"""The Empirical Robustness Score (Zhou et al., arXiv 2106.03614, section on ERS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dmlbench.metrics.names import ERS

# column -> (a, b): a column with the value x contributes the term a + b x
TERMS = {
    "CA+": (0, 2),
    "CA-": (100, -1),
    "QA+": (0, 2),
    "QA-": (100, -1),
    "TMA": (100, -100),
    "ES:D": (100, -50),
    "ES:R": (0, 1),
    "LTM": (0, 1),
    "GTM": (0, 1),
    "GTT": (0, 1),
}
ERS_COLUMNS = tuple(TERMS)


def ers(columns: Mapping[str, float]) -> float:
    """Compute ERS: the mean of the ten ``terms``; higher is more robust.

    Arguments and errors are those of ``terms``.
    """
    found = terms(columns)
    return sum(found.values()) / len(found)


def terms(columns: Mapping[str, float]) -> dict[str, float]:
    """Compute the ten terms of ERS, column -> term; higher is more robust.

    Of the means over queries each is in [0, 100], as long as no mean cosine is negative and no mean
    rank of CA+ or QA+ above 50. Of a single query 2 CA+, 2 QA+ and 100 (1 - TMA) reach 200.

    2 CA+, 100 - CA-, 2 QA+, 100 - QA-, 100 (1 - TMA), 50 (2 - ES:D), ES:R, LTM, GTM, GTT

    Args:
        columns: the ten attack columns of ``ERS_COLUMNS``: ranks, R@1 and GTT in percent, TMA
            a cosine similarity in [-1, 1], ES:D a distance in [0, 2] (metric N only).

    Raises:
        KeyError: a column is missing.
        ValueError: ES:D is above 2, which is impossible for metric N.
    """
    if columns["ES:D"] > 2:
        raise ValueError(f"ERS is defined for metric N, where ES:D <= 2; got {columns['ES:D']}")
    return {name: a + b * columns[name] for name, (a, b) in TERMS.items()}


def ers_per_query(outcomes: Mapping[str, npt.NDArray[np.floating]]) -> npt.NDArray[np.float64]:
    """Compute the ERS of each query, (Q,). Their mean is the ERS of the means of the columns.

    That of a single query may be above 100 (``terms``).

    Args:
        outcomes: column -> (Q,) outcome of each query, for the ten columns. NaN means that the
            query has no outcome: it was not attacked (NaN in all columns), or no other image has
            its class (NaN in the columns of R@1). In a column with NaN the other queries get a
            larger weight, so that the mean of the column stays the same.

    Returns:
        (Q,) float64; NaN for a query that has no outcome in any column.

    Raises:
        KeyError: a column is missing.
        ValueError: no query has an outcome in a column.
    """
    lines = [a + b * np.asarray(outcomes[name], np.float64) for name, (a, b) in TERMS.items()]
    found = np.stack(lines)  # (10, Q): the ten terms of each query
    known = ~np.isnan(found)
    for name, given in zip(TERMS, known, strict=True):
        if not given.any():
            raise ValueError(f"no query has an outcome of {name}, so there is no ERS")
    queries = known.any(axis=0)
    weight = queries.sum() / known.sum(axis=1, keepdims=True)
    mean = np.where(known, found * weight, 0).mean(axis=0)
    return np.where(queries, mean, np.nan)


def score_per_query(
    name: str, sources: Sequence[tuple[str, npt.NDArray[np.float64]]]
) -> npt.NDArray[np.float64]:
    """Compute a score of each query, (Q,): its ERS, or its Robust R@1, the least of the sources.

    Args:
        name: ``names.ERS`` or ``names.WORST``.
        sources: (column, (Q,) outcome of each query) of each input.
    """
    if name == ERS:
        return ers_per_query(dict(sources))
    least: npt.NDArray[np.float64] = np.minimum.reduce([values for _, values in sources])
    return least
