"""Flags: what raises them, what does not, and that every table carries them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
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
from dmlbench.attacks.engine.optimizer import Perturbed, mean_over_draws
from dmlbench.attacks.engine.outcomes import Outcomes
from dmlbench.attacks.engine.targets import random_start
from dmlbench.attacks.moved_query import columns
from dmlbench.common.errors import CellError, UserError
from dmlbench.common.hashing import derived_seed
from dmlbench.compute.device import LARGE
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.compute.model_checks import moved_by
from dmlbench.core import flags, spec
from dmlbench.core.flags import Flag, read_flags, write_flags
from dmlbench.core.naming import split_attack_seed
from dmlbench.core.protocol import Threat
from dmlbench.core.registry import Card
from dmlbench.datasets.base import RetrievalData, Split
from dmlbench.datasets.fashion import FashionMini
from dmlbench.defenses.base import DEFENSES
from dmlbench.evaluation import self_checks
from dmlbench.evaluation.embedded import spread
from dmlbench.evaluation.self_checks import FAR
from dmlbench.models.base import parse_model
from dmlbench.models.small import C2F2
from dmlbench.report import latex, markdown, page, spreadsheet
from dmlbench.report.board import Board, tables
from dmlbench.report.entries import measured as entries
from dmlbench.report.terminal import print_tables
from dmlbench.storage.cell import decode, encode
from dmlbench.storage.store import Store
from dmlbench.sweep import plan
from dmlbench.sweep.durations import _cell_kind
from dmlbench.sweep.requests import parse_all
from dmlbench.sweep.weights import trained_weights
from dmlbench.testing import tiny_network
from tests import synthetic
from tests.every_attack import EVERY
from tests.masks import FLAGGED, REFUSED, Counting, Wrapped
from tests.test_evaluator import measured

THREAT = Threat(eps=0.1, alpha=0.03, steps=3)
AUTO = dataclasses.replace(THREAT, suite="auto")
Run = Callable[..., "subprocess.CompletedProcess[str]"]
BAD = Flag("gradients", "12.5% of the queries <b> have none", "attack a stand-in | of it"[:17])


def backbone() -> torch.nn.Module:
    torch.manual_seed(0)
    return C2F2(dim=64).build(1, 8).backbone


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
    model = EmbeddingModel(Counting(backbone(), passes=20), "N")
    with measured(tiny, model) as found:
        assert names(found.benign().findings) == []
        assert names(found.attack(attack, 0, "tma").findings) == ["clean"]


def test_honest_networks_are_not_flagged(tiny: RetrievalData) -> None:
    with measured(tiny, EmbeddingModel(backbone(), "N")) as found:
        assert names(found.benign().findings) == []
        for name, one in EVERY.items():
            steps = {} if isinstance(one, BlackBoxAttack) else {"steps": 5}
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


@pytest.mark.parametrize("eps", [2.5 / 255, 0.05, 0.5])
def test_noise_of_size_eps_is_held_against_radii_by_what_is_broken_at_eps(
    tiny: RetrievalData, eps: float
) -> None:
    """Noise may break all queries at eps, and says nothing of smaller balls."""

    def turned(x: torch.Tensor) -> torch.Tensor:
        return 2 * x.detach() - x

    near = 128 + (tiny.test.images.astype(int) - 128) * eps / 0.5  # noise of size eps breaks some
    data = RetrievalData(tiny.train, Split(near.astype(np.uint8), tiny.test.labels))
    attack = dataclasses.replace(ATTACKS.get("radius")(), steps=15, eps=eps).resolve(AUTO)
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
        assert "flag" not in text
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


def record(value: float, attack: str, metric: str = "ES:R", clean: float = 80.0) -> dict[str, Any]:
    short = split_attack_seed(attack)
    row = {"metric": metric, "value": value, "clean": clean}
    return row | {"attack": attack if short[1] else "es", "attack_resolved": short[0]}


def test_variants_of_one_attack_are_held_against_each_other() -> None:
    plain = "es:eps=8/255,alpha=2/255,steps=8,suite=auto"
    wide = "es:eps=16/255,alpha=4/255,steps=8,suite=auto"

    def found(suite: str = "auto", **variants: Any) -> dict[str, list[str]]:
        raised = variant_flags(variants, suite)
        return {heading: [flag.name for flag in some] for heading, some in raised.items()}

    assert found(a=record(50, plain), b=record(52, wide)) == {}
    assert found(a=record(50, plain), b=record(52.5, wide)) == {"b": ["eps"]}
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


NETS = """
import torch
from torch import nn
class Rounded(nn.Module):
    def forward(self, x):
        return (x * 8).round() / 8
class Noisy(nn.Module):
    def forward(self, x):
        return x + 0.05 * torch.randn_like(x)
def net(first):
    return nn.Sequential(first, nn.Flatten(), nn.Linear(64, 16))
def rounded():
    return net(Rounded())
def noisy():
    return net(Noisy())
"""


@pytest.fixture
def attacked(dmlbench: Run, tmp_path: Path) -> Run:
    """Attack a network of ``NETS`` on the data set tiny."""
    (tmp_path / "nets.py").write_text(NETS)
    linear = torch.nn.Linear(64, 16).state_dict()
    torch.save({f"backbone.2.{name}": value for name, value in linear.items()}, tmp_path / "w.pt")

    def call(net: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        weights = ("--checkpoint", "w.pt", "--model", f"nets.py:{net}", "--dataset", "tiny")
        return dmlbench("attack", *weights, "--attack", "tma", *arguments)

    return call


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


def test_a_randomised_network_is_measured_in_expectation(attacked: Run, tmp_path: Path) -> None:
    done = attacked("noisy")
    assert done.returncode == 1
    assert "not deterministic" in done.stderr
    assert "--eot 16" in done.stderr
    done = attacked("noisy", "--eot", "3")
    assert done.returncode == 0, done.stderr
    assert "w (EoT 3)" in done.stdout
    cells = [json.loads(p.read_text()) for p in (tmp_path / "results/cells").glob("*.json")]
    ok = [one for one in cells if one["status"] == "ok"]
    assert [one["facts"]["eot"] for one in ok] == [3, 3]
    (tma,) = (one for one in ok if one["facts"]["kind"] == "attack")
    assert tma["findings"]["passes"] == 3 * 4  # steps of the data set tiny
    assert tma["about"]["eot"] == "3"
    assert " EoT |" in (tmp_path / "leaderboards/tiny.md").read_text()


def test_draws_are_a_part_of_identity_and_price() -> None:
    once, thrice = (_cells(eot) for eot in (1, 3))
    assert "eot" not in once[0].facts
    assert once[0].facts["measure_version"] == 1
    assert thrice[0].facts == {**once[0].facts, "eot": 3, "measure_version": 2}
    assert {one.id for one in once}.isdisjoint(one.id for one in thrice)
    assert [_cell_kind(one.facts).passes for one in thrice] == [3, 3 * 32]


def _cells(eot: int) -> list[Any]:
    card = FashionMini().protocol
    (training,) = plan.plan(
        FashionMini(),
        "d" * 64,
        parse_model("lenet"),
        parse_all(["none"], DEFENSES),
        [0],
        card.recipe,
    )
    weights = trained_weights(training, None, Store(Path("nowhere")), "fp32", eot)
    attacks = plan.planned_attacks([ATTACKS.get("tma")()], card.threat)
    return [task.cell for task in plan.measures(weights, attacks)]


class Noise(torch.nn.Module):
    """Noise before and dropout inside, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.dropout(x + 0.1 * torch.randn_like(x), 0.2, training=True)
        e: torch.Tensor = self.inner(x.flatten(1))
        return e


def test_expectation_is_that_of_a_slow_twin(tiny: RetrievalData) -> None:
    attack = ATTACKS.get("tma")().resolve(THREAT)
    model = EmbeddingModel(Noise(), "N")
    with measured(tiny, model, eot=3) as found:
        one = found.attack(attack, 5, "tma", queries=6)
        index = found.chosen(6)
        clean = found.images(index)
        target = attack.goal(found.gallery, index, 5).target
        torch.manual_seed(derived_seed(5, "tma", int(index[0])))
        x = clean.clone()
        for _ in range(THREAT.steps):
            slopes = []
            for _ in range(3):
                here = x.clone().requires_grad_()
                loss = 1 - torch.cosine_similarity(model(here), target, dim=1)
                loss.sum().backward()
                assert here.grad is not None
                slopes.append(here.grad)
            x = x - THREAT.alpha * torch.stack(slopes).mean(0).sign()
            x = x.clamp(clean - THREAT.eps, clean + THREAT.eps).clamp(0, 1)
        with torch.no_grad():
            after = [torch.cosine_similarity(model(x), target, dim=1) for _ in range(3)]
            before = [torch.cosine_similarity(model(clean), target, dim=1) for _ in range(3)]
    for name, draws in (("TMA", after), ("TMA clean", before)):
        twin = torch.stack(draws).double().mean(0).numpy()
        np.testing.assert_allclose(one.outcomes[name][index.numpy()], twin, atol=1e-6)


def test_expectations_do_not_depend_on_the_batch_size(tiny: RetrievalData) -> None:
    attacks = [ATTACKS.get(name)().resolve(THREAT) for name in ("es", "top1")]
    attacks.append(dataclasses.replace(ATTACKS.get("radius")(), steps=2).resolve(THREAT))
    values: list[Any] = []
    for batch_size in (5, 64):
        torch.manual_seed(batch_size)  # nor on what was drawn before
        with measured(tiny, EmbeddingModel(Noise(), "N"), batch_size=batch_size, eot=2) as found:
            every = [found.benign(), *(found.attack(a, 0, a.card.name, 35) for a in attacks)]
            values.append([one.outcomes for one in every])
    for a, b in zip(*values, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    top1 = values[0][2]["Top1"]
    assert set(top1[~np.isnan(top1)]) <= {0, 50, 100}


def test_recalls_are_means_over_draws_and_not_those_of_the_mean_embedding(
    tiny: RetrievalData,
) -> None:
    attack = ATTACKS.get("es")().resolve(dataclasses.replace(THREAT, eps=0.0))
    with measured(tiny, EmbeddingModel(Noise(), "N"), eot=4) as found:
        one = found.attack(attack, 0, "es", recalls=True)
        outside = found.moved(columns("External"), found.images(found.index), found.index)
    right = one.outcomes["ES:R"]
    for values in (
        *(one.outcomes[name] for name in ("ES:R@1", "ES:R@1 clean")),
        outside["External:R@1"].numpy(),
    ):
        assert set(values) <= {0, 25, 50, 75, 100}
        assert ((values > 0) & (values < 100)).any()
        assert values.mean() == pytest.approx(right.mean(), abs=8)
    assert one.outcomes["ES:D clean"].mean() == pytest.approx(one.outcomes["ES:D"].mean(), rel=0.2)


def test_of_large_images_expectations_do_not_depend_on_the_batch_size() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 1, LARGE, LARGE), dtype=np.uint8)
    split = Split(images, np.repeat(np.arange(8), 5))
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(LARGE**2, 8))
    noisy = Wrapped(backbone, before=lambda x: x + 0.3 * torch.randn_like(x))
    attack = ATTACKS.get("tma")().resolve(dataclasses.replace(THREAT, steps=16))
    values = []
    for batch_size in (None, 1, 64):
        model = EmbeddingModel(noisy, "N")
        with measured(RetrievalData(split, split), model, eot=2, batch_size=batch_size) as found:
            values.append(found.attack(attack, 0, "tma").outcomes["TMA"])
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(values[0], values[2])


class FaintNoise(torch.nn.Module):
    """So little noise that a query is broken in all draws or in none."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_network().backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        e: torch.Tensor = self.inner(x + 1e-3 * torch.randn_like(x))
        return e


@pytest.mark.parametrize("text", ["margin:steps=6", "radius:steps=3", "dlr:optimizer=pgd,steps=6"])
def test_a_query_may_be_broken_in_all_of_ten_draws(tiny: RetrievalData, text: str) -> None:
    """The tenth part of the lowest number, ten times, is below it by rounding."""
    attack = spec.parse(text, ATTACKS).resolve(dataclasses.replace(AUTO, eps=0.3))
    with measured(tiny, EmbeddingModel(FaintNoise(), "N"), eot=10) as found:
        one = found.attack(attack, 0, text, queries=12)
    column = attack.columns[0].name
    assert one.metrics[column].value < one.findings["clean"][column]


@pytest.mark.parametrize("draws", [10, 18, 31])
def test_a_mean_over_draws_is_not_below_the_least(draws: int) -> None:
    lowest = torch.finfo(torch.float32).min
    found = torch.full((draws, 3), lowest)
    found[0, 1], found[0, 2] = 1.0, -torch.inf
    broken, mixed, infinite = mean_over_draws(found).tolist()
    assert broken == lowest
    assert mixed == pytest.approx(lowest * (draws - 1) / draws)
    assert infinite == -np.inf


def test_a_network_without_randomness_has_its_number_as_expectation(tiny: RetrievalData) -> None:
    attack = ATTACKS.get("ca+")().resolve(THREAT)
    values = []
    for eot in (1, 3):
        with measured(tiny, EmbeddingModel(backbone(), "N"), eot=eot) as found:
            values.append((found.benign().metrics, found.attack(attack, 0, "ca+").metrics["CA+"]))
    assert values[0][0]["mAP"].value == pytest.approx(values[1][0]["mAP"].value, abs=0.2)
    assert values[0][1].value == pytest.approx(values[1][1].value, abs=0.5)


def test_randomness_that_no_seed_repeats_is_refused(tiny: RetrievalData) -> None:
    own = torch.Generator().manual_seed(0)
    noisy = Wrapped(backbone(), before=lambda x: x + 0.1 * torch.randn(x.shape, generator=own))
    with (
        measured(tiny, EmbeddingModel(noisy, "N"), eot=2) as found,
        pytest.raises(CellError, match="no seed repeats"),
    ):
        found.benign()


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
