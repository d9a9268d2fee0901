"""Entries of a board: models that were measured here, and models of the literature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dmlbench.analysis import external
from dmlbench.analysis.external import Contributor
from dmlbench.analysis.records import Record, Row, rows
from dmlbench.analysis.seeds import by_configuration, last_images, spread_of
from dmlbench.attacks.base import ATTACKS
from dmlbench.core.flags import Flag
from dmlbench.core.naming import parameters, seeds_in_words, split_attack_seed, split_heading
from dmlbench.core.papers import Paper
from dmlbench.core.protocol import OPTIMIZER_OF
from dmlbench.metrics.names import CLEAN, ERS, WORST


@dataclass(frozen=True)
class Number:
    """A number of a board.

    Attributes:
        value: the number; of several models (seeds) their mean.
        digits: decimals to show, as many as the papers print.
        low, high: its 95% interval: over queries, and of several models over seeds too; of NMI the
            range over starts, if it is one model; None if there is none.
        spread: standard deviation over several models; None of one model.
        n: number of queries; None if the literature does not say.
        note: how it was computed, if it was neither measured here nor printed in a paper, or whose
            adversarial images it includes.
        seeds: the seeds of the models that have it, if others of the entry lack it; else empty.
    """

    value: float
    digits: int
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    n: int | None = None
    note: str = ""
    seeds: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The value as it is shown, e.g. ``18.3``."""
        return f"{self.value:.{self.digits}f}"

    @property
    def range(self) -> str:
        """``[17.0, 19.6]``, or ``± 0.4`` for several models; empty if neither is known.

        ``[17.0, 19.6] seed 0 only`` if other models of the entry lack the number.
        """
        around = ""
        if self.spread is not None:
            around = f"± {self.spread:.{self.digits}f}"
        elif self.low is not None and self.high is not None:
            around = f"[{self.low:.{self.digits}f}, {self.high:.{self.digits}f}]"
        only = f"{seeds_in_words(self.seeds)} only" if self.seeds else ""
        return " ".join(filter(None, (around, only)))


@dataclass(frozen=True)
class Entry:
    """A model on a board: measured here (over its seeds), or published.

    Attributes:
        dataset, suite, model, distance: data set, definitions of the attacks, network and metric;
            published rows belong to suite ``ers``.
        loss: the training loss and the metric, as the papers write it: ``triplet-N``.
        label: the defense in the papers' notation.
        numbers: heading -> number; ``ERS`` is one of them.
        better: heading -> ``higher`` or ``lower``.
        images: the digest of its images, if others of the data set were measured last; else empty.
        threat: the adversary of the evaluation, in words.
        optimizer: what searches for it, ``PGD`` or ``APGD``.
        defense: the spec of the defense; empty for published rows.
        resolved: the same spec with every value; empty where the training is unknown.
        eta: PGD steps of its training; None for plain training, or if it is not known.
        recipe, precision, queries, eot: what differs from the data set's protocol; empty if nothing
            does.
        paper, place: the publication, and the table in it; None and empty if measured here.
        seeds: of the models that were measured here, one each.
        failed: heading (or ``training``) -> the tidy record of what failed.
        collapsed: True if the model no longer retrieves anything.
        flags: heading -> the reasons not to trust its number, where there are any.
        flagged_seeds: heading and name of a flag -> the seeds of the models that have it.
        records: heading -> the tidy record of each model that was measured here.
        contributors: people whose adversarial images the worst case includes.
    """

    dataset: str
    suite: str
    model: str
    distance: str
    loss: str
    label: str
    numbers: Mapping[str, Number]
    better: Mapping[str, str]
    threat: str
    optimizer: str
    images: str = ""
    defense: str = ""
    resolved: str = ""
    eta: int | None = None
    recipe: str = ""
    precision: str = ""
    queries: str = ""
    eot: str = ""
    paper: Paper | None = None
    place: str = ""
    seeds: tuple[int, ...] = ()
    failed: Mapping[str, Record] = field(default_factory=dict)
    collapsed: bool = False
    flags: Mapping[str, Sequence[Flag]] = field(default_factory=dict)
    flagged_seeds: Mapping[tuple[str, str], Sequence[int]] = field(default_factory=dict)
    records: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    contributors: tuple[Contributor, ...] = ()

    @property
    def source(self) -> str:
        """The origin in words: ``CVPR 2022 Table 6``, or ``here, n = 1,000, seeds 0 and 1``."""
        if self.paper:
            return self.place
        if "training" in self.failed:
            return "here, training failed"
        queries = f", n = {self.n:,}" if self.n else ""
        return f"here{queries}, {seeds_in_words(self.seeds)}"

    @property
    def data(self) -> str:
        """The data set, and the digest of its images if others were measured last."""
        return f"{self.dataset} (other images, {self.images[:8]})" if self.images else self.dataset

    @property
    def details(self) -> dict[str, str]:
        """Key -> value of what its label may leave open: the defense's parameters and more."""
        rest = {"model": self.model, "loss": self.loss}
        rest |= {"precision": self.precision, "queries": self.queries}
        return parameters(self.defense) | parameters(f":{self.recipe}") | rest

    @property
    def indicators(self) -> str:
        """Mean cosine and effective rank of the first model, by which a collapse is recognised.

        Empty if they were not measured.
        """
        words = ["Collapsed: it retrieves nothing any more."] * self.collapsed
        for record in self.records.get("R@1", ())[:1]:
            if record["mean_cosine"] != "":
                cosine, rank = record["mean_cosine"], record["effective_rank"]
                words.append(f"Mean cosine {cosine:.3f}, effective rank {rank:.1f}.")
        return " ".join(words)

    @property
    def n(self) -> int | None:
        """Number of queries that were attacked (or retrieved, if no attack was measured)."""
        counts = {name: x.n for name, x in self.numbers.items() if x.n is not None}
        attacked = [n for name, n in counts.items() if name not in CLEAN]
        return max(attacked or counts.values(), default=None)

    @property
    def date(self) -> str:
        """The day of its last measurement, ``2026-11-23``, or the year of the publication."""
        if self.paper:
            return str(self.paper.year)
        every = (record for found in self.records.values() for record in found)
        return max((record["started"][:10] for record in every), default="")

    def interval(self, name: str) -> tuple[float, float] | None:
        """The 95% interval of a number, over queries and seeds; None without."""
        number = self.numbers.get(name)
        if number is None or number.low is None or number.high is None:
            return None
        return number.low, number.high

    @property
    def flagged(self) -> bool:
        """True if a number is not to be trusted; a note does not count."""
        return any(not flag.note for flags in self.flags.values() for flag in flags)

    def reasons(self, note: bool) -> list[str]:
        """Its flags (or its notes) in sentences, each with the columns that it is about.

        Of several seeds those are named that have it.
        """
        about: dict[str, dict[str, Flag]] = {}
        for heading, flags in self.flags.items():
            for flag in flags:
                if flag.note is note:
                    about.setdefault(flag.name, {})[heading] = flag
        found = []
        for name, by_heading in about.items():
            first = next(iter(by_heading.values()))
            where = [", ".join(by_heading), *self._seeds_with(by_heading, name)]
            found.append(f"{name} ({'; '.join(where)}): {first.says}. Remedy: {first.remedy}.")
        return found

    def _seeds_with(self, headings: Iterable[str], flag: str) -> list[str]:
        """``seed 1`` or ``seeds 0, 2``: those of several with such a flag on one of the numbers."""
        if len(self.seeds) < 2:
            return []
        found = sorted({seed for name in headings for seed in self.flagged_seeds[name, flag]})
        return [f"seed{'s' * (len(found) > 1)} {', '.join(map(str, found))}"]

    @property
    def standing(self) -> float | None:
        """The ERS that decides the place, rounded as shown; None without one, or if collapsed."""
        number = self.numbers.get("ERS")
        return None if number is None or self.collapsed else float(number.text)

    @property
    def score(self) -> float | None:
        """The ERS that decides the rank, rounded as shown; None if the model is not ranked."""
        return None if self.flagged else self.standing


def measured(
    records: Iterable[Record], wanted: Callable[[Record], bool] | None = None
) -> list[Entry]:
    """The entries of tidy records: models that differ only in their seed are one entry.

    Args:
        records: tidy records.
        wanted: true for the records whose numbers the entries have; None: for all. What is known
            of a model as a whole is drawn from all records: its ERS, that it has collapsed, its
            flags.
    """
    every = rows(records)
    names = {row.about["dataset"] for row in every}
    last = {name: last_images(r for r in every if r.about["dataset"] == name) for name in names}
    groups = by_configuration(every)
    if wanted is None:
        return [_entry(group, last) for group in groups]
    found = []
    for group in groups:
        parts = [_part(row, wanted) for row in group]
        if kept := [row for row in parts if row.estimates or row.failed]:
            whole = _entry(group, last)
            known = {key: getattr(whole, key) for key in ("collapsed", "flags", "flagged_seeds")}
            found.append(replace(_entry(kept, last), **known))
    return found


def _part(row: Row, wanted: Callable[[Record], bool]) -> Row:
    """The row with those numbers and failures alone whose record is ``wanted``."""
    # nobody stored an ERS that was computed from its ten columns
    computed = {"suite": row.about["suite"], "queries": row.about["queries"], "status": "ok"}
    estimates = {}
    for heading, one in row.estimates.items():
        metric, _ = split_heading(heading)
        if wanted(row.records.get(heading, computed | {"attack": metric, "metric": metric})):
            estimates[heading] = one
    failed = {heading: record for heading, record in row.failed.items() if wanted(record)}
    shown = {*estimates, *failed}
    return replace(
        row,
        estimates=estimates,
        failed=failed,
        records={name: one for name, one in row.records.items() if name in estimates},
        better={name: one for name, one in row.better.items() if name in shown},
    )


def _entry(group: Sequence[Row], last: Mapping[str, str]) -> Entry:
    """The entry of rows that differ only in their seed.

    ``last``: data set -> digest of the images that were measured last.
    """
    about = group[0].about
    data = next((row.data for row in group if row.data), "")
    numbers = {name: _over_models(group, name) for row in group for name in row.estimates}
    # an ERS that a seed lacks is left out: it would be ranked beside means over all seeds
    numbers = {k: n for k, n in numbers.items() if not (n.seeds and split_heading(k)[0] == ERS)}
    made = dict.fromkeys(name for row in group for name in row.records if name in numbers)
    records = {name: [r.records[name] for r in group if name in r.records] for name in made}
    contributors = _contributors(records)
    if contributors:
        numbers |= _noted(numbers, about["label"], contributors)
    threat, optimizer = _adversary(records, about["suite"])
    return Entry(
        dataset=about["dataset"],
        suite=about["suite"],
        model=about["model"],
        distance=about["distance"],
        loss=f"{_loss(about['resolved'])}-{about['distance']}",
        label=about["label"] + (f" (EoT {about['eot']})" if about["eot"] else ""),
        defense=about["defense"],
        resolved=about["resolved"],
        eta=about["training_cost"] - 1 if about["training_cost"] > 1 else None,
        recipe=about["recipe"],
        precision="" if about["precision"] == "fp32" else about["precision"],
        queries=about["queries"],
        eot=about["eot"],
        seeds=tuple(sorted(row.about["seed"] for row in group)),
        numbers=numbers,
        better={k: v for row in group for k, v in row.better.items()},
        failed={k: v for row in group for k, v in row.failed.items()},
        collapsed=any(row.collapsed for row in group),
        flags={name: flags for name, flags in _flags(group).items() if name in numbers},
        flagged_seeds=_flagged_seeds(group),
        records=records,
        contributors=contributors,
        threat=threat,
        optimizer=optimizer,
        images=data if data != last[about["dataset"]] else "",
    )


def _contributors(records: Mapping[str, Sequence[Record]]) -> tuple[Contributor, ...]:
    """The people whose adversarial images are part of the records, each once."""
    found = (external.read(one["attack_resolved"]) for some in records.values() for one in some)
    return tuple(dict.fromkeys(one for one in found if one is not None))


def _noted(
    numbers: Mapping[str, Number], label: str, contributors: Sequence[Contributor]
) -> dict[str, Number]:
    """The Robust R@1 in the ball of the protocol, with a note that names the contributors."""
    people = ", ".join(map(str, contributors))
    said = f"{WORST} of {label} includes adversarial images by {people}."
    of = {name: split_heading(name) for name in numbers}
    worst = [name for name, (metric, keys) in of.items() if metric == WORST and "eps" not in keys]
    return {name: replace(numbers[name], note=said) for name in worst}


def _flags(group: Sequence[Row]) -> dict[str, Sequence[Flag]]:
    """Heading -> its flags of all seeds; those of the clean images once, under the first."""
    found: dict[str, Sequence[Flag]] = {}
    for row in group:
        for heading, flags in row.flags.items():
            clean = heading in CLEAN and any(name in found for name in CLEAN)
            if not clean or heading in found:
                found[heading] = tuple(dict.fromkeys((*found.get(heading, ()), *flags)))
    return found


def _flagged_seeds(group: Sequence[Row]) -> dict[tuple[str, str], list[int]]:
    """Heading and name of a flag -> the seeds whose number has it."""
    found: dict[tuple[str, str], list[int]] = {}
    for row in group:
        for heading, flags in row.flags.items():
            for name in dict.fromkeys(flag.name for flag in flags):
                found.setdefault((heading, name), []).append(row.about["seed"])
    return found


def _over_models(group: Sequence[Row], name: str) -> Number:
    having = [row for row in group if name in row.estimates]
    found = [row.estimates[name] for row in having]
    seeds = tuple(r.about["seed"] for r in having) if len(having) < len(group) else ()
    digits = next(row.digits[name] for row in group if name in row.digits)
    over, n = spread_of(name, found), min(one.n for one in found)
    if len(found) == 1:
        return Number(over.mean, digits, found[0].low, found[0].high, n=n, seeds=seeds)
    return Number(over.mean, digits, over.low, over.high, spread=over.sd, n=n, seeds=seeds)


def _of_255(length: str) -> str:
    """A length in pixel space as n/255: ``0.00314`` is ``0.8/255``."""
    return length if "/" in length else f"{float(length) * 255:.3g}/255"


def _loss(defense: str) -> str:
    """The loss of a resolved defense: its parameter ``loss``, else the triplet loss.

    Weights from elsewhere have no defense, and so an unknown loss.
    """
    return parameters(defense).get("loss", "triplet") if defense else "unknown"


def in_l2(record: Record) -> bool:
    """True for an attack in an L2 ball, whose radius is a length and no number of 1/255."""
    name, keys = record["attack"].partition(":")[0], parameters(record["attack_resolved"])
    known = getattr(ATTACKS.get(name), "norm", "") if name in ATTACKS.names() else ""
    return keys.get("norm", known) == "l2"


def _adversary(records: Mapping[str, Sequence[Record]], suite: str) -> tuple[str, str]:
    """The threat of an entry, ``eps 77/255, 32 steps of 3/255``, and its optimizer, ``PGD``.

    They are those of the attacks in L-infinity that follow the protocol, by the optimizer of the
    suite where one does: ``radius`` is by APGD in every suite. APGD has no step of one size.
    Attacks with another number of steps than most stand in brackets: ``eps 8/255, 100 steps
    (radius: 50 steps)``.
    """
    usual = OPTIMIZER_OF.get(suite, "pgd")
    found: dict[str, dict[str, tuple[str, str]]] = {}  # optimizer -> attack -> its ball and steps
    for record in (record for made in records.values() for record in made):
        known = parameters(record["attack_resolved"])
        name = split_attack_seed(record["attack"])[0]
        if in_l2(record):
            continue
        if name and ":" not in name and {"eps", "alpha", "steps"} <= known.keys():
            by = known.get("optimizer", usual)
            size = "" if by == "apgd" else f" of {_of_255(known['alpha'])}"
            search = f"eps {known['eps']}", f"{known['steps']} steps{size}"
            found.setdefault(by, {}).setdefault(name, search)
    by = usual if usual in found or not found else next(iter(found))
    searches = found.get(by, {})
    if not searches:
        return "", by.upper()
    names = sorted(searches, key=lambda name: name == "radius")  # which has its own steps in auto
    most, _ = Counter(searches[name] for name in names).most_common(1)[0]
    others = [
        f"{name}: {', '.join(part for part in searches[name] if part not in most)}"
        for name in names
        if searches[name] != most
    ]
    return ", ".join(most) + (f" ({'; '.join(others)})" if others else ""), by.upper()
