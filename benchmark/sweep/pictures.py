"""Pictures of what the attacks of a run did to their first queries."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dmlbench.common.errors import UserError
from dmlbench.common.text import one_line
from dmlbench.evaluation.pictures import draw
from dmlbench.sweep.session import Session
from dmlbench.sweep.tasks import CellTask, Measure
from dmlbench.sweep.worker import Worker


def draw_attacks(session: Session, tasks: Iterable[CellTask]) -> list[Path]:
    """Draw the first ``session.keep`` queries of each attack among ``tasks``; returns the paths.

    The queries were kept while their cell was measured. Where the cell was measured before this
    run, so many queries are attacked again; if that fails, a warning says so. Each picture is
    ``adversarial/<first digits of the checkpoint>/<attack>-<cell>/query-<index>.png`` in the
    results.
    """
    paths: list[Path] = []
    with Worker(session) as worker:
        for task in tasks:
            if not isinstance(task, Measure) or task.attack is None:
                continue
            queries = session.kept.get(task.cell.id)
            if queries is None:
                measured = worker.evaluation(task.weights)
                seed, keep = task.weights.seed, session.keep
                try:
                    queries = measured.attacked_queries(task.attack, seed, keep, task.queries)
                except (UserError, KeyboardInterrupt):
                    raise
                except BaseException as error:  # whatever a plugin raises
                    said = one_line(f"{type(error).__name__}: {error}")
                    session.reporter.warn(f"no pictures of {task.title}: {said}")
                    continue
            model = session.store.root / "adversarial" / task.weights.facts["checkpoint"][:12]
            folder = model / f"{_safe(task.attack.card.name)}-{task.cell.id}"
            paths += draw(task.cell.about.attack, queries, session.data, folder)
    return paths


def _safe(name: str) -> str:
    return {"+": f"{name[:-1]}-plus", "-": f"{name[:-1]}-minus"}.get(name[-1], name)
