"""Losses of undefended training other than the triplet loss, from pytorch-metric-learning.

Each has that library's defaults, which are those of its paper. Contrastive and margin loss take the
Euclidean distance (of unit vectors for the metrics N and C), multi-similarity and proxy-anchor the
cosine, n-pair the inner product. N-pair uses one pair of each class in the batch, so it learns from
few images where a batch has few classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmlbench.common.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from dmlbench.metrics.distance import Metric

LOSSES = ("contrastive", "margin", "multi-similarity", "proxy-anchor", "n-pair")


def build(name: str, classes: int, dim: int, metric: Metric) -> nn.Module:
    """The loss ``name``: (B, D) embeddings and (B,) labels in [0, classes) -> a scalar.

    Raises:
        UserError: pytorch-metric-learning is not installed.
    """
    try:
        from pytorch_metric_learning import distances, losses
    except ImportError:
        raise UserError(
            f"loss={name} needs pytorch-metric-learning: pip install 'dmlbench[losses]'"
        ) from None
    euclidean = distances.LpDistance(normalize_embeddings=metric != "E")
    inner = distances.DotProductSimilarity(normalize_embeddings=metric != "E")
    made: nn.Module = {
        "contrastive": lambda: losses.ContrastiveLoss(distance=euclidean),
        "margin": lambda: losses.MarginLoss(distance=euclidean),
        "multi-similarity": losses.MultiSimilarityLoss,
        "proxy-anchor": lambda: losses.ProxyAnchorLoss(classes, dim),
        "n-pair": lambda: losses.NPairsLoss(distance=inner),
    }[name]()
    return made
