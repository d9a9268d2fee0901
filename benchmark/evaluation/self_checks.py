"""Self-checks of an attack that was run: reasons not to believe its number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dmlbench.attacks.base import Attack, Column
from dmlbench.attacks.engine.ball import BALLS
from dmlbench.attacks.engine.bisection import LEVEL_ROUNDING
from dmlbench.attacks.engine.outcomes import Outcomes, mean_outcomes, worse_outcomes
from dmlbench.common.hashing import derived_seed
from dmlbench.compute.model_checks import moved_by
from dmlbench.compute.randomness import global_seeds
from dmlbench.core import flags
from dmlbench.core.flags import Flag
from dmlbench.evaluation.embedded import LOOKED_AT, EmbeddedTest, spread
from dmlbench.metrics.names import CLEAN_SUFFIX

FAR = 1_000_000  # number of the first start that noise is made from, which no restart has
NEARLY_ALL = 0.99  # of the way to full success: where an attack is, noise need not be less


def attack_flags(
    measured: EmbeddedTest,
    attack: Attack,
    index: torch.Tensor,
    seed: int,
    outcomes: Mapping[str, np.ndarray[Any, Any]],
    findings: Mapping[str, Any],
) -> list[Flag]:
    """All flags of an attack on the test images at ``index``; its own (``Attack.flags``) last."""
    found = flags.gradients(findings["flat_start"])
    for column in attack.columns:
        if (last := findings.get("last_iterate", {}).get(column.name)) is not None:
            best = float(np.nanmean(outcomes[column.name]))
            found += flags.iterates(column.name, column.unit, best, last)
    if measured.draws == 1:
        found += flags.drift(_drift(measured, index), measured.precision)
    if attack.suite == "auto" and attack.held_against_noise and attack.eps:
        found += _noise(measured, attack, spread(index, flags.NOISE_QUERIES), seed, outcomes)
    return [*found, *attack.flags(outcomes, findings)]


def _drift(measured: EmbeddedTest, index: torch.Tensor) -> float:
    """Largest distance of clean embeddings from those in the gallery, in lengths of these."""
    looked_at = spread(index, LOOKED_AT)
    with torch.no_grad():
        e = measured.embed(measured.images(looked_at))
    return moved_by(e, measured.gallery.queries[looked_at])


def _noise(
    measured: EmbeddedTest,
    attack: Attack,
    index: torch.Tensor,
    seed: int,
    outcomes: Mapping[str, np.ndarray[Any, Any]],
) -> list[Flag]:
    """A flag for each column that the attack aims at and that noise makes at least as bad.

    The noise is ``Ball.far``.
    """
    parts: list[Outcomes] = []
    rows = min(measured.rows, attack.most_rows(measured.gallery))
    for batch in torch.split(index, rows):
        with torch.no_grad():
            parts.append(_worst_noise(measured, attack, batch, seed))
    found = []
    for column in (one for one in attack.columns if one.pursued):
        drawn = torch.cat([part[column.name] for part in parts]).double().cpu().numpy()
        attacked, clean = (
            outcomes[column.name + suffix][index.cpu().numpy()] for suffix in ("", CLEAN_SUFFIX)
        )
        if column.curve:
            column, drawn, attacked, clean = _at_eps(column, drawn, attacked, clean)
        if _as_far(column, measured, drawn, attacked, clean):
            values = float(np.nanmean(attacked)), float(np.nanmean(drawn))
            noise = BALLS[attack.norm].random_places
            found += flags.noise(column.name, column.unit, *values, noise)
    return found


def _worst_noise(
    measured: EmbeddedTest, attack: Attack, batch: torch.Tensor, seed: int
) -> Outcomes:
    """The worst outcome of each query of a batch over the draws of noise."""
    images, eps = measured.perturbed_by(attack, batch), attack.eps or 0
    goal = attack.goal(measured.gallery, batch, seed)
    worst: Outcomes = {}
    for draw in range(flags.NOISE_DRAWS):
        noisy = BALLS[attack.norm].far(images, eps, batch, seed, FAR + draw)
        with global_seeds(derived_seed(seed, "noise", draw, int(batch[0])), images.device):
            found = mean_outcomes(measured.draws, lambda x=noisy: goal.outcome(measured.embed(x)))  # type: ignore[misc]
        worst = worse_outcomes(attack.columns, worst or found, found)
    return worst


def _at_eps(
    column: Column,
    drawn: np.ndarray[Any, Any],
    attacked: np.ndarray[Any, Any],
    clean: np.ndarray[Any, Any],
) -> tuple[Column, np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The share of queries that hold out, in percent, in the place of the radii of ``column``.

    Noise of size eps shows that a query is broken at eps, and not its radius. A query that is
    broken in the largest ball alone has the radius eps too, so it counts as not broken here.
    """
    end = float(np.nanmax(clean))  # of a query that is right: eps
    none = np.isnan(clean)
    noisy, found, before = (
        np.where(none, np.nan, 100.0 * part)
        for part in (drawn >= end / 2, attacked > end * (1 - LEVEL_ROUNDING), clean >= end / 2)
    )
    return Column(f"R@1 at eps by {column.name}", "%", column.better), noisy, found, before


def _as_far(
    column: Column,
    measured: EmbeddedTest,
    drawn: np.ndarray[Any, Any],
    attacked: np.ndarray[Any, Any],
    clean: np.ndarray[Any, Any],
) -> bool:
    """True if noise makes the column at least as bad as the attack does.

    False if the attack has reached nearly the worst value that there is.
    """
    sign = 1 if column.better == "higher" else -1
    low, high = column.within(measured.gallery.metric)
    worst, best = (low, high) if sign == 1 else (high, low)
    reached = float(np.nanmean(attacked))
    if np.isfinite([worst, best]).all() and (reached - best) / (worst - best) > NEARLY_ALL:
        return False
    moved = int((sign * (clean - drawn) > 0).sum())
    enough = max(flags.LEAST_MOVED_QUERIES, flags.LEAST_MOVED * len(drawn))
    return moved >= enough and sign * (float(np.nanmean(drawn)) - reached) <= 0
