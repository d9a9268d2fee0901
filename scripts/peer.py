"""Compare the attacks with those of RobRank: ``python -m scripts.peer FOLDER --checkpoint FILE``.

FOLDER contains RobRank's package ``robrank``, from a clone of github.com/cdluminate/robrank (its
attacks import tqdm, termcolor, scipy and pytest). Both attack the same C2F2 with the same queries
of Fashion-MNIST and the same targets, by the definitions of the suite ``ers``, alternately in one
run. The script prints each column of both, the share of pixels that have the same value in both
after all steps, and queries per second, including targets and rankings. RobRank gets our targets,
which takes less time than drawing its own.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from dmlbench.attacks.base import ATTACKS, Gallery
from dmlbench.common.console_progress import PlainReporter
from dmlbench.compute.device import Compute
from dmlbench.core.protocol import ERS_ATTACKS
from dmlbench.datasets.fashion import Fashion
from dmlbench.evaluation.evaluator import evaluation
from dmlbench.models.small import C2F2
from dmlbench.storage import checkpoint
from scripts.overhead import clock
from scripts.record import CSV, save

ROBRANK_NAMES = {  # column of ERS -> its name in RobRank, and the factor from RobRank to ours
    **{name: (f"{name}:prank", 100) for name in ("CA+", "CA-", "QA+", "QA-")},
    "TMA": ("Cosine-SIM", 1),
    "ES:D": ("embshift", 1),
    "ES:R": ("r@1", 1),
    **dict.fromkeys(("LTM", "GTM"), ("r@1", 100)),
    "GTT": ("retain@4", 100),
}


def import_robrank(folder: Path) -> Any:
    """Import RobRank's module of attacks without its packages, which need further libraries."""
    for package in ("robrank", "robrank.attacks", "robrank.models", "robrank.utils"):
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(folder.joinpath(*package.split(".")))]
    sys.modules["robrank.utils"].rjson = lambda text: text  # type: ignore[attr-defined]
    from robrank.attacks import advrank  # type: ignore[import-not-found]

    sys.modules["robrank.attacks"].AdvRank = advrank.AdvRank  # type: ignore[attr-defined]
    return advrank


class Backbone(torch.nn.Module):
    """A model in the form that RobRank's attacks need: its output is not normalised."""

    dataset = "fashion"

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the raw embeddings (B, D)."""
        return self.model.backbone(x)  # type: ignore[operator,no-any-return]


def selector(goal: Any, gallery: torch.Tensor) -> Callable[..., Any]:
    """Make a function that gives RobRank the targets of ``goal``."""

    def choose(kind: str, *_: object, **__: object) -> Callable[..., Any]:
        def call(_: Any, __: Any, *own: Any) -> Any:
            if kind.startswith("CA"):
                at = [[int((gallery == q).all(1).nonzero()[0, 0]) for q in r] for r in goal.queries]
                return gallery[torch.tensor(at)], torch.tensor(at)
            if kind.startswith("QA"):
                return gallery[goal.candidates], goal.candidates
            if kind == "TMA":
                return goal.target, None
            if kind in ("GTM", "GTT"):
                mine = (gallery[own[0]][:, None], own[0])
                if kind == "GTM":
                    target, first = goal.target[:, None], None
                else:
                    several = goal.candidates
                    target, first = gallery[several], several[:, 0]
                return (target, first), (target, first), mine
            return None  # ES and LTM have no target

        return call

    return choose


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--checkpoint", "weights", required=True, type=click.Path(path_type=Path))
@click.option("--queries", type=int, default=64, show_default=True)
@click.option("--threads", type=int, default=1, show_default=True)
@CSV
def main(folder: Path, weights: Path, queries: int, threads: int, path: Path | None) -> None:
    """Print a row for each column of ERS."""
    advrank = import_robrank(folder)
    data, model = Fashion().load(None), C2F2().build(1, 28)
    checkpoint.load_weights(weights, model)
    threat = replace(Fashion.card.threat, suite="ers")
    compute = Compute("cpu", threads=threads)
    rows: list[dict[str, Any]] = []
    with evaluation(model, data, compute, PlainReporter(Console(stderr=True))) as evaluated:
        index, device = evaluated.index[:queries], evaluated.device
        images, gallery = evaluated.images(index), evaluated.gallery
        known = (gallery.embeddings, gallery.labels)
        click.echo(f"{queries} queries, {threads} threads, torch {torch.__version__}")
        heads = ("column", "ours", "RobRank", "pixels", "ours q/s", "RobRank q/s", "ratio")
        click.echo("{:8}{:>9}{:>9}{:>8}{:>10}{:>13}{:>7}".format(*heads))
        for name in ERS_ATTACKS:
            attack = ATTACKS.get(name)().resolve(threat)
            goal = attack.goal(gallery, index, seed=0)  # sorts neighbours, once as in a run
            ours, theirs = {}, {}

            def run_ours() -> None:
                ours["all"] = attack.run(model, images, index, gallery, seed=0)  # noqa: B023

            peer = robrank_attack(advrank, name, threat, model, goal, gallery)

            def run_robrank() -> None:
                theirs["all"] = peer(images, gallery.labels[index], known)  # noqa: B023

            for _ in range(1 if rows else 2):  # the first attack twice: the first time is a warm-up
                model.requires_grad_(False)
                our_seconds = clock(run_ours, device)
                model.requires_grad_(True)  # RobRank's steps fill the parameters' gradients too
                robrank_seconds = clock(run_robrank, device)
            found, (moved, _, _, sums) = ours["all"], theirs["all"]
            same = ((moved - found.perturbed.images).abs() < 1e-6).float().mean()
            for column, outcomes in found.outcomes.items():
                key, factor = ROBRANK_NAMES[column]
                row = {
                    "column": column,
                    "ours": f"{outcomes.nanmean():.4f}",
                    "RobRank": f"{factor * float(sums[key]):.4f}",
                    "pixels equal": f"{same:.3f}",
                    "ours queries/s": f"{queries / our_seconds:.1f}",
                    "RobRank queries/s": f"{queries / robrank_seconds:.2f}",
                    "ratio": f"{robrank_seconds / our_seconds:.1f}",
                }
                click.echo("{:8}{:>9}{:>9}{:>8}{:>10}{:>13}{:>7}".format(*row.values()))
                rows.append({**row, "queries": queries, "checkpoint": weights.name})
        save(path, rows, device)


def robrank_attack(
    advrank: Any, name: str, threat: Any, model: torch.nn.Module, goal: Any, gallery: Gallery
) -> Callable[..., Any]:
    """Build the attack ``name`` of RobRank, with the targets of ``goal``."""
    advrank.QCSelector = selector(goal, gallery.embeddings)
    kind, sign = name.upper(), None
    settings: dict[str, int] = {}
    if kind[:2] in ("CA", "QA"):
        kind, sign = kind[:2], kind[2]
        settings = {"CA": {"W": 1}, "QA": {"M": 1}}[kind]
    run: Callable[..., Any] = advrank.AdvRank(
        Backbone(model),
        eps=threat.eps,
        alpha=threat.alpha,
        pgditer=threat.steps,
        attack_type=kind,
        pm=sign,
        device="cpu",
        metric="N",
        **settings,
    ).attack
    return run


if __name__ == "__main__":
    main()
