"""The same number for ``verify``: rounding is accepted, a shift or a lost flag is not."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from dmlbench.core.flags import Flag
from dmlbench.evaluation.measurement import Measurement, as_finding
from dmlbench.metrics.bootstrap import Estimate, bootstrap_mean
from dmlbench.storage.cell import Cell
from dmlbench.storage.store import Store
from dmlbench.submission import bundle as bundles
from dmlbench.submission import sample
from dmlbench.submission.agreement import ALPHA, agreement, chance, differs_alone, unexplained
from tests.bundles import Forgery, Place, look_at


def exact(differences: list[float]) -> float:
    """Share of all signs that give a sum as large: the slow, obvious twin of ``chance``."""
    target = abs(sum(differences)) - 1e-9
    every = list(product((-1, 1), repeat=len(differences)))
    return sum(
        abs(sum(s * abs(d) for s, d in zip(signs, differences, strict=True))) >= target
        for signs in every
    ) / len(every)


@pytest.mark.parametrize(
    "differences", [[1.0] * 9, [1.0] * 8 + [-1.0], [3, -1, 2, 2, 1, -1], [1, -1], [100.0, 0.1, 5]]
)
def test_the_chance_bounds_that_of_random_signs(differences: list[float]) -> None:
    assert exact(differences) <= chance(np.array(differences)) <= 1


def test_one_sided_differences_have_little_chance() -> None:
    assert chance(np.full(20, 100.0)) < 1e-4
    assert chance(np.zeros(5)) == 1
    assert chance(np.array([1.0, -1.0] * 50)) == 1


def row(place: Place, attack: str, to: Path) -> tuple[Cell, Measurement]:
    """A cell of the honest bundle, and the measurement that finds it again to the last digit."""
    bundles.unpack(place.bundle, to)
    cell = next(cell for cell in Store(to).cells() if cell.about.attack == attack)
    table = Store(to).outcomes(cell.id)
    outcomes = {str(name): table[name].to_numpy() for name in table}
    return cell, Measurement(cell.metrics, cell.findings, outcomes)


def finds(cell: Cell, **findings: Any) -> Cell:
    return structs.replace(cell, findings=cell.findings | findings)


def test_a_note_does_not_stand_for_a_flag(place: Place, tmp_path: Path) -> None:
    cell, again = row(place, "es", tmp_path)
    flag = Flag("gradients", "none", "other gradients")
    again = replace(again, findings=again.findings | as_finding([flag]))
    note = structs.replace(flag, note=True)
    lacks = ["es: it lacks the flag 'gradients'"]
    for flags, reasons in (([], lacks), ([note], lacks), ([note, flag], [])):
        given = finds(cell, **as_finding(flags))
        assert sample._other_findings(given, again) == reasons


def test_a_collapsed_model_does_not_pass_as_another(place: Place, tmp_path: Path) -> None:
    """By a wrong chance, by the word alone, or by an R@1 that is just within the tolerance."""
    cell, again = row(place, "", tmp_path)
    assert sample._other_findings(cell, again) == []
    old = {k: v for k, v in cell.findings.items() if k != "chance R@1"}
    assert sample._other_findings(structs.replace(cell, findings=old), again) == []
    (lower,) = sample._other_findings(finds(cell, **{"chance R@1": -50.0}), again)
    assert lower == "clean images: chance R@1 is claimed as -50, it is 9.91"
    collapsed = replace(again, findings=again.findings | {"collapsed": True})
    said = ["clean images: the model is collapsed, and its rows do not say so"]
    for claim in (cell, finds(cell, collapsed=True), structs.replace(cell, findings=old)):
        assert sample._other_findings(claim, collapsed) == said


def test_a_clean_value_without_outcomes_is_refused(place: Place, tmp_path: Path) -> None:
    """Where the clean outcomes are left out: with the value beside the number, and without."""

    def dropped(forgery: Forgery, clean: dict[str, float]) -> None:
        cell = forgery.cell("ca+")
        table = forgery.store.outcomes(cell.id).drop(columns="CA+ clean")
        forgery.store.put(finds(cell, clean=clean), {str(name): table[name] for name in table})

    for clean, said in (
        ({"CA+": 99.0}, "ca+: it has no outcomes of CA+ clean, and the clean value of it"),
        ({}, "ca+: no outcomes of 'CA+ clean' in it"),
    ):
        (to := tmp_path / str(len(clean))).mkdir()
        verdict = look_at(place.forged(lambda f, clean=clean: dropped(f, clean), to))
        assert verdict.reasons == [said]


@pytest.mark.parametrize(
    ("changed", "accepted"),
    [
        ({}, True),
        ({"low": None, "high": None}, True),  # of a single start, by an older version
        ({"low": 1.0}, False),
        ({"high": 99.0}, False),
        ({"n": 999_999}, False),
        ({"value": 1.0, "low": None, "high": None}, False),
    ],
)
def test_the_range_of_nmi_is_held_against_the_new_starts(
    place: Place, tmp_path: Path, changed: dict[str, Any], accepted: bool
) -> None:
    cell, again = row(place, "", tmp_path)
    claimed = structs.replace(cell.metrics["NMI"], **changed)
    reasons = sample._other_findings(
        structs.replace(cell, metrics=cell.metrics | {"NMI": claimed}), again
    )
    assert [one.partition(" is ")[0] for one in reasons] == ["clean images: NMI"] * (not accepted)


def held(
    claimed: Any,
    measured: Any,
    stated: Estimate,
    complete: bool,
    bounds: tuple[float, float] = (0, 100),
) -> Any:
    names = {"metric": "ES:R", "attack": "es", "suite": "strict"}
    return agreement(np.array(claimed), np.array(measured), stated, complete, bounds, **names)


def test_noise_is_accepted_and_a_shift_is_not() -> None:
    generator = np.random.default_rng(0)
    truth = 100.0 * (generator.random(1000) < 0.4)
    noisy = truth.copy()
    flipped = generator.choice(1000, 40, replace=False)  # a tenth of the attacks' doubtful queries
    noisy[flipped] = 100 - noisy[flipped]
    stated = bootstrap_mean(truth)
    assert not held(truth, noisy, stated, True).refused
    better = truth.copy()
    better[np.flatnonzero(truth == 0)[:20]] = 100  # two points
    found = held(better, truth, bootstrap_mean(better), True)
    assert found.refused
    assert found.differing == 20
    assert not held(better[:10], better[:10], stated, False).refused
    hidden = truth.copy()
    hidden[3] = np.nan
    assert held(hidden, truth, stated, False).refused


def test_noise_alone_refuses_one_honest_bundle_of_a_hundred_at_most() -> None:
    """Of 36 columns, in each of which 20 of 500 queries end elsewhere on another machine."""
    generator, columns, bundles = np.random.default_rng(0), 36, 200
    truth = 100.0 * (np.arange(500) % 2)
    stated, refused = bootstrap_mean(truth), 0
    for _ in range(bundles):
        numbers = []
        for _ in range(columns):
            other = truth.copy()
            flipped = generator.choice(500, 20, replace=False)
            other[flipped] = 100 - other[flipped]
            numbers.append(replace(held(truth, other, stated, False), compared=columns))
        refused += any(one.refused for one in numbers)
    assert refused <= ALPHA * bundles
    better = truth.copy()
    better[:40:2] = 100  # 20 of 500 queries in one direction
    assert replace(held(better, truth, stated, False), compared=columns).refused


def test_one_absurd_outcome_is_refused_however_wide_it_makes_its_own_interval() -> None:
    """In a column without a range; where every query was measured again, and one differs."""
    truth = np.random.default_rng(0).random(200)
    claimed = truth.copy()
    claimed[0] += 100
    found = held(claimed, truth, bootstrap_mean(claimed), True, (0, float("inf")))
    assert (found.differing, found.refused) == (1, True)
    assert found.tolerance < 0.02


def test_a_query_of_many_that_were_all_the_same_may_end_elsewhere() -> None:
    """On another machine: outcomes that are all the same have an interval without a width."""
    none, one = np.zeros(1000), np.zeros(1000)
    one[7] = 100
    assert not held(one, none, bootstrap_mean(one), True).refused
    assert not held(none, one, bootstrap_mean(none), True).refused
    one[:5] = 100
    assert held(one, none, bootstrap_mean(one), True).refused


def test_what_differs_alone_is_no_rounding() -> None:
    """Five of 200 queries made right: too few for a test of signs, and all else is the same."""
    truth = np.repeat([0.0, 100.0], 100)
    claimed = truth.copy()
    claimed[:5] = 100
    edited = held(claimed, truth, bootstrap_mean(claimed), True)
    assert not edited.refused
    same = [replace(held(truth, truth, bootstrap_mean(truth), False), attack=a) for a in "abc"]
    assert unexplained([edited, *same]) == [edited]
    assert replace(edited, alone=True).refused  # as the table of the verdict says it
    moved = held(truth + 0.01, truth, bootstrap_mean(truth), False)  # as on another machine
    assert unexplained([edited, replace(moved, attack="a"), *same[1:]]) == []
    (one, none) = (replace(edited, differing=n, n=100) for n in (1, 0))
    assert [differs_alone(x, [x, *same]) for x in (one, none)] == [True, False]
