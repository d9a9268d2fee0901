"""``compare``: the differences between two models from Python."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from dmlbench.analysis import compare as paired
from dmlbench.analysis.compare import SETTING
from dmlbench.analysis.differences import of_names
from dmlbench.analysis.left_out import left_out
from dmlbench.analysis.lookup import as_stored
from dmlbench.api.report import Report
from dmlbench.common.errors import UserError
from dmlbench.common.files import as_path
from dmlbench.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from dmlbench.analysis.compare import Difference, Side

COLUMNS = ("attack", "suite", "metric", *SETTING, "a", "b", "difference", "low", "high", "n",
           "better", "favours", "paired")  # fmt: skip


def compare(
    a: str | Path | Report,
    b: str | Path | Report,
    *,
    dataset: str | None = None,
    results: str | Path = "results",
) -> pd.DataFrame:
    """The difference b - a of each metric that both models have, as ``dmlbench compare`` prints it.

    Differences are taken query by query, so their intervals are far narrower than those of the two
    numbers. Of several seeds that both models have, the differences are averaged. A warning names
    the attacks that are left out because the models do not share them.

    Args:
        a: what ``dmlbench.evaluate`` returned, or a measured model in ``results``: a defense or a
            label as tables show it, a checkpoint, the folder of a model, or a model of the zoo.
        b: the other model.
        dataset: spec of the data set, where a model was measured on several.
        results: the results folder.

    Returns:
        A row for each metric: ``attack`` (empty: clean images), ``suite``, ``metric``, ``queries``,
        ``precision``, ``eot`` and ``data`` as in the CSV files, the means
        ``a`` and ``b``, their ``difference`` with the ends ``low`` and ``high`` of its 95%
        interval, the number ``n`` of queries, whether ``higher`` or ``lower`` is ``better``, the
        model (``A`` or ``B``) that it ``favours``, which is empty where the interval contains
        zero, and ``paired``: False where only rows of a CSV were there, whose queries count as
        independent ones.

    Raises:
        UserError: a model was not measured or is several models, or they share no metric.
    """
    if isinstance(a, Report) or isinstance(b, Report):
        left, right = (_side(one, name, results, dataset) for one, name in ((a, "a"), (b, "b")))
        frame = _frame(paired.compare(left, right), True)
        unlike = left_out(left.records, right.records)
    else:
        found = of_names(str(a), str(b), as_path("results", results), dataset)
        frame, unlike = _frame(found.differences, found.paired), found.left_out
    if unlike:
        warnings.warn(unlike, stacklevel=2)
    return frame


def _side(given: str | Path | Report, name: str, results: str | Path, dataset: str | None) -> Side:
    """A model whose outcomes are known query by query."""
    if not isinstance(given, Report):
        return paired.find(as_stored(str(given)), Store(as_path("results", results)), dataset)
    records = [one for one in given.records if one["status"] == "ok"]
    records = [one for one in records if dataset in (None, one["dataset"])]
    if not all(one["cell"] in given.outcomes for one in records):
        raise UserError(
            f"{name}: a report of stored results has no outcomes of single queries: name the "
            "model and its results folder, as in compare('none', 'hm', results='results')"
        )
    models = {tuple(str(one[key]) for key in paired.TRAINED): one["label"] for one in records}
    weights = {(one["seed"], one["checkpoint_sha256"]) for one in records}
    if len(models) != 1 or len(weights) > len(dict(weights)):
        labels = ", ".join(models.values()) or "none"
        raise UserError(
            f"{name}: the report must hold numbers of one model on one data set, it has {labels}: "
            "name one of them and its results folder, as in compare('none', 'hm')"
        )
    return paired.Side(name, records, given.outcomes)


def _frame(differences: list[Difference], paired: bool) -> pd.DataFrame:
    import pandas as pd

    lines = []
    for one in differences:
        d = one.difference
        setting = (getattr(one, name) for name in SETTING)
        what = (one.attack, one.suite, one.metric, *setting, one.a, one.b)
        lines.append((*what, d.value, d.low, d.high, d.n, one.better, one.favours, paired))
    return pd.DataFrame(lines, columns=list(COLUMNS))
