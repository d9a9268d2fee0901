"""Everything runs on a device that is not the CPU, and gives the CPU's numbers.

``pytest -s`` prints the largest difference of each comparison.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_metric_learning.reducers import MultipleReducers

from dmlbench.api.evaluate import evaluate
from dmlbench.attacks import stack
from dmlbench.attacks.base import ATTACKS
from dmlbench.attacks.black_box import BlackBoxAttack
from dmlbench.compute.device import Compute
from dmlbench.compute.provenance import device_name
from dmlbench.core import spec
from dmlbench.core.protocol import Recipe, Threat, TrainingThreat
from dmlbench.datasets.base import DATASETS, Dataset, RetrievalData
from dmlbench.datasets.files.cache import Cache
from dmlbench.defenses.base import DEFENSES
from dmlbench.defenses.losses import LOSSES, TRIPLET, build, mined
from dmlbench.defenses.none import NoDefense
from dmlbench.defenses.samplers import SAMPLERS, sample
from dmlbench.evaluation import evaluator
from dmlbench.evaluation.evaluator import Evaluation, evaluation
from dmlbench.metrics.distance import METRICS, Metric
from dmlbench.models.small import C2F2
from dmlbench.storage import checkpoint
from dmlbench.training import batches, trainer
from dmlbench.training.trainer import Monitoring, Training, train
from tests import trees
from tests.accelerator import NAME, install, startup, strict_generators
from tests.faults import Sweeps
from tests.reporters import Silent

install()  # while tests are collected: PyTorch counts devices at the first backward pass

THREAT = Threat(eps=0.06, alpha=0.03, steps=2, sp_scale=0)
TRAINING_THREAT = TrainingThreat(eps=0.1, eta=2)
QUERIES = 12
DEVICES = ("cpu", NAME)
OWN_ENTRY = ("ca-", "es", "fna", "gtm", "gtt", "ltm", "sp-qa+", "sp-qa-")  # suite ers differs
PASSES = ("certified", "radius", "top1")  # attacks of many passes
CASES = [
    *((name, "N", "strict") for name in ATTACKS.names() if name not in PASSES),
    *((name, "E", "ers") for name in (*OWN_ENTRY, "square")),
    *((name, "C", "auto") for name in ("es", "qa+")),
]
LONG = [*((name, "N", "strict") for name in PASSES), ("radius", "E", "ers"), ("top1", "C", "auto")]
LATE = ("ca-tride", "head")  # defenses that perturb nothing in the first epoch
OTHER_LOSSES = ("rest", "ses", "tbc")  # EST and ACT with another loss
SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in LONG]


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with strict_generators():
        yield


@pytest.fixture(autouse=True)
def _one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU in the memory layout of the other device: what then differs is not rounding."""
    for module in (evaluator, trainer):
        monkeypatch.setattr(module, "on_device", lambda model, device: model.to(device))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, tiny: RetrievalData) -> Path:
    """A short training, so that attacks neither fail nor succeed on every query."""
    folder = tmp_path_factory.mktemp("weights")
    defense = NoDefense().resolve(TRAINING_THREAT, "N")
    recipe = Recipe(epochs=2, pairs=8)
    training = Training("tiny", tiny.digest, C2F2(dim=8), defense, recipe, seed=0)
    train(training, tiny, folder, Compute("cpu"), Silent())
    return folder / checkpoint.WEIGHTS


@pytest.fixture(scope="module")
def measured(weights: Path, tiny: RetrievalData) -> Iterator[Callable[[str, Metric], Evaluation]]:
    """The evaluation of these weights on a device, under a metric; opened once each."""
    opened: dict[tuple[str, Metric], Evaluation] = {}
    with ExitStack() as stack:

        def get(device: str, metric: Metric) -> Evaluation:
            if (device, metric) not in opened:
                model = C2F2(dim=8, metric=metric).build(1, 8)
                checkpoint.load_weights(weights, model)
                one = evaluation(model, tiny, Compute(device, batch_size=40), Silent())
                opened[device, metric] = stack.enter_context(one)
            return opened[device, metric]

        yield get


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """The largest difference of two results by name; inf where only one is NaN."""
    assert a.keys() == b.keys()
    found = [0.0]
    for name in a:
        x, y = (np.asarray(values, dtype=np.float64) for values in (a[name], b[name]))
        assert x.shape == y.shape, name
        apart = np.where(np.isnan(x) & np.isnan(y), 0, np.abs(x - y))
        found.append(float(np.nan_to_num(apart, nan=np.inf).max(initial=0)))
    return max(found)


def say(what: str, found: float) -> float:
    print(f"{what}: {found:.1e}")
    return found


class TestTheStandIn:
    def test_what_cuda_refuses_is_refused(self) -> None:
        x, i = torch.rand(3, 4).to(NAME), torch.arange(2)
        refused: Sequence[Callable[[], object]] = (
            lambda: x + torch.rand(4),
            lambda: x @ torch.rand(4, 2),
            lambda: torch.cat([x, torch.rand(3, 4)]),
            lambda: torch.where(x > 0, x, torch.rand(3, 4)),
            lambda: torch.rand(4)[i.to(NAME)],
            lambda: torch.arange(4)[i.to(NAME)],
            lambda: x.gather(1, torch.zeros(3, 1, dtype=torch.int64)),
            lambda: x.index_copy(0, i, x[:2]),
            lambda: x.numpy(),
            lambda: torch.conv2d(x[None, None], torch.rand(1, 1, 2, 2)),
            lambda: torch.rand(2, generator=torch.Generator(NAME)),
            lambda: torch.multinomial(x, 1, generator=torch.Generator()),
        )
        for operation in refused:
            with pytest.raises((RuntimeError, TypeError), match=NAME):
                operation()

    def test_what_cuda_takes_is_taken(self) -> None:
        cpu = torch.rand(3, 4)
        x, i = cpu.to(NAME), torch.tensor([2, 0])
        assert torch.equal(x[i].cpu(), cpu[i])
        assert torch.equal(x[:, 1:][i.to(NAME)].cpu(), cpu[:, 1:][i])
        assert torch.equal((x * torch.tensor(2.0)).cpu(), cpu * 2)
        assert float(x.T[1, 2]) == float(cpu[2, 1])
        y = x.clone()
        y[:, 1] += 1
        y[1, 2:] = 0
        cpu[:, 1] += 1
        cpu[1, 2:] = 0
        assert torch.equal(y.cpu(), cpu)

    def test_gradients_and_files_are_the_cpus(self) -> None:
        network = C2F2(dim=8).build(1, 8).train()
        moved = C2F2(dim=8).build(1, 8).train()
        moved.load_state_dict(network.state_dict())
        moved.to(NAME)
        images = torch.rand(6, 1, 8, 8)
        network(images)[:, 0].sum().backward()
        moved(images.to(NAME))[:, 0].sum().backward()
        for a, b in zip(network.parameters(), moved.parameters(), strict=True):
            assert a.grad is not None
            assert b.grad is not None
            assert torch.allclose(a.grad, b.grad.cpu(), rtol=1e-5, atol=1e-5)
        buffer = io.BytesIO()
        torch.save(moved.state_dict(), buffer)
        buffer.seek(0)
        saved = torch.load(buffer, map_location="cpu", weights_only=True)
        assert all(torch.equal(saved[key], kept) for key, kept in network.state_dict().items())


@pytest.mark.parametrize(("name", "metric", "suite"), [*CASES, *SLOW])
def test_an_attack(
    measured: Callable[[str, Metric], Evaluation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    metric: Metric,
    suite: str,
) -> None:
    """By PGD in the suites strict and ers, by APGD in the suite auto."""
    monkeypatch.setattr(stack, "BUDGET", 6)  # forward passes of Square in top1
    given: dict[str, Any] = {"steps": 2}
    if issubclass(ATTACKS.get(name), BlackBoxAttack):
        given = {"budget": 6}
    elif name == "certified":
        given |= {"samples": 8, "judges": 8, "draws": 2}
    elif name == "transfer":
        torch.save(C2F2(dim=8).build(1, 8).state_dict(), tmp_path / "other.pt")
        given |= {"from_": str(tmp_path / "other.pt"), "network": "c2f2:dim=8"}
    attack = replace(ATTACKS.get(name)(**given), suite=suite).resolve(THREAT)
    cpu, sim = (
        measured(device, metric).attack(attack, 0, name, QUERIES, keep=1) for device in DEVICES
    )
    assert say(f"{name} {suite} {metric}", difference(cpu.outcomes, sim.outcomes)) < 1e-5
    images = (one.kept[0].perturbed.numpy() for one in (cpu, sim))
    assert difference(*({"pixels": pixels} for pixels in images)) < 1e-6
    assert cpu.kept[0].top_after == sim.kept[0].top_after
    assert cpu.findings["passes"] == sim.findings["passes"]


@pytest.mark.parametrize("start", ["restarts=2", "optimizer=apgd", "steps=1"])
def test_an_optimizer(measured: Callable[[str, Metric], Evaluation], start: str) -> None:
    attack = spec.parse(f"es:{start}", ATTACKS).resolve(THREAT)
    found = [measured(device, "N").attack(attack, 0, "es", QUERIES).outcomes for device in DEVICES]
    assert say(f"es:{start}", difference(*found)) < 1e-5


@pytest.mark.parametrize("metric", METRICS)
def test_the_clean_metrics(measured: Callable[[str, Metric], Evaluation], metric: Metric) -> None:
    cpu, sim = (measured(device, metric).benign() for device in DEVICES)
    values = ({k: e.value for k, e in one.metrics.items()} for one in (cpu, sim))
    assert say(f"benign {metric}", difference(*values)) < 1e-6
    assert difference(cpu.findings, sim.findings) < 1e-6


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler(name: str, metric: Metric) -> None:
    e = torch.nn.functional.normalize(torch.randn(24, 8), dim=1)
    labels = torch.arange(4).repeat_interleave(2).repeat(3)
    found = []
    for device in DEVICES:
        generator = torch.Generator(device).manual_seed(0)
        given = e.to(device), labels.to(device)
        found.append(sample(name, *given, metric, 0.2, generator).stack().cpu())
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("text", "epochs"),
    [
        *(
            pytest.param(name, 1, marks=pytest.mark.slow if name in OTHER_LOSSES else ())
            for name in DEFENSES.names()
            if name not in LATE
        ),
        *(pytest.param(name, 2, marks=pytest.mark.slow) for name in LATE),
        ("hm:destination=hardest,xi=0.1", 2),
    ],
)
def test_a_defense(tiny: RetrievalData, tmp_path: Path, text: str, epochs: int) -> None:
    """The second epoch is interrupted and resumed; R@1 is measured at the end."""
    defense = spec.parse(text, DEFENSES).resolve(TRAINING_THREAT, "N")
    recipe = Recipe(epochs=epochs, pairs=40)
    training = Training("tiny", tiny.digest, C2F2(dim=8), defense, recipe, seed=0)
    found = []
    for device in DEVICES:
        folder, given = tmp_path / device, (Compute(device), Silent(), Monitoring(validate=epochs))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer._TrainingRun, "step", cut_after(3, trainer._TrainingRun.step))
            if epochs > 1:
                with pytest.raises(KeyboardInterrupt):
                    train(training, tiny, folder, *given)
        manifest = train(training, tiny, folder, *given)
        model = C2F2(dim=8).build(1, 8)
        checkpoint.load_weights(folder / checkpoint.WEIGHTS, model)
        weights = {key: value.numpy() for key, value in model.state_dict().items()}
        found.append(weights | dict(enumerate(map(list, map(dict.values, manifest.history)))))
    assert say(text, difference(*found)) < 1e-4


@pytest.mark.parametrize("name", [name for name in LOSSES if name != TRIPLET])
def test_a_loss(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(MultipleReducers, "forward", stacked)
    torch.manual_seed(0)
    loss, found = build(name, 4, 8, "N"), []
    e, labels = torch.randn(16, 8), torch.arange(4).repeat_interleave(4)
    triplets = torch.tensor([[0, 1, 4], [4, 5, 0], [8, 9, 12]])
    for device in DEVICES:
        moved, given = copy.deepcopy(loss).to(device), e.clone().to(device).requires_grad_()
        chosen = (triplets.to(device).unbind(1),) if mined(name) else ()
        value = moved(given, labels.to(device), *chosen)
        wanted = [given, *moved.parameters()]
        gradients = torch.autograd.grad(value, wanted, allow_unused=True)
        cpu = [one.cpu().numpy() for one in gradients if one is not None]
        found.append({"loss": float(value.detach()), **dict(enumerate(cpu))})
    assert say(name, difference(*found)) < 1e-5


def stacked(reducers: Any, found: Mapping[str, Any], e: torch.Tensor, labels: Any) -> Any:
    """As ``MultipleReducers.forward``, which writes into a view, as the stand-in cannot."""
    known, other = dict(reducers.reducers), reducers.default_reducer
    each = [known.get(name, other)({name: one}, e, labels) for name, one in found.items()]
    return reducers.sub_loss_reduction(torch.stack(each))


def cut_after(steps: int, real: Callable[..., None]) -> Callable[..., None]:
    """A training step that is interrupted after so many."""
    calls = iter(range(steps))

    def step(*arguments: Any) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        real(*arguments)

    return step


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "read ahead"])
def test_image_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: bool) -> None:
    """Decoded, cut and flipped alike, whether the device holds them or processes read them."""
    if not resident:
        monkeypatch.setattr(batches, "RESIDENT_BYTES", 0)
        monkeypatch.setattr(batches, "MOST_WORKERS", 1)
    root = trees.folder(tmp_path / "images", classes=4, each=3)
    data = spec.parse(f"folder:root={root}", DATASETS).load(None, Cache(tmp_path / "cache"))
    rows, found = [np.array([4, 1, 0]), np.array([2, 5])], []
    for device in map(torch.device, DEVICES):
        generator = torch.Generator(device).manual_seed(0)
        raw = list(batches.ImageBatches(data.train.images, device).batches(rows))
        pixels = [data.training_pixels(one, generator) for one in raw]
        pixels += [data.evaluation_pixels(one) for one in raw]
        pixels += [data.evaluation_pixels(data.test.batch(rows[0], device))]
        assert all(one.device.type == device.type for one in pixels)
        found.append(torch.cat(pixels).cpu())
    assert found[0].shape == (13, 3, 224, 224)
    assert torch.equal(*found)


def test_a_network_on_one_device_is_measured_on_another(small: Dataset) -> None:
    torch.manual_seed(0)
    pooled = torch.nn.Sequential(torch.nn.AvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(16, 8))
    values = []
    for held, device in (("cpu", "cpu"), (NAME, "cpu"), ("cpu", NAME)):
        own = pooled.to(held)
        report = evaluate(own, small, attacks="tma", queries=2, device=device, progress=False)
        assert not report.failed
        values.append({name: report[name].value for name in ("R@1", "mAP", "NMI", "TMA")})
    assert say("tiny", max(difference(values[0], one) for one in values)) < 1e-6


SWEEP = ("--defense", "hm", "--attack", "ca+", "--recipe", "epochs=1,pairs=40", "--queries", "12",
         "--threads", "1", "--batch-size", "40")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("executor", [(), ("--executor", "ray")], ids=["pool", "ray"])
def test_another_process(
    dmlbench: Callable[..., Any], plugin: Path, tmp_path: Path, executor: tuple[str, ...]
) -> None:
    """Clean metrics and CA+ of an undefended model and one of hm, which a worker trains."""
    if executor:
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'dmlbench[ray]'")
    asked = ("run", "--dataset", "tiny", *SWEEP)
    done = dmlbench(*asked, "--device", "cpu", "--results", "cpu")
    assert done.returncode == 0, done.stderr
    other = ("--device", NAME, "--results", NAME, "--workers", "1", *executor)
    done = Sweeps(plugin, *startup(tmp_path)).run(tmp_path, *asked, *other)
    assert done.returncode == 0, done.stderr
    cpu, sim = (numbers(tmp_path / device) for device in DEVICES)
    assert len(cpu) >= 14
    assert say("another process", difference(cpu, sim)) < 1e-3


def numbers(folder: Path) -> dict[str, float]:
    table = pd.read_csv(folder / "results.csv")
    return dict(zip(table["defense"] + " " + table["metric"], table["value"], strict=True))


def test_a_row_names_the_device() -> None:
    assert device_name(torch.device("cpu")).startswith("cpu: ")
    assert device_name(torch.device(NAME)).startswith(f"{NAME}: ")
