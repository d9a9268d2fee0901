"""``show``: conditions of ``--where``, filters and pivots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from dmlbench.analysis.pivot import chosen, column, pivot
from dmlbench.analysis.records import TIDY_COLUMNS, tidy, wide
from dmlbench.analysis.seeds import over_seeds
from dmlbench.analysis.where import Condition, condition
from dmlbench.cli.show import show
from dmlbench.common.errors import UserError
from dmlbench.metrics.ers import ers
from dmlbench.storage.cell import Cell
from tests import synthetic
from tests.cells import cell, with_facts


def where(*texts: str) -> list[Condition]:
    return [condition(text, TIDY_COLUMNS) for text in texts]


def values(cells: Sequence[Cell], layout: str, *texts: str) -> dict[tuple[str, ...], float]:
    """(row, column) -> mean."""
    rows, columns = (side.split(",") for side in layout.split(":"))
    table = pivot(tidy(cells), rows, columns, where(*texts))
    return {(*r, *c): place.value.mean for r, line in table.items() for c, place in line.items()}


def later(one: Cell, **facts: str) -> Cell:
    """A cell with other facts that was measured a day after most."""
    return replace(with_facts(one, **facts), started=86400.0)


@pytest.mark.parametrize(
    ("pattern", "text", "met"),
    [
        ("hm*", "HM[S,g_LGA]", True),
        ("HM[S,*]", "hm[s,0]", True),
        ("HM[S]", "HMS", False),
        ("ca?", "ca+", False),
        ("ca", "ca+", False),
        ("*", "", True),
        ("", "x", False),
        ("*a*b*", "xaybz\nw", True),
        ("act[r]|hm[s,*]", "HM[S,0]", True),
        ("act[r]|hm[s,*]", "ACT[R]", True),
        ("act[r]|hm[s,*]", "ACT[S]", False),
    ],
)
def test_a_condition_is_of_any_case_and_a_star_is_any_text(
    pattern: str, text: str, met: bool
) -> None:
    assert condition(f"k={pattern}", ["k"]).meets("no such text", text) is met


def test_a_condition_finds_a_folder_by_any_spelling_of_its_path() -> None:
    one = condition("dataset=fashion|folder:root=./photos/", ["dataset"])
    assert one.meets("folder:root=photos")
    assert not one.meets("folder:root=photos2")


def test_filters_and_pivots() -> None:
    cells = [cell(m, 10 * s + i, seed=s) for s in (0, 1) for i, m in enumerate(["CA+", "CA-"])]
    assert len(chosen(cells, where("metric=ca*", "seed=1"))) == 2
    (one,) = chosen(cells, where("metric=CA-", "seed=0"))
    assert list(one.metrics) == list(one.columns) == ["CA-"]
    assert chosen(cells, where("label=HM[S,G_lga]*")) == cells
    table = pivot(tidy(cells), ["label"], ["metric"])
    (line,) = table.values()
    assert {name: place.value.mean for (name,), place in line.items()} == {"CA+": 5, "CA-": 6}
    assert line["CA+",].value.n == 2
    with pytest.raises(UserError, match=r"2 values.*differ in.*metric"):
        pivot(tidy(cells), ["label"], ["seed"])
    newer = cell("CA+", 99, seed=0, versions={"attack_version": 9})
    assert values([*cells[:1], newer], "seed:metric") == {("0", "CA+"): 99}
    with pytest.raises(UserError, match="did you mean 'metric'"):
        column("metrics")
    with pytest.raises(UserError, match="key=value"):
        where("CA+")
    with pytest.raises(UserError, match="unknown key of --where 'metrics': did you mean 'metric'"):
        where("metrics=CA+")


def test_a_pivot_has_the_numbers_of_the_other_tables() -> None:
    """Of weights trained again, and of images that changed, those that were measured last."""
    old = [cell("CA+", v, {"attack_version": 2}, seed=s) for s, v in ((0, 10), (1, 30))]
    again = later(cell("CA+", 50, {"attack_version": 1}), checkpoint="again")
    changed = later(cell("CA+", 70, seed=1), data="others")
    for cells in ([*old, again], [with_facts(old[0], data="first"), changed]):
        (found,) = pivot(tidy(cells), ["label"], ["metric"]).values()
        (expected,) = over_seeds(wide(cells))
        for key in ("mean", "sd", "low", "high", "n"):
            name = "CA+" if key == "mean" else f"CA+ {key}"
            assert getattr(found["CA+",].value, key) == expected[name], key
    first = f"checkpoint_sha256={old[0].facts['checkpoint'][:6]}*"
    assert values([*old, again], "label:seed", first) == {
        (old[0].about.label, "0"): 10,
        (old[0].about.label, "1"): 30,
    }


def test_a_drawn_score_needs_no_attacks_among_the_conditions() -> None:
    drawn = cell("ERS", ers(synthetic.FULL), label="A", attack="ERS", defense="A")
    found = values([*synthetic.model(label="A"), drawn], "label:metric", "metric=ERS")
    assert found == {("A", "ERS"): drawn.metrics["ERS"].value}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"resolved": "hm:eta=32"}, "resolved"),
        ({"model": "lenet"}, "model"),
        ({"facts": {"checkpoint": "another"}}, "checkpoint_sha256"),
        ({"facts": {"data": "others"}}, "data"),
    ],
)
def test_two_models_or_states_of_the_images_share_no_name(
    changed: dict[str, dict[str, str]], said: str
) -> None:
    """R@1 of one beside CA+ of the other would read as one model."""
    facts = changed.pop("facts", {})
    clean = with_facts(cell("R@1", 80, suite="", attack=""), data="first")
    attacked = with_facts(cell("CA+", 10, **changed), **{"data": "first"} | facts)
    for layout in ("label:metric", "metric:label"):
        with pytest.raises(UserError, match=rf"models \(HM.*into one place: .* differ in {said};"):
            values([clean, attacked], layout)
    told = values([clean, attacked], f"label,{said}:metric")
    assert sorted(told.values()) == [10, 80]
    (alone,) = values([clean, attacked], "label:metric", "metric=CA+").values()
    assert alone == 10


def test_a_pivot_names_the_keys_of_an_attack() -> None:
    cells = [synthetic.attacked("CA+", 90, "steps=1", label="A")]
    assert values(cells, "label:metric") == {("A", "CA+ (steps=1)"): 90}
    assert values(cells, "label:attack,metric") == {("A", "ca+:steps=1", "CA+"): 90}
    with pytest.raises(UserError, match=r"not say that numbers are CA\+ \(steps=1\): add"):
        values(cells, "label:seed", "metric=CA+")
    scores = [cell("Robust R@1", v, attack=f"worst case{a}") for v, a in ((4, ""), (6, ":eps=1/9"))]
    assert sorted(values(scores, "seed:metric").items()) == [
        (("0", "Robust R@1"), 4),
        (("0", "Robust R@1 (eps=1/9)"), 6),
    ]


def test_a_pivot_marks_a_collapsed_model(tmp_path: Path) -> None:
    cells = [*synthetic.model(label="A", collapsed=True), *synthetic.model(label="B")]
    synthetic.write(tmp_path / "rows.csv", cells)
    asked = ["--where", "metric=CA+", "--pivot", "label:metric", "--results", str(tmp_path)]
    shown = CliRunner().invoke(show, asked, catch_exceptions=False).output.splitlines()
    assert [line.split() for line in shown[:3]] == [["label", "CA+"], ["A", "10", "†"], ["B", "10"]]
    assert shown[3].startswith("† collapsed: ")
    told = json.loads(CliRunner().invoke(show, [*asked, "--json"], catch_exceptions=False).output)
    assert [(one["label"], one["collapsed"]) for one in told] == [("A", True), ("B", False)]
    with pytest.raises(UserError, match="nothing to show"):
        values(cells, "label:metric", "metric=CA+", "attack=es")


def test_what_is_known_of_a_model_stays_whatever_numbers_are_asked_for(tmp_path: Path) -> None:
    """Its ERS and its rank, that it has collapsed, its flags, and the errors of its cells."""
    cells = [*synthetic.model(label="dead", collapsed=True), *synthetic.model(label="sound")]
    swept = {"eps=2/255": 0.0, "eps=4/255": 9.0}  # more is left of a larger ball
    cells += [synthetic.attacked("GTM", v, changed, label="odd") for changed, v in swept.items()]
    cells += synthetic.model(label="odd")
    cells.append(synthetic.failed("Top1", "no disk", label="sound"))
    synthetic.write(tmp_path / "rows.csv", cells)

    def lines(*conditions: str) -> list[list[str]]:
        asked = [part for one in conditions for part in ("--where", one)]
        done = CliRunner().invoke(show, ["--results", str(tmp_path), *asked])
        assert done.exit_code == 0, done.output
        return [line.split() for line in done.output.splitlines()]

    for conditions in (["suite=strict"], ["metric=ERS"], ["attack=ERS"]):
        found = {line[1]: line[0] for line in lines(*conditions) if len(line) > 3}
        assert (found["sound"], found["dead"], found["odd"]) == ("1", "–", "–"), conditions
    assert ["dead", "†"] in [line[:2] for line in lines("attack=gtm")]
    two = [synthetic.attacked("LTM", v, label="two", seed=s) for s, v in ((0, 10), (1, 30))]
    two[1] = replace(two[1], provenance=replace(two[1].provenance, device="other"))
    two.append(synthetic.failed("TMA", "no disk", label="two", seed=1))
    synthetic.write(tmp_path / "two.csv", two)
    (line,) = [line for line in lines("metric=LTM", "device=other") if line[:1] == ["two"]]
    assert ("30.0" in line, line[-2:]) == (True, ["seed", "1"])  # no mean with the other seed
    assert not [line for line in lines("status=ok") if line[0:1] == ["failed:"] and "two:" in line]
    assert ["flagged,", "not", "ranked:", "odd:"] in [line[:4] for line in lines("metric=CA+")]
    assert ["failed:", "Top1", "on", "sound:", "no", "disk"] in lines("status=failed")
    done = CliRunner().invoke(show, ["--results", str(tmp_path), "--where", "attack=uap"])
    assert "no results in" in str(done.exception)
