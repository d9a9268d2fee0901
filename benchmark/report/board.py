"""A board as data: tables of ranked lines. Every format (Markdown, LaTeX, ...) renders this."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from dmlbench.core.naming import parameters, seeds_in_words, split_heading, told_apart
from dmlbench.metrics.names import WORST
from dmlbench.report import ranking
from dmlbench.report.columns import DESCRIBING, BoardColumn, asked_for, column, in_order
from dmlbench.report.entries import Entry, Number
from dmlbench.report.ranking import Mark

LEADING = ("r50", "ERS")
"""Headings by which models are compared at a glance; the first that a table has leads it."""
TELLING = ("Rank", "Defense", "Model", "η", "Recipe", "Precision", "EoT", "Source")
FEW = (*TELLING, *LEADING, "R@1", "CA+", "ES:R", "GTM", WORST)
"""Headings that a reader sees first; the others are folded away, or in a second table."""
HIDDEN = ("mAP@10",)  # measured, but in no table of the papers; ``--column`` shows it
SWEPT = ("eps", "alpha", "steps")
NOTHING = "–"
UPPER_BOUND = {
    "strict": [
        "The papers' attacks: robustness against them is an upper bound, since sign steps of one "
        "size are a weak optimizer, most of all in a large ball. Suite auto has a stronger one."
    ],
    "ers": [
        "The attacks as published: robustness against them is an upper bound, since sign steps of "
        "one size are a weak optimizer, most of all in a large ball. Suite auto has a stronger one."
    ],
}
"""Suite -> what to say below its table."""
NMI_CAVEAT = (
    "NMI changes by several points with the random start of k-means. A range is that over several "
    "starts, the number that of the start with the least inertia; without a range, as published, "
    "it is of one start: do not compare it closely."
)

PARTIAL = (
    "A number of some seeds only is marked so: the other seeds of its row lack it (failed or not "
    "measured), and it is neither best nor second best."
)


@dataclass(frozen=True)
class BoardCell:
    """One cell of a table: a text, and how it is marked.

    Attributes:
        text: the text, without marks.
        mark: best or second best of its column, failed, or missing (nothing was measured).
        number: the number that the text shows; None where it shows none.
        note: more about it, e.g. the error of a failed cell or the title of a source.
        link: address of the source; empty if there is none.
    """

    text: str
    mark: Mark = ""
    number: Number | None = None
    note: str = ""
    link: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table: an entry, and one cell for each column.

    Attributes:
        tied: the first and the last of its groups of lines whose intervals of ERS overlap; None if
            it overlaps with no other (``ranking.tied``).
    """

    entry: Entry
    cells: tuple[BoardCell, ...]
    tied: tuple[int, int] | None = None


@dataclass(frozen=True)
class Table:
    """Lines that can be compared: measured on one data set by one suite of definitions.

    Attributes:
        dataset: ``data`` of its lines.
        threats: of its lines: the optimizer (``PGD`` or ``APGD``), and the rest in words.
        chosen: True if the user has named the columns: all of them are then shown at once.
    """

    dataset: str
    suite: str
    threats: tuple[tuple[str, str], ...]
    columns: tuple[BoardColumn, ...]
    lines: tuple[Line, ...]
    chosen: bool = False

    @cached_property
    def few(self) -> list[int]:
        """The places of the columns to show first; all where there is little else to show."""
        names = [column.name for column in self.columns]
        shown = [*FEW, "Loss"] if self._told_by_loss(names) else FEW
        few = [place for place, name in enumerate(names) if name in shown]
        metrics = [place for place in few if self.columns[place].better]
        every = list(range(len(self.columns)))
        return every if self.chosen or len(metrics) < 2 or len(every) - len(few) < 2 else few

    def _told_by_loss(self, names: Sequence[str]) -> bool:
        """True if two lines that are described alike have different losses."""
        places = [names.index(name) for name in TELLING if name in names and name != "Rank"]
        losses = [line.cells[names.index("Loss")].text for line in self.lines]
        described = [tuple(line.cells[place].text for place in places) for line in self.lines]
        return len({*zip(described, losses, strict=True)}) > len({*described})

    @property
    def leading(self) -> str:
        """The heading of the number to look at first; empty if no line has one."""
        names = {column.name for column in self.columns}
        return next((name for name in LEADING if name in names), "")

    @property
    def title(self) -> str:
        """The heading, e.g. ``fashion, suite strict``."""
        return f"{self.dataset}, suite {self.suite}" if self.suite else self.dataset

    @cached_property
    def notes(self) -> list[str]:
        """Sentences to print below the table: the adversary, and what its marks mean."""
        notes = [f"White-box {by} in the L∞ ball, {words}." for by, words in self.threats]
        if any(column.name == "Top1" for column in self.columns):
            notes.append("Top1 ends with the Square Attack, a black box.")
        if self.threats and not all(line.entry.paper for line in self.lines):
            notes += UPPER_BOUND.get(self.suite, [])
        entries = [line.entry for line in self.lines]
        if any(entry.collapsed for entry in entries):
            notes.append("† collapsed: the model retrieves nothing any more; not ranked.")
        for entry in entries:
            flags = entry.reasons(note=False)
            notes += (f"‡ {entry.label} is flagged and not ranked: {one}" for one in flags)
        for entry in entries:
            notes += (f"Note on {entry.label}: {one}" for one in entry.reasons(note=True))
        if any(n.low is not None and n.spread is None for e in entries for n in e.numbers.values()):
            notes.append("Intervals are 95% bootstrap intervals over queries.")
        if any(column.name == "NMI" for column in self.columns):
            notes.append(NMI_CAVEAT)
        if any(len(entry.seeds) > 1 for entry in entries):
            notes.append("Several seeds: mean ± standard deviation over models.")
        if any(cell.number and cell.number.seeds for line in self.lines for cell in line.cells):
            notes.append(PARTIAL)
        if any(entry.paper for entry in entries):
            notes.append("Published rows are the literature's numbers, not measured here.")
        derived = (number.note for e in entries for number in e.numbers.values() if number.note)
        notes += dict.fromkeys(derived)
        if any(entry.failed for entry in entries):
            notes.append("failed: the cell ended in an error, which the CSV in results/ holds.")
        return notes


@dataclass(frozen=True)
class Board:
    """The tables of one data set, with the text above (summary) and below them (note)."""

    name: str
    summary: str
    note: str
    tables: tuple[Table, ...]


def tables(entries: Iterable[Entry], columns: Sequence[str] = ()) -> tuple[Table, ...]:
    """Make a table for each data set and suite, in the order of ``entries``.

    Models that were measured on other images than the last have tables of their own, at the end.

    Args:
        entries: models measured here, and rows of the literature.
        columns: headings of the metrics to show, in this order; empty: those of the papers.
    """
    groups: dict[tuple[str, str], list[Entry]] = {}
    bare: list[
        Entry
    ] = []  # not attacked, or the training failed: shown in the table of every suite
    for entry in entries:
        if entry.suite:
            groups.setdefault((entry.data, entry.suite), []).append(entry)
        else:
            bare.append(entry)
    for entry in bare:
        keys = [key for key in groups if key[0] == entry.data]
        for key in keys or [(entry.data, "")]:
            groups.setdefault(key, []).append(entry)
    newest_first = sorted(groups.items(), key=lambda one: one[1][0].images != "")
    return tuple(_table(*key, group, columns) for key, group in newest_first)


def _table(dataset: str, suite: str, group: Sequence[Entry], chosen: Sequence[str]) -> Table:
    """One table: its entries ranked, its columns chosen, its cells marked."""
    entries = sorted(group, key=ranking.place)
    known = {name: word for entry in entries for name, word in entry.better.items()}
    shown = {name for entry in entries for name in (*entry.numbers, *entry.failed)} & known.keys()
    names = [name for name in chosen if name in shown] if chosen else _usual(shown)
    metrics = [column(name, known[name]) for name in names]
    ranks = ranking.ranks(entries)
    first = ["Rank"] * any(ranks) + ["Defense", "Model", "Loss", "η"]
    first += ["Recipe"] * any(e.recipe for e in entries)
    first += ["Precision"] * any(e.precision for e in entries)
    first += ["Queries"] * any(e.queries for e in entries)
    first += ["EoT"] * any(e.eot for e in entries)
    describing = {name: BoardColumn(name, "", text) for name, text in DESCRIBING.items()}
    marks = {metric.name: ranking.marks(entries, metric) for metric in metrics}
    tied = ranking.tied(entries)
    lines = []
    for place, (entry, rank, name) in enumerate(zip(entries, ranks, _names(entries), strict=True)):
        facts = _facts(entry, rank, name)
        cells = [facts[name] for name in first]
        cells += [_cell(entry, metric.name, marks[metric.name][place]) for metric in metrics]
        lines.append(Line(entry, (*cells, facts["Source"]), tied[place]))
    heads = (*(describing[name] for name in first), *metrics, describing["Source"])
    threats = tuple(dict.fromkeys((e.optimizer, e.threat) for e in entries if e.threat))
    return Table(dataset, suite, threats, heads, tuple(lines), chosen=bool(chosen))


def _usual(names: set[str]) -> list[str]:
    """The headings that are shown if none are asked for.

    The variants of a sweep (``CA+ (eps=4/255)``) are left to the plots if ``CA+`` itself is there.
    ``ES:R@2`` and such are left out.
    """

    def swept(name: str) -> bool:
        metric, keys = split_heading(name)
        return metric in names and not keys.keys().isdisjoint(SWEPT)

    return [
        name
        for name in in_order(names)
        if name not in HIDDEN and not swept(name) and not asked_for(name)
    ]


def _names(entries: Sequence[Entry]) -> list[str]:
    """The defense of each entry with its spec, ``HM[S,g_LGA]&ICS (hm:eta=8)``.

    Where two lines would read alike, the values that differ are added: weights that were trained
    with another data set's defaults have the same spec.
    """
    names = [f"{e.label} ({e.defense})" if ":" in e.defense else e.label for e in entries]
    lines = [
        "\n".join((name, e.model, e.loss, str(e.eta), e.recipe, e.precision, e.queries))
        for name, e in zip(names, entries, strict=True)
    ]
    told = told_apart(lines, [parameters(entry.resolved) for entry in entries])
    ends = [more.removeprefix(line) for more, line in zip(told, lines, strict=True)]
    return [name + end for name, end in zip(names, ends, strict=True)]


def _facts(entry: Entry, rank: str, name: str) -> dict[str, BoardCell]:
    """The cells that describe an entry: heading -> cell."""
    paper = entry.paper
    return {
        "Rank": BoardCell(rank or NOTHING),
        "Defense": BoardCell(
            f"{name}{' †' * entry.collapsed}{' ‡' * entry.flagged}",
            note=" ".join(filter(None, (entry.indicators, *_reasons(entry)))),
        ),
        "Model": BoardCell(entry.model),
        "Loss": BoardCell(entry.loss),
        "η": BoardCell(NOTHING if entry.eta is None else str(entry.eta)),
        "Recipe": BoardCell(entry.recipe or NOTHING),
        "Precision": BoardCell(entry.precision or "fp32"),
        "Queries": BoardCell(NOTHING if entry.paper else entry.queries or "all"),
        "EoT": BoardCell(entry.eot or NOTHING),
        "Source": BoardCell(
            entry.source,
            note=f"{paper.short}: {paper.title}" if paper else "Measured by dmlbench.",
            link=paper.url if paper else "",
        ),
    }


def _reasons(entry: Entry) -> list[str]:
    """The flags and notes of an entry, for the place where its name is hovered over."""
    flags, notes = entry.reasons(note=False), entry.reasons(note=True)
    return [*(f"Flagged: {one}" for one in flags), *(f"Note: {one}" for one in notes)]


def _cell(entry: Entry, name: str, mark: Mark) -> BoardCell:
    """The cell of a metric: its number, ``failed``, or a dash."""
    number = entry.numbers.get(name)
    if number is not None:
        said = [f"{flag.says}. Remedy: {flag.remedy}." for flag in entry.flags.get(name, ())]
        if number.seeds:
            said.append(f"Of {seeds_in_words(number.seeds)} only.")
        if name in entry.failed:
            said.append(f"Failed for another seed: {entry.failed[name]['error']}")
        return BoardCell(number.text, mark, number, " ".join(filter(None, (number.note, *said))))
    lost = entry.failed.get(name) or entry.failed.get("training")
    return (
        BoardCell("failed", "failed", note=lost["error"]) if lost else BoardCell(NOTHING, "missing")
    )


def base(dataset: str) -> str:
    """The name in ``data`` of an entry: ``fashion`` in ``fashion:subset=2 (other images, ...)``."""
    return dataset.partition(":")[0].partition(" (")[0]
