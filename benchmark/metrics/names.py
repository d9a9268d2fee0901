"""Names of the metrics that are not an attack's."""

from __future__ import annotations

from collections.abc import Iterable

TRAPEZOID = "mAP-trapezoid"  # mAP as the landmark benchmarks compute it
RECALLS_AT = (1, 2, 4, 8, 10, 20, 30, 100, 1000)  # the K of R@K that a data set may have
OVER_STARTS = ("NMI",)  # low and high are the range over the starts of k-means, no interval
WORST, ERS = "Robust R@1", "ERS"  # scores that are drawn from several columns
WORST_CASE = "worst case"  # what the tables name as the attack of Robust R@1
RECALLED = {"es": "ES:R", "ltm": "LTM", "gtm": "GTM", "top1": "Top1"}  # what WORST is drawn from
RECALLS = ("ES:R", "LTM", "GTM", "Top1", "Margin", "DLR", "KNN", "Shift")  # R@1 after an attack
CLEAN_SUFFIX = " clean"  # behind an attack's column: the same outcomes of the clean images
EXTERNAL = "External"  # begins the columns of images that were handed in from outside


def benign(recalls: Iterable[int] = (1, 2), listed: bool = False) -> tuple[str, ...]:
    """The metrics of clean images, in the order of tables.

    Args:
        recalls: the values of K in R@K.
        listed: the data set lists the answers of each query, and has no classes.
    """
    last = TRAPEZOID if listed else "NMI"
    return (*(f"R@{k}" for k in recalls), "mAP", "mAP@R", "mAP@10", last)


BENIGN = benign()
CLEAN = (*benign(RECALLS_AT), TRAPEZOID)  # any of them
