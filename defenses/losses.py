"""The losses that ``none``, ``est`` and ``act`` can learn by instead of the triplet loss.

``snr`` is the triplet loss under the signal-to-noise distance (Yuan et al., CVPR 2019), as RobRank
computes it (losses/snr.py). The others are pytorch-metric-learning's, with that library's defaults.
They may differ from those of the papers: multi-similarity has lambda = 0.5 (``base``), its paper 1.
Contrastive and margin loss take the Euclidean distance (of unit vectors for the metrics N and C),
multi-similarity and proxy-anchor the cosine, n-pair the inner product. N-pair uses one pair of each
class in the batch, so it learns from few images where a batch has few classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmlbench.common.errors import UserError
from dmlbench.common.lazy import torch
from dmlbench.defenses.samplers import INITIAL

if TYPE_CHECKING:
    from torch import nn

    from dmlbench.metrics.distance import Metric

TRIPLET = "triplet"
SAMPLED = (TRIPLET, "margin", "snr")  # these losses need mined triplets
OF_TRIPLETS = (*SAMPLED, "contrastive")  # these can be taken on given triplets
LOSSES = (TRIPLET, "contrastive", "margin", "multi-similarity", "proxy-anchor", "n-pair", "snr")
HELP = "the loss; all but triplet and snr are pytorch-metric-learning's, with its defaults"
SNR_MARGIN, SNR_REGULARISER = 0.2, 0.005  # RobRank's, after Roth et al. (ICML 2020)


def mined(loss: str) -> bool:
    """True if the loss is taken on mined triplets, not on all pairs of the batch."""
    return loss in SAMPLED


def notation(loss: str, sampler: str, always_mined: bool = False) -> str:
    """The part of a label in brackets: ``R``, ``margin, R``; ``contrastive`` for the whole batch.

    ``always_mined``: the defense takes every loss on mined triplets.
    """
    if loss == TRIPLET:
        return INITIAL[sampler]
    return f"{loss}, {INITIAL[sampler]}" if mined(loss) or always_mined else loss


def check(
    defense: str, loss: str, margin: float | None, sampler: str, always_mined: bool = False
) -> None:
    """Refuse a margin or a sampler that the loss does not read.

    Raises:
        UserError: it is given all the same.
    """
    if loss == TRIPLET:
        return
    if margin is not None:
        raise UserError(f"{defense}: margin is the triplet loss's; loss={loss} has its own")
    if not mined(loss) and not always_mined and sampler != "random":
        raise UserError(f"{defense}: loss={loss} reads the whole batch and takes no sampler")


def build(name: str, classes: int, dim: int, metric: Metric) -> nn.Module | None:
    """The loss ``name``: (B, D) embeddings and (B,) labels in [0, classes) -> a scalar.

    Those in ``SAMPLED`` take triplets too: the positions of anchors, positives and negatives, (T,)
    each. None for the triplet loss, which the defenses compute themselves.

    Raises:
        UserError: pytorch-metric-learning is not installed.
    """
    if name == TRIPLET:
        return None
    if name == "snr":
        return _signal_to_noise()
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


def _signal_to_noise() -> nn.Module:
    class SignalToNoise(torch.nn.Module):
        """Mean of max(0, s(a, p) - s(a, n) + 0.2) over the triplets where it is not zero.

        s(a, x) = var(a - x) / var(a) over the components. 0.005 mean |sum of a's components| is
        added, which keeps embeddings at mean zero.
        """

        def forward(
            self, e: torch.Tensor, labels: torch.Tensor, triplets: tuple[torch.Tensor, ...]
        ) -> torch.Tensor:
            a, p, n = (e[positions] for positions in triplets)
            noise = (a - p).var(dim=1) - (a - n).var(dim=1)
            loss = (noise / a.var(dim=1) + SNR_MARGIN).relu()
            centre = a.sum(dim=1).abs().mean()
            return loss.sum() / (loss > 0).sum().clamp(min=1) + SNR_REGULARISER * centre

    return SignalToNoise()
