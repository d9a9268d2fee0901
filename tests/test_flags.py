"""Flags: what raises them, what does not, and that every table carries them."""

from __future__ import annotations

import csv
import dataclasses
import io
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import numpy as np
import pytest
import torch
from rich.console import Console

from dmlbench.analysis.csv_files import read_tidy
from dmlbench.analysis.records import rows, tidy
from dmlbench.analysis.variants import variant_flags
from dmlbench.api.report import Report
from dmlbench.attacks.base import ATTACKS, Column, Gallery
from dmlbench.attacks.black_box import BlackBoxAttack
from dmlbench.attacks.embedding_shift import MismatchGoal, TargetedMismatch
from dmlbench.attacks.engine.optimizer import Perturbed
from dmlbench.attacks.engine.outcomes import Outcomes
from dmlbench.attacks.engine.targets import random_start
from dmlbench.common.errors import CellError, UserError
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.compute.model_checks import moved_by
from dmlbench.core import flags
from dmlbench.core.flags import Flag, read_flags, write_flags
from dmlbench.core.naming import split_attack_seed
from dmlbench.core.protocol import Threat
from dmlbench.core.registry import Card
from dmlbench.datasets.base import RetrievalData, Split
from dmlbench.evaluation import self_checks
from dmlbench.evaluation.embedded import spread
from dmlbench.evaluation.self_checks import FAR
from dmlbench.models.base import parse_model
from dmlbench.report import latex, markdown, page, spreadsheet
from dmlbench.report.board import Board, tables
from dmlbench.report.entries import measured as entries
from dmlbench.report.terminal import print_tables
from dmlbench.storage.cell import decode, encode
from dmlbench.testing import tiny_network
from tests import synthetic
from tests.evaluations import measured
from tests.every_attack import EVERY
from tests.masks import FLAGGED, REFUSED, Counting, Wrapped, backbone

THREAT = Threat(eps=0.1, alpha=0.03, steps=3)


AUTO = dataclasses.replace(THREAT, suite="auto")


Run = Callable[..., "subprocess.CompletedProcess[str]"]


BAD = Flag("gradients", "12.5% of the queries <b> have none", "attack a stand-in | of it"[:17])


def names(findings: Mapping[str, Any]) -> list[str]:
    return [one["name"] for one in findings.get("flags", [])]


@pytest.mark.parametrize("name", FLAGGED)
def test_a_network_that_masks_is_flagged(tiny: RetrievalData, name: str) -> None:
    expected, make = FLAGGED[name]
    for threat in (THREAT, AUTO):
        attack = dataclasses.replace(ATTACKS.get("es")(), steps=3).resolve(threat)
        with measured(tiny, EmbeddingModel(make(backbone()), "N")) as found:
            raised = names(found.benign().findings)
            raised += names(found.attack(attack, 0, "es", queries=20).findings)
        assert set(raised) & set(expected.split("|")), (threat.suite, raised)


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_without_numbers_is_refused(tiny: RetrievalData, name: str) -> None:
    expected, make = REFUSED[name]
    model = EmbeddingModel(make(backbone()), "N")
    with measured(tiny, model) as found, pytest.raises(CellError, match=expected):
        found.benign()


def test_a_network_that_changes_during_the_attack_is_flagged(tiny: RetrievalData) -> None:
    attack = ATTACKS.get("tma")().resolve(THREAT)
    model = EmbeddingModel(Counting(backbone()), "N")
    with measured(tiny, model) as found:
        assert names(found.benign().findings) == []
        assert names(found.attack(attack, 0, "tma").findings) == ["clean"]


def test_honest_networks_are_not_flagged(tiny: RetrievalData) -> None:
    with measured(tiny, EmbeddingModel(backbone(), "N")) as found:
        assert names(found.benign().findings) == []
        for name, one in EVERY.items():
            steps = {} if isinstance(one, BlackBoxAttack) else {"steps": 3}
            attack = dataclasses.replace(one, **steps).resolve(AUTO)
            checks = found.attack(attack, 0, name, queries=16).findings
            assert [one for one in checks.get("flags", []) if not one.get("note")] == []


def test_a_resnet_with_frozen_batch_norm_is_not_flagged() -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    split = Split(images, np.repeat(np.arange(3), 4))
    torch.manual_seed(0)
    model = parse_model("resnet18:weights=none").build(3, 32)
    with measured(RetrievalData(split, split), model) as found:
        assert names(found.benign().findings) == []
        attack = dataclasses.replace(ATTACKS.get("margin")(), steps=2).resolve(AUTO)
        assert names(found.attack(attack, 0, "margin", queries=6).findings) == []


def test_noise_is_held_against_what_an_attack_pursues_alone() -> None:
    """ES moves an embedding as far as it goes; whether R@1 falls with it is not its aim."""
    pursued = {column.name: column.pursued for column in ATTACKS.get("es").columns}
    assert pursued == {"ES:R": False, "ES:D": True}
    assert all(c.pursued for name in ("ltm", "margin", "ca+") for c in ATTACKS.get(name).columns)


def test_noise_is_the_worst_of_five_sign_patterns(tiny: RetrievalData) -> None:
    """A network whose gradient points the wrong way, against a slow twin of the check."""

    def turned(x: torch.Tensor) -> torch.Tensor:
        return 2 * x.detach() - x

    attack = dataclasses.replace(ATTACKS.get("tma")(), steps=4).resolve(AUTO)
    with measured(tiny, EmbeddingModel(Wrapped(backbone(), before=turned), "N")) as found:
        one = found.attack(attack, 3, "tma", queries=12)
        (flag,) = one.findings["flags"]
        index, gallery = spread(found.chosen(12), 200), found.gallery
        goal, worst = attack.goal(gallery, index, 3), []
        for number, query in enumerate(index):
            image, values = found.images(query[None]), []
            for draw in range(5):
                start = random_start(image, 0.1, query[None], 3, FAR + draw)
                noisy = (image + 0.1 * (start - image).sign()).clamp(0, 1)
                with torch.no_grad():
                    e = embed(found.network, noisy)
                values.append(float(torch.cosine_similarity(e, goal.target[number], dim=1)))
            worst.append(max(values))
    assert flag["name"] == "noise"
    assert f"and {np.mean(worst):.3g} under the worst of 5 random sign" in flag["says"]
    assert f"TMA is {one.metrics['TMA'].value:.3g} under the attack" in flag["says"]


@pytest.mark.parametrize(
    "eps", [0.05, *(pytest.param(eps, marks=pytest.mark.slow) for eps in (2.5 / 255, 0.5))]
)
def test_noise_of_size_eps_is_held_against_radii_by_what_is_broken_at_eps(
    tiny: RetrievalData, eps: float
) -> None:
    """Noise may break all queries at eps, and says nothing of smaller balls."""

    def turned(x: torch.Tensor) -> torch.Tensor:
        return 2 * x.detach() - x

    near = 128 + (tiny.test.images.astype(int) - 128) * eps / 0.5  # noise of size eps breaks some
    data = RetrievalData(tiny.train, Split(near.astype(np.uint8), tiny.test.labels))
    attack = dataclasses.replace(ATTACKS.get("radius")(), steps=6, eps=eps).resolve(AUTO)
    raised = []
    for before in (lambda x: x, turned):
        scaled = Wrapped(
            tiny_network().backbone, before=lambda x, f=before: f(0.5 + 0.5 * (x - 0.5) / eps)
        )
        with measured(data, EmbeddingModel(scaled, "N")) as found:
            flagged = found.attack(attack, 0, "radius").findings.get("flags", [])
        raised.append([one["says"] for one in flagged if one["name"] == "noise"])
    honest, masked = raised
    assert honest == []
    assert masked[0].startswith("R@1 at eps by Radius is ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stacked(TargetedMismatch):
    """Declares a flag from what it observed of each query."""

    card = Card("stacked", "for tests")
    columns = (Column("STK", "", "lower"),)

    def read(self, goal: Any, perturbed: Perturbed, after: torch.Tensor) -> Outcomes:
        return {"STK": after.sum(1)}

    def goal(self, gallery: Gallery, index: torch.Tensor, seed: int) -> MismatchGoal:
        inner = super().goal(gallery, index, seed)

        class Goal(MismatchGoal):
            def outcome(self, e: torch.Tensor) -> Outcomes:
                return {"STK": e.sum(1)}

        return Goal(inner.target)

    def observe(self, goal: Any, perturbed: Perturbed) -> Outcomes:
        return {"black box": 100.0 * (torch.arange(len(perturbed.images)) == 0)}

    def flags(
        self, outcomes: Mapping[str, np.ndarray[Any, Any]], findings: Mapping[str, Any]
    ) -> list[Flag]:
        assert {"STK", "STK clean"} <= outcomes.keys()
        return flags.black_box(findings["black box"])


@pytest.mark.parametrize("restarts", [0, 2])
def test_an_attack_declares_flags_of_its_own(tiny: RetrievalData, restarts: int) -> None:
    attack = Stacked(restarts=restarts).resolve(THREAT)
    with measured(tiny, batch_size=40) as found:
        findings = found.attack(attack, 0, "stacked").findings
    assert findings["black box"] == pytest.approx(100 / 40)
    assert findings["flags"][-1]["says"].startswith("a black box broke 2.5% of the queries")
    assert flags.black_box(0.2) == []


def test_flags_are_one_line_of_plain_text() -> None:
    note = Flag("iterates", "CA+ is 3.0% at the best", "more steps", note=True)
    text = write_flags([BAD, note])
    assert read_flags(text) == (BAD, note)
    assert text.count(" | ") == 1
    assert read_flags("") == ()
    for wrong in ("gradients", "x: y", "=1+1: y; remedy: z", " | "):
        with pytest.raises(ValueError, match="not a list of flags"):
            read_flags(wrong)
    for says in ("", "a\nb", "a | b", "a; remedy: b", "a\x1b[31m"):
        with pytest.raises(ValueError, match="a flag cannot say"):
            Flag("gradients", says, "none")


@pytest.fixture
def three() -> list[Any]:
    """Three models; the middle one by ERS is flagged, and the last has a note."""
    cells = []
    for label, share in (("low", 0.5), ("middle", 0.7), ("high", 0.9)):
        values = {name: value * share for name, value in synthetic.FULL.items()}
        values |= {"TMA": 0.5, "ES:D": 1.0}
        cells += synthetic.model(values, label=label)
    ca, low = (
        next(c for c in cells if "CA+" in c.metrics and c.about.label == label)
        for label in ("middle", "low")
    )
    ca.findings["flags"] = msgspec.to_builtins([BAD])
    low.findings["flags"] = msgspec.to_builtins([Flag("starts", "it differs", "look", note=True)])
    return cells


def test_a_flag_of_several_seeds_names_those_that_have_it() -> None:
    cells = [c for seed in (0, 1, 2) for c in synthetic.model(label="a", seed=seed)]
    for one in cells:
        if "CA+" in one.metrics and one.about.seed in (0, 2):
            one.findings["flags"] = msgspec.to_builtins([BAD])
    (entry,) = entries(tidy(cells))
    (said,) = entry.reasons(note=False)
    assert said.startswith("gradients (CA+; seeds 0, 2): 12.5% of the queries")


def test_a_flag_from_several_cells_names_the_seeds_too() -> None:
    """Its number has none of its own: ES:R in the larger ball is above that in the smaller."""
    cells = [
        synthetic.attacked("ES:R", value, changed, label="a", seed=seed)
        for seed, larger in ((0, 60), (1, 60), (2, 15))
        for changed, value in (("", 20), ("eps=128/255", larger))
    ]
    (entry,) = entries(tidy(cells))
    (said,) = entry.reasons(note=False)
    assert said.startswith("eps (ES:R (eps=128/255); seeds 0, 1): ES:R rises")


def test_a_flagged_row_is_shown_and_not_ranked(three: list[Any], tmp_path: Path) -> None:
    records = read_tidy(synthetic.write(tmp_path / "results.csv", three))
    assert records[0]["flags"] == ""
    (table,) = tables(entries(records))
    assert table.notes == tables(entries(tidy(three)))[0].notes
    shown = [(line.cells[0].text, line.cells[1].text) for line in table.lines]
    assert shown == [("1", "high"), ("–", "middle ‡"), ("2", "low")]
    flagged = table.lines[1]
    assert {cell.mark for cell in flagged.cells} == {""}
    said = "gradients (CA+): 12.5% of the queries <b> have none. Remedy: attack a stand-in."
    assert f"‡ middle is flagged and not ranked: {said}" in table.notes
    assert "Note on low: starts (CA+): it differs. Remedy: look." in table.notes
    assert f"Flagged: {said}" in flagged.cells[1].note
    board = Board("fashion", "", "", (table,))
    assert "&lt;b&gt; have none" in markdown.render(board)
    html = page.render([board])
    assert "<b> have none" not in html
    assert html.count("&lt;b&gt; have none") >= 3  # below, and where one points at name and number
    assert r"$^\ddagger$" in latex.render(board)
    lines = csv.DictReader(spreadsheet.render(board).splitlines())
    (row,) = (line for line in lines if line["flags"].startswith("gradients"))
    assert (row["defense"], row["rank"], row["flags"]) == ("middle", "", said)
    console = Console(record=True, width=300, file=io.StringIO())
    print_tables(records, console)
    assert f"flagged, not ranked: middle: {said}" in console.export_text()
    report = Report(tuple(records))
    assert report.flags["CA+"][-1] == BAD
    assert {row.about["label"]: row.flag_names for row in rows(records)}["middle"] == "gradients"


def test_boards_without_flags_say_nothing_of_them(tmp_path: Path) -> None:
    records = read_tidy(synthetic.write(tmp_path / "results.csv", synthetic.model()))
    board = Board("fashion", "", "", tables(entries(records)))
    for text in (markdown.render(board), latex.render(board), spreadsheet.render(board)):
        assert "flag" not in text.partition("What the columns mean")[0]
        assert "ddagger" not in text
        assert "‡" not in text


def test_damaged_flags_are_found(three: list[Any], tmp_path: Path) -> None:
    cell = next(c for c in three if "flags" in c.findings and c.about.label == "middle")
    place = tmp_path / f"{cell.id}.json"
    assert decode(encode(cell, place), place).flags == (BAD,)
    cell.findings["flags"] = [{"name": "x"}]
    with pytest.raises(ValueError, match="says"):
        encode(cell, place)
    path = synthetic.write(tmp_path / "results.csv", synthetic.model())
    text = path.read_text().splitlines()
    path.write_text("\n".join([text[0], text[1] + "nonsense", *text[2:]]))
    with pytest.raises(UserError, match="flags is 'nonsense', which is not a list of flags"):
        read_tidy(path)


def test_columns_that_older_files_lack_are_empty(tmp_path: Path) -> None:
    path = synthetic.write(tmp_path / "results.csv", synthetic.model())
    with path.open(newline="") as file:
        old = [
            {k: v for k, v in row.items() if k not in ("flags", "eot")}
            for row in csv.DictReader(file)
        ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(old[0]))
        writer.writeheader()
        writer.writerows(old)
    assert {(r["flags"], r["eot"]) for r in read_tidy(path)} == {("", "")}


def record(
    value: float, attack: str, metric: str = "ES:R", clean: float = 80.0, n: int = 400
) -> dict[str, Any]:
    short = split_attack_seed(attack)
    row = {"metric": metric, "value": value, "clean": clean, "n": n}
    row |= {
        "unit": "" if metric == "ES:D" else "%",
        "better": {"CA-": "lower"}.get(metric, "higher"),
    }
    return row | {"attack": attack if short[1] else "es", "attack_resolved": short[0]}


def test_variants_of_one_attack_are_held_against_each_other() -> None:
    plain = "es:eps=8/255,alpha=2/255,steps=8,suite=auto"
    wide = "es:eps=16/255,alpha=4/255,steps=8,suite=auto"

    def found(suite: str = "auto", **variants: Any) -> dict[str, list[str]]:
        raised = variant_flags(variants, suite)
        return {heading: [flag.name for flag in some] for heading, some in raised.items()}

    assert found(a=record(50, plain), b=record(52, wide)) == {}
    assert found(a=record(50, plain), b=record(52.5, wide)) == {"b": ["eps"]}
    other_steps = wide.replace("alpha=4/255", "alpha=1/255")
    assert found(a=record(50, wide), b=record(60, other_steps)) == {}  # no ball is smaller
    weak = {"a": record(50, plain), "b": record(51, wide), "c": record(60, other_steps)}
    assert found(**weak) == {"c": ["eps"]}
    widest = record(53, wide.replace("eps=16/255", "eps=32/255"))  # 2 above b, 3 above a
    assert found(a=record(50, plain), b=record(51, wide), c=widest) == {"c": ["eps"]}
    assert found(a=record(50, plain), b=record(60, wide, n=40)) == {}  # four queries
    assert found(a=record(50, plain), b=record(62.5, wide, n=40)) == {"b": ["eps"]}
    assert found(a=record(50, plain), b=record(70, wide.replace("steps=8", "steps=9"))) == {}
    assert found(a=record(50, plain), b=record(60, f"{plain},attack_seed=5")) == {}
    assert found(a=record(82.5, plain)) == {"a": ["eps"]}  # above the clean image
    assert found(a=record(82.5, plain, metric="CA+")) == {}
    drawn = record(47, plain.replace("steps=8", "steps=8,restarts=1"))
    assert found(a=record(50, plain), b=drawn) == {"b": ["starts"]}
    assert found("strict", a=record(50, plain), b=drawn) == {}
    pgd = record(54, plain.replace("alpha=2/255", "alpha=1/255") + ",optimizer=pgd")
    assert found(a=record(50, plain), b=pgd) == {"b": ["optimizers"]}
    (flag,) = variant_flags({"a": record(50, plain), "b": pgd}, "auto")["b"]
    assert flag.note
    assert "ES:R is 54.0% by PGD and 50.0% by APGD" in flag.says


def test_notes_are_on_every_column_in_percent_and_name_the_worse_number() -> None:
    plain = "ca+:eps=8/255,alpha=2/255,steps=8,suite=auto"
    for metric, worse in (("CA+", "lower"), ("CA-", "higher")):
        drawn = record(47, f"{plain},restarts=1", metric)
        pgd = record(54, f"{plain},optimizer=pgd", metric)
        raised = variant_flags({"a": record(50, plain, metric), "b": drawn, "c": pgd}, "auto")
        assert {key: [(x.name, x.note) for x in some] for key, some in raised.items()} == {
            "b": [("starts", True)],
            "c": [("optimizers", True)],
        }
        assert raised["b"][0].remedy == f"report the {worse} one: restarts=n"
    distance = {"a": record(1, plain, "ES:D"), "b": record(9, f"{plain},restarts=1", "ES:D")}
    assert variant_flags(distance, "auto") == {}


def test_the_command_line_shows_flags(attacked: Run, tmp_path: Path) -> None:
    done = attacked("rounded", "--attack", "es")
    assert done.returncode == 0, done.stderr
    assert "w ‡" in done.stdout
    says = "(ES:R, ES:D, TMA): 100.0% of the queries have a loss gradient in embedding space"
    assert f"flagged, not ranked: w: gradients {says}" in done.stdout
    with (tmp_path / "results/results.csv").open(newline="") as file:
        raised = {row["metric"]: row["flags"] for row in csv.DictReader(file)}
    assert raised["TMA"].startswith("gradients: 100.0% of the queries")
    assert "; remedy: the network hides its gradient" in raised["TMA"]
    assert raised["R@1"] == ""
    assert (
        f"‡ w is flagged and not ranked: gradients {says}"
        in (tmp_path / "leaderboards/tiny.md").read_text()
    )
    with (tmp_path / "results/wide.csv").open(newline="") as file:
        assert [row["flags"] for row in csv.DictReader(file)] == ["gradients"]


def test_a_distance_is_that_of_the_row_that_moved_most() -> None:
    before = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    after = before + torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.1]])
    assert moved_by(after, before) == pytest.approx(0.5)


@pytest.mark.parametrize(("attacked", "expected"), [(51.0, True), (50.0, True), (49.0, False)])
def test_noise_that_gets_as_far_as_the_attack_is_a_sign(attacked: float, expected: bool) -> None:
    measured = Mock(gallery=Mock(metric="N"))
    clean, drawn = np.full(40, 80.0), np.full(40, 50.0)
    for better, turn in (("higher", 1), ("lower", -1)):
        column = Column("X", "%", better)  # type: ignore[arg-type]
        values = [50 + turn * (x - 50) for x in (drawn, np.full(40, attacked), clean)]
        assert self_checks._as_far(column, measured, *values) is expected
