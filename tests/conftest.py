"""Fixtures: a small data set that can be learned, and a plugin that registers it."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from torch import nn

from dmlbench.attacks.base import ATTACKS, Gallery
from dmlbench.compute.embedding import EmbeddingModel, embed
from dmlbench.datasets.arrays import from_arrays
from dmlbench.datasets.base import DATASETS, Dataset, RetrievalData
from dmlbench.defenses.base import DEFENSES
from dmlbench.models.base import MODELS
from dmlbench.testing import tiny_data, tiny_network
from tests.bundles import QUERIES, Place
from tests.command import NONE
from tests.faults import PATIENCE, Sweeps, install
from tests.fork_server import ForkServer, environment
from tests.networks import own_network

PLUGIN = """
from dataclasses import dataclass
import numpy as np
from dmlbench.attacks.base import Attack, Column
from dmlbench.datasets.base import Dataset, DatasetCard, RetrievalData, Split
from dmlbench.core.protocol import Recipe, Threat, TrainingThreat
from dmlbench.core.registry import Card

def split(seed, classes, each):
    prototypes = np.random.default_rng(7).integers(0, 256, (classes, 1, 8, 8))
    noise = np.random.default_rng(seed).normal(0, 60, (classes * each, 1, 8, 8))
    labels = np.repeat(np.arange(classes), each)
    images = np.clip(prototypes[labels] + noise, 0, 255).astype(np.uint8)
    return Split(images, labels.astype(np.int64))

@dataclass(frozen=True, kw_only=True)
class Tiny(Dataset):
    card = DatasetCard(
        "tiny", "synthetic classes for tests", model="c2f2:dim=8",
        recipe=Recipe(epochs=3, pairs=8),
        threat=Threat(eps=32/255, alpha=8/255, steps=4),
        training_threat=TrainingThreat(eps=32/255, eta=2, alpha=16/255),
    )
    def load(self, data_root, cache=None):
        return RetrievalData(split(1, 5, 16), split(2, 5, 8))

@dataclass(frozen=True, kw_only=True)
class Broken(Attack):
    card = Card("broken", "raises, as a plugin may")
    columns = (Column("BR", "%", "higher"),)
    def goal(self, gallery, index, seed):
        raise RuntimeError("this plugin is broken")

class NoCard(Attack):
    pass
"""
ENTRY_POINTS = """
[dmlbench.datasets]
tiny = dmlbench_test_plugin:Tiny
[dmlbench.attacks]
broken = dmlbench_test_plugin:Broken
absent = no_such_module:Attack
absent-card = dmlbench_test_plugin:NoCard
"""


@pytest.fixture(scope="session")
def tiny() -> RetrievalData:
    return tiny_data()


@pytest.fixture(scope="session")
def model() -> EmbeddingModel:
    return tiny_network().eval().requires_grad_(False)


@pytest.fixture(scope="session")
def images(tiny: RetrievalData) -> torch.Tensor:
    """The test images of tiny."""
    return tiny.evaluation_pixels(torch.from_numpy(tiny.test.images))


@pytest.fixture(scope="session")
def gallery(model: EmbeddingModel, images: torch.Tensor, tiny: RetrievalData) -> Gallery:
    return Gallery(embed(model, images), torch.from_numpy(tiny.test.labels), model.metric)


# a busy machine fails no property: how long an example takes is not what is tested
settings.register_profile("dmlbench", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dmlbench")
torch.set_num_threads(1)  # the tests run in two processes, and so do the commands they start


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what is imported out of later garbage collections: it lives to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.default_generator.manual_seed(0)  # torch.manual_seed is slow where there is no GPU


@pytest.fixture
def registries() -> Iterator[None]:
    """Forget, after a test, what it loaded or registered."""
    every = (ATTACKS, DEFENSES, DATASETS, MODELS)
    known = [(registry.names() and dict(registry._classes), registry) for registry in every]
    paths = list(sys.path)
    yield
    sys.path[:] = paths
    for classes, registry in known:
        assert isinstance(classes, dict)
        registry._classes = classes  # type: ignore[assignment]


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like an installed package of someone else; put it on PYTHONPATH."""
    root = tmp_path_factory.mktemp("plugin")
    (root / "dmlbench_test_plugin.py").write_text(PLUGIN)
    info = root / "dmlbench_test_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: dmlbench-test-plugin\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return root


@pytest.fixture(scope="session")
def fork_server(plugin: Path) -> Iterator[ForkServer]:
    started = ForkServer(environment(plugin))
    yield started
    started.close()


@pytest.fixture
def dmlbench(
    fork_server: ForkServer, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a real process, in an empty folder, with the plugin installed."""

    def call(
        *arguments: str, cwd: Path = tmp_path, timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        return fork_server.run(arguments, cwd, timeout)

    return call


@pytest.fixture(scope="session")
def _measured_none(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("none")
    assert fork_server.run(NONE, folder, PATIENCE).returncode == 0
    return folder


@pytest.fixture
def measured_none(_measured_none: Path, tmp_path: Path) -> Path:
    """The folder of the test after ``NONE``, which was run in another one."""
    shutil.copytree(_measured_none, tmp_path, dirs_exist_ok=True)
    return tmp_path


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
def attacked(
    dmlbench: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that attacks a network of ``NETS`` on the data set tiny."""
    (tmp_path / "nets.py").write_text(NETS)
    linear = torch.nn.Linear(64, 16).state_dict()
    torch.save({f"backbone.2.{name}": value for name, value in linear.items()}, tmp_path / "w.pt")

    def call(net: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        weights = ("--checkpoint", "w.pt", "--model", f"nets.py:{net}", "--dataset", "tiny")
        return dmlbench("attack", *weights, "--attack", "tma", *arguments)

    return call


@pytest.fixture(scope="session")
def small(tiny: RetrievalData) -> Dataset:
    """The data set tiny, made of arrays; its classes to train on have other labels."""
    train = (tiny.train.images, tiny.train.labels + 5)
    return from_arrays(tiny.test.images, tiny.test.labels, train=train, model="c2f2:dim=8")


@pytest.fixture
def net() -> nn.Module:
    return own_network()


@pytest.fixture(scope="session")
def place(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Measured rows and an honest bundle of them; the workers of pytest measure them once."""
    root = tmp_path_factory.mktemp("rows")
    of_all = root.parents[1] if "PYTEST_XDIST_WORKER" in os.environ else root.parent
    with FileLock(of_all / "measured.lock"):
        if not (of_all / "measured").exists():
            measure = ["attack", "--zoo", "fashion-mini/hm", "--suite", "strict"]
            done = fork_server.run([*measure, "--queries", str(QUERIES)], root, 300)
            assert done.returncode == 0, done.stderr
            packed = fork_server.run(
                ["submit", "hm", "--by", "Jane Doe", "--out", "hm.zip"], root, 300
            )
            assert packed.returncode == 0, packed.stderr
            assert "protocol: closed\n" in packed.stdout
            shutil.copytree(root, of_all / "measured")
    shutil.copytree(of_all / "measured", root, dirs_exist_ok=True)
    return Place(root, fork_server, root / "hm.zip")


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def sweeps(plugin: Path, faults: Path, tmp_path: Path) -> Sweeps:
    return Sweeps(plugin, faults, FAULTS_FLAG=str(tmp_path / "flag"))


@pytest.fixture
def telltale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a file of code, evil.py, that leaves a file when it is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    return tmp_path
