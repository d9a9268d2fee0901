"""Write the tables of the pages in results/ from the CSVs: ``python -m scripts.reading``.

Each table follows a comment with its name. A test compares the pages with this output.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev

import click
import pandas as pd

from dmlbench.analysis.csv_files import read_tidy
from dmlbench.core.naming import parameters
from dmlbench.core.protocol import SUITES
from dmlbench.metrics.ers import ERS_COLUMNS, ers
from dmlbench.metrics.names import ERS
from dmlbench.report.board import NOTHING
from dmlbench.report.entries import Entry, measured
from dmlbench.report.literature import published
from scripts import ablations, claims
from scripts.order import orders

RESULTS = Path(__file__).parent.parent / "results"
BASE = ("R@1", "mAP", "NMI")
ETA = 8
EPOCHS = 8  # of Fashion-MNIST's recipe, which rows leave unsaid
OA_PAPER = {2: "0.29", 4: "0.41", 8: "0.55", 16: "0.60"}  # eps -> tau (Zhou et al., ICCV 2021)
TABLE_1 = {  # of HM's paper: sampler -> mean and variance of hardness on CUB
    "random": (-0.164, 0.00035),
    "semihard": (-0.126, 0.00013),
    "softhard": (-0.085, 0.00122),
    "distance": (0.043, 0.00021),
    "hardest": (0.044, 0.00021),
}
RADII = ("8/255", "4/255", "2/255")  # of photographs; the first is the protocol's
MARKER = re.compile(r"^<!-- (.+) -->$", re.MULTILINE)
TABLE = re.compile(r"^(<!-- (.+) -->\n)(?:\|.*\n)*", re.MULTILINE)
Lines = Iterable[Sequence[str]]


def markdown(heads: Sequence[str], lines: Lines) -> str:
    """Write a table in Markdown."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def found(entries: Iterable[Entry], suite: str) -> dict[str, Entry]:
    """Return label of the defense -> its entry, for one suite."""
    chosen = [entry for entry in entries if entry.suite == suite]
    named = {entry.label: entry for entry in chosen}
    if len(named) < len(chosen):
        raise ValueError("two entries have the same label: the tables would show only the last")
    return named


def text(entry: Entry, column: str) -> str:
    """Round a number as the boards do; a dash if there is none."""
    return entry.numbers[column].text if column in entry.numbers else NOTHING


def defenses(strict: dict[str, Entry], ers: dict[str, Entry]) -> str:
    """Write the table of defenses in both suites, ordered by ERS, collapsed models last."""
    paper = {
        entry.label: text(entry, "ERS") + " (collapsed)" * entry.collapsed
        for entry in published()
        if entry.place.startswith("CVPR") and entry.dataset == "cub" and entry.eta in (None, ETA)
    }
    once = ("R@1", "ES:D", "TMA", "ES:R", "ES:R (restarts=1)", "ES:R (restarts=5)")
    worst = ("Robust R@1", "Robust R@1 (es:restarts=5)")
    heads = ("defense", "ERS strict", "ERS ers", "paper, CUB", *once, "GTM strict", "GTM ers")
    ranked = sorted(strict.values(), key=lambda one: (one.score is None, -(one.score or 0)))
    lines = []
    for one in ranked:
        other = ers[one.label]
        lines.append(
            (
                one.label + " (collapsed)" * one.collapsed,
                *(f"{e.numbers['ERS'].text} {e.numbers['ERS'].range}" for e in (one, other)),
                paper.get(one.label, NOTHING),
                *(text(one, name) for name in once),
                *(text(e, "GTM") for e in (one, other)),
                *(text(one, name) for name in worst),
            )
        )
    return markdown((*heads, *worst), lines)


def epochs(*suites: dict[str, Entry]) -> str:
    """Write the table of the effect of more epochs.

    Args:
        suites: the entries ``strict`` and ``ers`` of the short training, then of the long one.
    """
    shorter, ers, longer, longer_ers = suites
    once = ("R@1", "TMA", "ES:D", "ES:R", "ES:R (restarts=5)", "GTM")
    worst = ("Robust R@1", "Robust R@1 (es:restarts=5)")
    lines = []
    for label in longer:
        for one, other in ((shorter[label], ers[label]), (longer[label], longer_ers[label])):
            totals = (f"{e.numbers['ERS'].text} {e.numbers['ERS'].range}" for e in (one, other))
            rest = (text(one, name) for name in (*once, *worst))
            lines.append((label, one.recipe.removeprefix("epochs="), *totals, *rest))
    return markdown(("defense", "epochs", "ERS strict", "ERS ers", *once, *worst), lines)


def documented(*trained: dict[str, Entry]) -> str:
    """Write the table of ``ers`` columns beside RobRank's documented ones: ours / theirs.

    Args:
        trained: the entries of each training; a line is of one model in one of them.
    """
    theirs = {
        entry.label: entry
        for entry in published()
        if entry.dataset == "fashion" and entry.distance == "N"
    }
    names = (*BASE, *ERS_COLUMNS, "ERS")
    lines = [
        (
            f"{label}, {of[label].recipe.removeprefix('epochs=') or EPOCHS} epochs",
            *(f"{text(of[label], name)} / {text(entry, name)}" for name in names),
        )
        for label, entry in theirs.items()
        for of in trained
        if label in of
    ]
    return markdown(("ours / documented", *names), lines)


def table(path: Path, dropped: Sequence[str] = ()) -> str:
    """Write the table of a CSV without the columns ``dropped``, which the text mentions."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    heads = [name for name in rows[0] if name not in dropped]
    return markdown(heads, [[row[name] for name in heads] for row in rows])


def upper_bounds(path: Path) -> str:
    """Write the table of what the suites strict and auto leave of the same models.

    ``lost`` is the share of the ERS of strict that is gone: with APGD in as many steps, and in 100.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    recalls = ("clean R@1", "Robust R@1 strict", "auto", "20 attacks together")
    scores = ("ERS strict", "32 steps of APGD", "ERS auto", "lost in 32", "lost in 100")
    heads = ("defense", "eps", *recalls, *scores, "passes")
    lines = []
    for row in rows:
        strict, equal, auto = (float(row[f"ERS {name}"]) for name in ("strict", "equal", "auto"))
        lines.append(
            (
                row["label"],
                row["eps"],
                *(row[name] for name in ("clean", "strict", "auto", "twenty")),
                *(f"{one:.1f}" for one in (strict, equal, auto)),
                *(f"{1 - one / strict:.0%}" for one in (equal, auto)),
                f"{float(row['passes strict']):.0f} / {float(row['passes auto']):.0f}",
            )
        )
    return markdown(heads, lines)


def variants(path: Path) -> str:
    """Write the table of defenses trained as the papers write and as RobRank's code does.

    A number is the mean over the seeds and its standard deviation.
    """
    entries = measured(read_tidy(path))
    strict, ers = found(entries, "strict"), found(entries, "ers")
    columns = (
        ("R@1", "R@1", strict),
        ("ES:R strict", "ES:R", strict),
        ("ES:R ers", "ES:R", ers),
        ("ES:R, random start", "ES:R (restarts=1)", strict),
        ("ES:D strict", "ES:D", strict),
    )
    lines = []
    for label, one in strict.items():
        numbers = [of[label].numbers[name] for _, name, of in columns]
        shown = (f"{number.text} {number.range}" for number in numbers)
        lines.append((label, ", ".join(map(str, one.seeds)), *shown))
    return markdown(("defense", "seeds", *(head for head, _, _ in columns)), lines)


def order_attack(path: Path) -> str:
    """Write the table of Kendall's tau and the mean rank under OA, beside those of its paper."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = {(row["attack"], row["metric"]): row for row in csv.DictReader(file)}
    lines = []
    for eps, paper in OA_PAPER.items():
        attack = f"oa:eps={eps}/255,alpha=1/255,steps=24"
        tau, rank = (
            "{:.2f} [{:.2f}, {:.2f}]".format(*(float(row[k]) for k in ("value", "low", "high")))
            for row in (rows[attack, name] for name in ("OA", "OA:mR"))
        )
        lines.append((f"{eps}/255", tau, paper, rank))
    return markdown(("eps", "tau", "paper", "mean rank"), lines)


def universal(path: Path) -> str:
    """Write the table of R@1 under one perturbation for all queries, made on each of the models."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = {row["defense"]: row["label"] for row in rows}
    clean, moved = {}, {}
    for row in rows:
        if row["metric"] == "Transfer":
            source = row["attack"].partition("from=")[2].partition(",")[0]
            low, high = float(row["low"]), float(row["high"])
            moved[row["defense"], source] = f"{float(row['value']):.1f} [{low:.1f}, {high:.1f}]"
            clean[row["defense"]] = row["clean"]
    lines = [
        (label, clean[one], *(moved[one, source] for source in labels))
        for one, label in labels.items()
    ]
    return markdown(("shown to", "clean", *(f"made on {one}" for one in labels.values())), lines)


def transfers(path: Path) -> str:
    """Write the table of R@1 under perturbations that were made on each of the other networks.

    They are those of the margin attack; ``by`` names another one.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = {Path(parameters(row["model"])["weights"]).stem: row["label"] for row in rows}
    clean = {row["label"]: f"{float(row['clean']):.1f}" for row in rows if row["metric"] == "ES:R"}
    moved = {}
    for row in rows:
        keys = parameters(row["attack"])
        if row["metric"] == "Transfer" and "by" not in keys:
            source = keys["from"].partition("@")[0]
            low, high = float(row["low"]), float(row["high"])
            shown = f"{float(row['value']):.1f} [{low:.1f}, {high:.1f}]"
            moved[row["label"], labels[source]] = shown
    lines = [
        (one, recall, *(moved.get((one, source), NOTHING) for source in clean))
        for one, recall in clean.items()
    ]
    return markdown(("shown to", "clean", *(f"made on {one}" for one in clean)), lines)


def three_suites(path: Path) -> str:
    """Write the table of the same models in all suites, by the ERS of auto, collapsed ones last.

    A number is the mean over the seeds and its standard deviation, or has the interval of one seed.
    ``passes`` are those of a training step. ``unattacked`` is the ERS that an attack leaves which
    does nothing. ``lost`` is the share of the ERS of strict that is gone under auto.
    """
    entries = measured(read_tidy(path))
    strict, ers, auto = (found(entries, suite) for suite in SUITES)
    columns = (
        ("R@1", "R@1", strict),
        ("ERS strict", "ERS", strict),
        ("ERS ers", "ERS", ers),
        ("ERS auto", "ERS", auto),
        ("Robust R@1 strict", "Robust R@1", strict),
        ("Robust R@1 auto", "Robust R@1", auto),
        ("Radius", "Radius", auto),
    )
    lines = []
    for one in sorted(auto.values(), key=lambda one: (one.score is None, -(one.score or 0))):
        numbers = [of[one.label].numbers.get(name) for _, name, of in columns]
        lost = [1 - after / before for before, after in _of_seeds(ERS, strict[one.label], one)]
        lines.append(
            (
                one.label + " (collapsed)" * one.collapsed + " ‡" * one.flagged,
                str(len(one.seeds)),
                str(one.records[ERS][0]["training_cost"]),
                f"{unattacked(strict[one.label]):.1f}",
                *(f"{number.text} {number.range}" if number else NOTHING for number in numbers),
                f"{fmean(lost):.0%}" + (f" ± {stdev(lost):.0%}" if len(lost) > 1 else ""),
            )
        )
    heads = ("defense", "seeds", "passes", "unattacked", *(head for head, _, _ in columns), "lost")
    return markdown(heads, lines)


def _of_seeds(name: str, *entries: Entry) -> Iterator[tuple[float, ...]]:
    """The numbers of the entries, for each seed that all of them have."""
    found = [{r["seed"]: r["value"] for r in entry.records[name]} for entry in entries]
    for seed in entries[0].seeds:
        if all(seed in one for one in found):
            yield tuple(one[seed] for one in found)


def unattacked(entry: Entry) -> float:
    """ERS of the outcomes before the attack, as a mean over seeds."""
    clean = {name: fmean(r["clean"] for r in entry.records[name]) for name in ERS_COLUMNS}
    return ers(clean)


def photographs(path: Path) -> str:
    """Write the table of networks at several radii, under the suites strict and auto."""
    entries = measured(read_tidy(path))
    suites = [found(entries, suite) for suite in ("strict", "auto")]
    lines = []
    for label in dict.fromkeys(label for suite in suites for label in suite):
        both = [suite.get(label) for suite in suites]
        one = next(entry for entry in both if entry)
        rows = []
        for eps in RADII:
            cells = [_at(entry, name, eps) for name in (ERS, "Robust R@1") for entry in both]
            if any(cell != NOTHING for cell in cells):
                rows.append([label, eps, *cells])
        for place, row in enumerate(rows):  # what knows no eps stands in the first line
            clean, radius = (_at(of, x, RADII[0]) for of, x in ((one, "R@1"), (both[1], "Radius")))
            lines.append([*row[:2], clean, *row[2:], radius] if place == 0 else
                         [*row[:2], "", *row[2:], ""])  # fmt: skip
    heads = ("ERS strict", "ERS auto", "Robust R@1 strict", "Robust R@1 auto", "Radius in 1/255")
    return markdown(("network", "eps", "R@1", *heads), lines)


def _at(entry: Entry | None, name: str, eps: str) -> str:
    """A number at a radius, which stands in brackets behind its name unless it is the protocol's.

    The size of a step may stand there too.
    """
    for heading, number in (entry.numbers if entry else {}).items():
        bare, _, variant = heading.partition(" (")
        changed = parameters(f":{variant.rstrip(')')}")
        if variant and not changed.keys() <= {"eps", "alpha"}:
            continue
        if bare == name and changed.get("eps", RADII[0]) == eps:
            return f"{number.text} {number.range}"
    return NOTHING


def order_of_models(outcomes: pd.DataFrame, path: Path) -> str:
    """Write the order of the models under each suite, by ERS, with its probability.

    ``above the next`` is the probability that the model is better than the one in the next line.
    """
    lines = []
    unranked = {entry.label for entry in measured(read_tidy(path)) if entry.flagged}
    for suite, places in orders(outcomes, unranked).items():
        for one in places:
            above = "" if one.above_next is None else f"{one.above_next:.3f}"
            mean = f"{one.mean:.1f} [{one.low:.1f}, {one.high:.1f}]"
            lines.append((suite, one.name, mean, f"{one.rank:.1f}", f"{one.first:.3f}", above))
    return markdown(("suite", "defense", "ERS", "mean rank", "best", "above the next"), lines)


def hardness(initial: Path, trained: Path) -> str:
    """Write Table 1 of HM's paper: hardness by sampler, of the paper and of two networks here."""
    columns = {"E[H]": "mean", "Var[H] in a batch": "variance in a batch"}
    columns["of batch means"] = "variance of the batch mean"
    heads = ["sampler", "paper: E[H]", "Var[H]"]
    lines = [[name, *map(str, figures)] for name, figures in TABLE_1.items()]
    for says, path in (("C2F2, initial: ", initial), ("C2F2, trained: ", trained)):
        with path.open(newline="", encoding="utf-8") as file:
            rows = {row["sampler"]: row for row in csv.DictReader(file)}
        heads += [f"{says}{head}" if head == "E[H]" else head for head in columns]
        for line in lines:
            mean, *variances = (float(rows[line[0]][column]) for column in columns.values())
            line += [f"{mean:.3f}", *(f"{one:.5f}" for one in variances)]
    return markdown(heads, lines)


def of_the_paper(number: str) -> str:
    """Write a table of HM's paper as measured on fashion-mini, beside the published figures."""
    path = RESULTS / "paper" / "fashion-mini.csv"
    return markdown(ablations.HEADS, ablations.lines(number, path))


@cache
def blocks() -> dict[str, str]:
    """Return name -> table."""
    suites = [
        found(measured(read_tidy(RESULTS / name)), suite)
        for name in ("fashion.csv", "fashion-4-epochs.csv")
        for suite in ("strict", "ers")
    ]
    strict, ers, _, longer = suites
    full = RESULTS / "fashion-8-epochs.csv"
    outcomes = pd.read_parquet(RESULTS / "fashion-mini" / "outcomes.parquet")
    paper = RESULTS / "paper"
    statements = claims.Statements(outcomes)
    in_the_text = "device threads git torch model size batch gallery pairs queries checkpoint"
    speeds = {
        name: table(RESULTS / "speed" / f"{name}.csv", in_the_text.split())
        for name in (
            "attacks",
            "peer",
            "training",
            "training_late",
            "peer_training",
            "peer_tride",
            "folding",
        )
    }
    return {
        "defenses": defenses(strict, ers),
        "epochs": epochs(*suites),
        "documented": documented(ers, longer, found(measured(read_tidy(full)), "ers")),
        "all epochs": three_suites(full),
        "upper bounds": upper_bounds(RESULTS / "auto" / "fashion-mini.csv"),
        "variants": variants(RESULTS / "variants" / "fashion-mini.csv"),
        "three suites": three_suites(RESULTS / "fashion-mini" / "rows.csv"),
        "photographs": photographs(RESULTS / "grocery.csv"),
        "transfers": transfers(RESULTS / "grocery.csv"),
        "order attack": order_attack(RESULTS / "oa" / "fashion.csv"),
        "universal": universal(RESULTS / "uap" / "fashion-mini.csv"),
        "order": order_of_models(outcomes, RESULTS / "fashion-mini" / "rows.csv"),
        "paper 1": hardness(*(paper / f"hardness-{x}.csv" for x in ("initial", "trained"))),
        "contracted": table(paper / "contracted.csv", in_the_text.split()),
        "paper 2": markdown(*ablations.square(paper / "fashion-mini.csv")),
        **{f"paper {one}": of_the_paper(one) for one in ablations.TABLES},
        "claims": markdown(*statements.claims()),
        "retrieval": markdown(*statements.claims(recall=True)),
        "radii": markdown(*statements.radii()),
        "newer": markdown(*statements.newer()),
        "cheap": markdown(*statements.cheap()),
        **speeds,
    }


def pages() -> dict[Path, str]:
    """Return path -> content of the pages that have tables."""
    paths = [RESULTS / "README.md", *sorted(RESULTS.glob("*/README.md"))]
    return {path: path.read_text(encoding="utf-8") for path in paths}


def written(pages: Mapping[Path, str]) -> dict[Path, str]:
    """Return ``pages`` with all their tables written again.

    Raises:
        ValueError: the comment of a table is missing, or there are two, or it names no table.
    """
    named = [name for page in pages.values() for name in MARKER.findall(page)]
    if sorted(named) != sorted(blocks()):
        wrong = sorted(set(named) ^ set(blocks())) or named
        raise ValueError(f"each table needs one line <!-- name --> in the pages: {wrong}")
    return {path: TABLE.sub(lambda m: f"{m[1]}{blocks()[m[2]]}\n", p) for path, p in pages.items()}


@click.command()
def main() -> None:
    """Write the tables of the pages in results/ again, from the CSVs beside them."""
    for path, page in written(pages()).items():
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
