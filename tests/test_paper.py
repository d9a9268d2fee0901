"""The tables and figures of HM's paper: what is committed to measure and draw each of them."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dmlbench.cli.dry_run import lines
from dmlbench.datasets.base import DATASETS, RetrievalData
from dmlbench.defenses.base import DEFENSES
from dmlbench.defenses.samplers import SAMPLERS
from dmlbench.models.small import C2F2
from dmlbench.report.entries import Entry
from dmlbench.report.literature import published
from dmlbench.sweep.requests import parse_all
from scripts.hardness import batches, statistics

Run = Callable[..., "subprocess.CompletedProcess[str]"]
FOLDER = Path(__file__).parent.parent / "results" / "paper"
CONFIGS = {path.stem: yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.yaml")}
PLACES = {  # table -> the published rows that it prints, beside those of other tables
    "2": "CVPR 2022 supplement, full data of Table 2",
    "7": "CVPR 2022 supplement, parameter u",
    "8": "CVPR 2022 supplement, lambda on SOP",
    "9": "CVPR 2022 supplement, non-linear gradual adversary",
    "10": "CVPR 2022 supplement, ICS margin",
}
COUNTS = {"2": 25, "3": 21, "4": 14, "5": 13, "6-cub": 9, "6-sop": 9}
COUNTS |= {"7": 2, "8": 2, "9": 3, "10": 2}


def configured(name: str, dataset: str = "") -> list[tuple[str, int | None]]:
    """Label and eta of each row of a table, as its config gives them."""
    asked = CONFIGS[f"table-{name}"]
    card = DATASETS.get(dataset or asked["dataset"])().protocol
    rows = []
    for one in parse_all(asked["defense"], DEFENSES):
        complete = one.resolve(card.training_threat, "N")
        cost = complete.training_cost
        rows.append((complete.label, cost - 1 if cost > 1 else None))
    return rows


def printed(entry: Entry) -> tuple[str, int | None]:
    """The published label as ours has it: without what stands in brackets behind it."""
    label = re.sub(r" \(.*\)", "", entry.label)
    return label.replace("−γ/2", "-0.1").replace("−γ", "-0.2"), entry.eta


@pytest.mark.parametrize("name", COUNTS)
def test_each_table_has_the_rows_that_the_paper_prints(name: str) -> None:
    rows = configured(name)
    assert len(rows) == COUNTS[name]
    dataset = CONFIGS[f"table-{name}"]["dataset"]
    paper = [e for e in published() if e.dataset == dataset and e.model == "resnet18"]
    known = Counter(printed(e) for e in paper)
    assert not Counter(rows) - known
    number = name.partition("-")[0]
    place = PLACES.get(number, f"CVPR 2022 Table {number}")
    own = Counter(printed(e) for e in paper if e.place == place)
    assert own  # the rows that no other table has
    assert not own - Counter(rows)
    if name == "6-cub":
        cars = Counter(printed(e) for e in published() if e.dataset == "cars" and e.eta != 0)
        assert not Counter(configured(name, "cars")) - cars


def test_every_published_row_of_the_paper_is_in_a_table() -> None:
    rows = Counter(row for name in COUNTS for row in configured(name))
    ours = [e for e in published() if e.model == "resnet18"]
    assert len(ours) == 93
    assert not {printed(e) for e in ours} - rows.keys()


def test_the_77_specs_of_all_tables_plan_in_one_dry_run(dmlbench: Run, tmp_path: Path) -> None:
    specs = list(dict.fromkeys(one for asked in CONFIGS.values() for one in asked["defense"]))
    assert len(specs) == 77
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"defense": specs, "suite": ["ers"]}))
    done = dmlbench("run", "--config", "all.yaml", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    planned = [one for one in json.loads(done.stdout) if one["task"] == "training"]
    # lambda = 0.5, of SOP's Table 8, is what other sets take anyway
    assert len(planned) == len({one["training"] for one in planned}) == 75
    names = [line.split("  ")[0] for line in list(lines(planned))[1:]]
    assert len(set(names)) == len(names) == 75  # no two models are called the same
    assert "N/A[R]" in names
    assert "HM[S,g_2]" in names


def test_hardness_is_that_of_the_triplets(tiny: RetrievalData) -> None:
    """Against a slow twin, for the one sampler that draws nothing."""
    torch.manual_seed(0)
    model = C2F2(dim=4).build(1, 8).eval()
    with torch.no_grad():
        found = statistics(model, tiny, pairs=6, count=30, seed=3)
        moments = []
        for images, labels in batches(tiny, 6, 30, 3, torch.device("cpu")):
            e = model(images)
            hard = []
            for a in range(0, len(e), 2):
                others = [(e[a] - e[j]).norm() for j in range(len(e)) if labels[j] != labels[a]]
                if others:
                    hard.append(float((e[a] - e[a + 1]).norm() - min(others)))
            moments.append((np.mean(hard), np.var(hard)))
    means, variances = np.array(moments).T
    assert found.keys() == SAMPLERS.keys()
    assert found["hardest"] == pytest.approx((means.mean(), variances.mean(), means.var()), 1e-3)
    assert found["random"][0] < found["hardest"][0]


def test_the_batches_of_the_hardness_go_on_into_new_epochs(tiny: RetrievalData) -> None:
    made = list(batches(tiny, 30, 7, 0, torch.device("cpu")))
    assert len(made) == 7
    assert all(torch.equal(labels[::2], labels[1::2]) for _, labels in made)
    assert sum(len(labels) // 2 for _, labels in made[:3]) == len(tiny.train.labels)
