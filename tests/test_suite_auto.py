"""The suite auto: its attacks, its scores, its price; it shares no table with another suite."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from dmlbench.attacks.base import ATTACKS
from dmlbench.common.errors import UserError
from dmlbench.compute.device import Compute
from dmlbench.core import spec
from dmlbench.core.protocol import ERS_ATTACKS
from dmlbench.datasets.fashion import FashionMini
from dmlbench.metrics.ers import ERS_COLUMNS
from dmlbench.metrics.names import BENIGN
from dmlbench.storage.store import Store
from dmlbench.sweep import plan
from dmlbench.sweep.durations import _cell_kind
from dmlbench.sweep.requests import parse_attacks
from dmlbench.sweep.weights import trained_weights
from tests.plans import trainings

THREAT = FashionMini().protocol.threat
THREAT_STEPS = 4  # of the data set tiny
NETWORK = """
from torch import nn
def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
"""


def scores(*specs: str, suites: tuple[str, ...] = ("auto",)) -> dict[tuple[str, str], list[str]]:
    attacks = plan.planned_attacks(parse_attacks(specs, suites), THREAT)
    weights = trained_weights(trainings()[0], None, Store(Path("nowhere")), Compute())
    tasks = plan.measures(weights, attacks, BENIGN)
    return {
        (t.cell.about.suite, t.cell.about.attack): [column for _, column in t.sources]
        for t in plan.combines(weights, tasks)
    }


def test_it_is_the_nine_attacks_and_the_stack_by_apgd() -> None:
    attacks = [a.resolve(THREAT) for a in parse_attacks((), ("auto",))]
    assert [a.card.name for a in attacks] == [*ERS_ATTACKS, "top1", "radius"]
    assert {(a.suite, a.steps, a.optimizer) for a in attacks[:-1]} == {("auto", 100, None)}
    assert sum(a.most_passes for a in attacks) == 9 * 100 + 3 * 100 + 8 * 50
    assert all(a.strict for a in attacks)  # the papers' targets
    assert spec.shortest(attacks[0], lambda a: a.resolve(THREAT)) == "ca+:suite=auto"


def test_a_suite_that_no_attack_reads_is_refused() -> None:
    """A run file names the suite of each attack, so a suite beside it would change nothing."""
    with pytest.raises(UserError, match=r"suite auto is read by no attack.*: es:suite=strict"):
        parse_attacks(["es:suite=strict"], ["auto"])
    both = parse_attacks(["es:suite=strict", "ltm"], ["strict", "auto"])
    assert [(a.card.name, a.suite) for a in both] == [
        ("es", "strict"),
        ("ltm", "strict"),
        ("es", "strict"),
        ("ltm", "auto"),
    ]


def test_its_scores_are_drawn_where_all_that_they_need_is_there() -> None:
    worst = ["R@1", "ES:R", "LTM", "GTM", "Top1"]
    found = scores()
    assert found["auto", "worst case"] == worst
    assert sorted(found["auto", "ERS"]) == sorted(ERS_COLUMNS)
    assert scores("es", "ltm", "gtm") == {}  # not without the stack
    assert scores("es", "ltm", "gtm", "top1", "top1:restarts=2", "top1:of=item") == {
        ("auto", "worst case"): worst,
        ("auto", "worst case:top1:restarts=2"): [*worst, "Top1"],
    }
    small = [f"{name}:eps=8/255" for name in ("es", "ltm", "gtm", "top1")]
    assert scores(*small) == {("auto", "worst case:eps=8/255"): worst}
    assert scores(*small[:3]) == {}
    both = scores("es", "ltm", "gtm", "top1", suites=("strict", "auto"))
    assert both["strict", "worst case"] == worst[:-1]  # as it was
    assert both["auto", "worst case"] == worst


def test_more_passes_take_longer() -> None:
    def passes(text: str) -> int:
        attack = spec.parse(text, ATTACKS).resolve(THREAT)
        facts = {"kind": "attack", "attack": attack.card.name, "attack_values": attack.facts}
        return _cell_kind(facts).passes

    assert passes("es") == THREAT.steps
    assert passes("es:suite=auto,restarts=3") == 300
    assert _cell_kind({"kind": "benign"}).passes == 1
    assert _cell_kind({"kind": "worst case"}).passes == 0


def test_a_run(dmlbench: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETWORK)
    run = ("run", "--defense", "none", "--dataset", "tiny", "--model", "nets.py:make",
           "--suite", "strict", "--suite", "auto")  # fmt: skip
    priced = dmlbench(*run, "--dry-run")
    text = "passes per query at most: strict 36, auto 1550 and 200 forward only (the nine attacks"
    assert f"{text} of strict: 36)" in priced.stdout
    named = [word for name in ("es", "ltm", "gtm", "top1") for word in ("--attack", name)]
    done = dmlbench(*run, *named, "--recipe", "epochs=1", "--queries", "16")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "results/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    value = {(r["suite"], r["metric"]): float(r["value"]) for r in rows if r["value"]}
    parts = ("ES:R", "LTM", "GTM", "Top1")
    robust = value["auto", "Robust R@1"]
    assert robust <= min(value["auto", name] for name in parts)
    assert robust <= value["strict", "Robust R@1"]
    cells = [json.loads(p.read_text()) for p in (tmp_path / "results/cells").glob("*.json")]
    stacks = {c["about"]["suite"]: c for c in cells if c["facts"].get("attack") == "top1"}
    assert 0 < stacks["auto"]["findings"]["passes"] <= 4 * 100
    assert 0 < stacks["strict"]["findings"]["passes"] <= 4 * THREAT_STEPS
    board = (tmp_path / "leaderboards/tiny.md").read_text()
    assert board.index("suite strict") != board.index("suite auto")
