"""Training in several processes gives the same model as in one process."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlbench.common.errors import UserError
from dmlbench.common.progress import QuietReporter
from dmlbench.compute.device import Compute
from dmlbench.compute.distributed import World
from dmlbench.core import spec
from dmlbench.core.protocol import Recipe, TrainingThreat
from dmlbench.datasets.base import RetrievalData
from dmlbench.defenses.base import DEFENSES as DEFENSE_REGISTRY
from dmlbench.models.small import C2F2
from dmlbench.storage.checkpoint import LOG
from dmlbench.training.trainer import Training, train
from tests.faults import PATIENCE
from tests.fork_server import environment

DEFENSES = (
    *("none", "none:loss=margin", "none:loss=proxy-anchor"),
    *("est", "act", "hm", "free", "ca-tride"),
)
THREAT = TrainingThreat(eps=32 / 255, eta=2, alpha=16 / 255)  # the plugin's


@given(st.integers(0, 300), st.integers(1, 9))
def test_the_shares_of_all_processes_cover_every_item(n: int, size: int) -> None:
    worlds = [World(rank, size) for rank in range(size)]
    assert sum(w.weight(n) for w in worlds) == pytest.approx(1)
    if n >= size:
        taken = [i for w in worlds for i in range(n)[w.share(n)]]
        assert taken == list(range(n))
        # the mean of the shares' means, so weighted, is the mean
        means = [sum(range(n)[w.share(n)]) / len(range(n)[w.share(n)]) for w in worlds]
        assert sum(w.weight(n) * m for w, m in zip(worlds, means, strict=True)) == pytest.approx(
            (n - 1) / 2
        )


def test_one_process_alone_exchanges_nothing() -> None:
    x = torch.rand(3, 2, requires_grad=True)
    assert World().gather(x, 3) is x
    assert World().mean(x, 1.0) is x
    assert World().share(3) == slice(0, 3)


def test_batch_norms_need_a_gpu_in_several_processes() -> None:
    norm = torch.nn.BatchNorm2d(3)
    assert World().synchronise_batch_norm(norm) is norm
    with pytest.raises(UserError, match="freeze them"):
        World(0, 2).synchronise_batch_norm(norm)


@pytest.mark.slow
def test_two_processes_train_what_one_does(
    plugin: Path, tiny: RetrievalData, tmp_path: Path
) -> None:
    """Shares of 15 pairs differ in size, and an epoch's last batch is smaller still."""
    arguments = ["train", "--dataset", "tiny", "--recipe", "epochs=2,pairs=15", "--validate", "0"]
    for defense in DEFENSES:
        arguments += ["--defense", defense]
    arguments += ["--results", str(tmp_path)]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "dmlbench", *arguments, "--json"],
        env=environment(plugin),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    manifests = json.loads(done.stdout)  # one process speaks for all
    for name, shared in zip(DEFENSES, manifests, strict=True):
        defense = spec.parse(name, DEFENSE_REGISTRY).resolve(THREAT, "N")
        recipe = Recipe(epochs=2, pairs=15)
        training = Training("tiny", tiny.digest, C2F2(dim=8), defense, recipe, seed=0)
        alone = train(training, tiny, tmp_path / name, Compute("cpu"), QuietReporter())
        assert (alone.processes, shared["processes"]) == (1, 2)
        assert alone.training == shared["training"]  # the batch is the recipe's, shared out
        folder = tmp_path / "models" / training.id
        logs = [(f / LOG).read_text().splitlines() for f in (tmp_path / name, folder)]
        steps = 8 if name == "free" else 6  # free takes four in each of two batches
        assert len(logs[0]) == len(logs[1]) == 2 * (steps + 1)  # and the epochs
        for x, y in zip(*map(functools.partial(map, json.loads), logs), strict=True):
            # sooner or later a sign step turns a last bit into a whole step
            apart = 1e-4 if x["epoch"] == 1 else 5e-3
            assert x["loss"] == pytest.approx(y["loss"], abs=apart), name


DROPOUT = """
import os
from torch import nn
class Drop(nn.Dropout):
    def forward(self, x):
        y = super().forward(x)
        if self.training:
            with open(f"mask{os.environ['RANK']}", "a") as file:
                print((y[0] == 0).int().tolist(), file=file)
        return y
def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), Drop(0.5), nn.Linear(32, 8))
"""


@pytest.mark.slow
def test_each_process_draws_the_dropout_of_its_own_share(plugin: Path, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(DROPOUT)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    train = ["train", "--dataset", "tiny", "--model", "nets.py:make", "--defense", "none"]
    subprocess.run(
        [sys.executable, *launch, "-m", "dmlbench", *train, "--recipe", "epochs=1,pairs=15"],
        env=environment(plugin),
        cwd=tmp_path,
        check=True,
        timeout=PATIENCE,
    )
    one, other = ((tmp_path / f"mask{rank}").read_text().splitlines() for rank in (0, 1))
    assert len(one) == len(other) > 1
    assert not {*one} & {*other}
