"""Which modules are the same model, so that stored cells hold for them, and which are not."""

from __future__ import annotations

import copy
import enum
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dmlbench as dml
from dmlbench.common.hashing import identity
from dmlbench.compute.device import Compute
from dmlbench.compute.embedding import EmbeddingModel
from dmlbench.datasets.base import Dataset
from dmlbench.models import torchscript
from dmlbench.models.attributes import Attributes
from dmlbench.models.base import parse_model
from dmlbench.models.module import module_model
from dmlbench.sweep.weights import initial_weights
from tests.networks import FEW, OWN, Levels


def test_stored_cells_are_taken_and_a_changed_weight_is_another_model(
    net: nn.Module, small: Dataset, tmp_path: Path
) -> None:
    first = dml.evaluate(net, small, attacks=FEW, results=tmp_path, progress=False)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    again = dml.evaluate(net, small, attacks=FEW, results=tmp_path, progress=False)
    assert again.records == first.records
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert dml.load_results(tmp_path).records == first.records
    assert len(dml.load_results(tmp_path / "results.csv").records) == len(first.records)
    with torch.no_grad():
        net[1].bias[0] += 1
    dml.evaluate(net, small, attacks=FEW, results=tmp_path, progress=False, label="changed")
    assert len(list((tmp_path / "cells").glob("*.json"))) == 2 * len(times) / 2


def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2


def quartered(x: torch.Tensor) -> torch.Tensor:
    return x / 4


CHANGES: dict[str, Callable[[Levels], object]] = {
    "a number": lambda m: setattr(m, "levels", 3),
    "a number of another type": lambda m: setattr(m, "levels", 2.0),
    "a tensor": lambda m: setattr(m, "levels", torch.tensor(2)),
    "a buffer that is not saved": lambda m: m.mask.fill_(0.5),
    "deep in a dict": lambda m: setattr(m, "keys", {"a": [(1, {"b": np.ones(2)})]}),
    "deep in another": lambda m: setattr(m, "keys", {"a": [(1, {"b": np.zeros(2)})]}),
    "a function": lambda m: setattr(m, "act", halved),
    "another function": lambda m: setattr(m, "act", quartered),
    "one of PyTorch's": lambda m: setattr(m, "act", nn.functional.relu),
    "a hook": lambda m: m.inner.register_forward_pre_hook(lambda m, x: None),
    "a layer's attribute": lambda m: setattr(m.inner[1], "scale", 2),
    "forward itself": lambda m: setattr(m, "forward", m.inner.forward),
}


def test_modules_that_differ_have_other_identities(net: nn.Module) -> None:
    """Also where weights and printed text are the same."""
    plain = module_model(net)
    assert plain.attributes == Attributes()
    assert plain.digest == plain.weights_digest  # as it was before attributes were looked at
    digests = [module_model(Levels(net, 2)).digest for _ in range(2)]
    assert digests[0] == digests[1]
    for name, change in CHANGES.items():
        changed = Levels(copy.deepcopy(net), 2)
        change(changed)
        held = module_model(changed)
        assert held.attributes.unknown == (["inner._forward_pre_hooks"] if name == "a hook" else [])
        digests.append(held.digest)
    assert len(set(digests)) == len(CHANGES) + 1
    compiled = [module_model(torch.compile(Levels(net, 2), backend="eager")) for _ in range(2)]
    assert compiled[0].digest == compiled[1].digest  # PyTorch gives each a number of its own
    held = module_model(nn.MultiheadAttention(4, 2))
    assert held.digest != held.weights_digest  # PyTorch prints no number of heads


def test_a_wrapped_model_of_dmlbench_keeps_its_metric_and_normalisation(net: nn.Module) -> None:
    model = EmbeddingModel(net, "E", [0.5], [0.25])
    compiled = torch.compile(model, backend="eager")
    for wrapped in (compiled, nn.DataParallel(model), nn.DataParallel(compiled)):
        held = module_model(wrapped)
        assert (held.metric, held.mean, held.std) == ("E", (0.5,), (0.25,))
        assert held.digest == module_model(model).digest
        with pytest.raises(dml.UserError, match="its own metric"):
            module_model(wrapped, metric="N")


def with_plain(name: str, value: torch.Tensor) -> nn.Module:
    """A layer of which a parameter is a plain tensor instead, which the state dict lacks."""
    layer = nn.Linear(2, 2)
    delattr(layer, name)
    setattr(layer, name, value)
    return layer


UNPRINTED: dict[str, Callable[[], nn.Module]] = {
    "ceil_mode": lambda: nn.AvgPool2d(3, ceil_mode=True),
    "count_include_pad": lambda: nn.AvgPool1d(3, padding=1, count_include_pad=False),
    "divisor_override": lambda: nn.AvgPool3d(3, divisor_override=2),
    "align_corners": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "recompute_scale_factor": lambda: nn.Upsample(scale_factor=2, recompute_scale_factor=True),
    "weight": lambda: with_plain("weight", torch.ones(2, 2)),
    "bias": lambda: with_plain("bias", torch.ones(2)),
}


@pytest.mark.parametrize("name", UNPRINTED)
def test_what_a_layer_of_pytorch_does_not_print_is_part_of_its_identity(name: str) -> None:
    layer = nn.Sequential(UNPRINTED[name]())
    known = module_model(layer).attributes.known
    assert f"0.{name}" in known
    setattr(layer[0], name, -getattr(layer[0], name))
    assert module_model(layer).attributes.known[f"0.{name}"] != known[f"0.{name}"]


def test_a_forward_of_its_own_is_part_of_the_identity_of_a_layer_of_pytorch() -> None:
    layer = nn.Sequential(nn.Linear(2, 2))
    layer[0].forward = halved  # type: ignore[method-assign]
    assert list(module_model(layer).attributes.known) == ["0.forward"]
    layer[0].forward = lambda x: x
    assert module_model(layer).attributes.unknown == ["0.forward"]


class Scaled(nn.Module):
    """A layer of a network that PyTorch can compile to TorchScript."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.layer = factor, nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(images.flatten(1)) * self.factor
        return found


class Shifted(Scaled):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(images.flatten(1)) + self.factor
        return found


@pytest.mark.filterwarnings("default::FutureWarning")  # PyTorch's, of TorchScript
def test_torchscript_is_told_apart_by_its_code_and_values(tmp_path: Path) -> None:
    """The weights are the same."""
    plain = (Scaled(1.0), Scaled(2.0), Shifted(1.0))
    paths = [tmp_path / f"{number}.pt" for number in range(len(plain))]
    for network, path in zip(plain, paths, strict=True):
        network.load_state_dict(plain[0].state_dict())
        torch.jit.script(network).save(path)
    digests = [module_model(torch.jit.load(path)).digest for path in paths]
    assert len(set(digests)) == len(paths)
    first = torch.jit.load(paths[0])
    assert module_model(first.train()).digest == module_model(first.eval()).digest == digests[0]
    assert module_model(first).attributes.unknown == []
    assert list(module_model(nn.Sequential(first)).attributes.known) == ["0.archive"]


@pytest.mark.filterwarnings("default::FutureWarning")
def test_classes_of_one_name_are_told_apart_in_torchscript() -> None:
    def relu() -> nn.Module:
        class Act(nn.Module):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return torch.relu(images)

        return Act()

    def tanh() -> nn.Module:
        class Act(nn.Module):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return torch.tanh(images)

        return Act()

    orders = (relu(), tanh()), (tanh(), relu()), (relu(), tanh())
    found = [torchscript.digest(torch.jit.script(nn.Sequential(*one))) for one in orders]
    assert found[0] == found[2] != found[1]


def trace(network: nn.Module) -> torch.jit.ScriptModule:
    traced: torch.jit.ScriptModule = torch.jit.trace(network, torch.zeros(1, 4))
    return traced


@pytest.mark.filterwarnings("default::FutureWarning")
@pytest.mark.filterwarnings("default::DeprecationWarning")
@pytest.mark.parametrize(
    "compiled", [torch.jit.script, trace, lambda net: torch.jit.freeze(torch.jit.script(net))]
)
def test_a_network_of_torchscript_is_the_same_whenever_it_was_compiled(
    compiled: Callable[[nn.Module], torch.jit.ScriptModule], tmp_path: Path
) -> None:
    """PyTorch gives other names to its classes and other bytes to its objects each time."""
    network = Scaled(2.0).eval()
    found = []
    for number in range(3):
        script = compiled(network)
        if number == 2:
            for parameter in script.parameters():
                parameter.requires_grad_(False)
        script.save(tmp_path / "x.pt")
        found += [script, torch.jit.load(tmp_path / "x.pt")]
    assert len({torchscript.digest(one) for one in found}) == 1
    assert len({identity(module_model(one).facts) for one in found}) == 1


class Color(enum.Enum):
    """A value that a compiled network may hold."""

    RED = 2.0


@pytest.mark.filterwarnings("default::FutureWarning")
@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_what_torchscript_seldom_holds_is_told_apart_or_measured_again() -> None:
    network = Scaled(1.0).eval()
    network.color = Color.RED  # type: ignore[assignment]
    held = module_model(torch.jit.script(network))
    assert held.attributes.unknown == ["archive"]

    codes = [torchscript._Code({"__torch__.Color": f"RED = {n}"}, ()) for n in (2, 3)]
    first, second = (code.of("__torch__.Color.RED") for code in codes)
    assert first.removesuffix(".RED") != second.removesuffix(".RED")
    assert torchscript._definitions({"code/__torch__/torch/classes/quantized.py": b""}) == {}


@pytest.mark.slow
def test_a_network_of_torchscript_is_the_same_in_every_process() -> None:
    """PyTorch lists the attributes of a class in an order that depends on hashes of strings."""
    script = (
        "import torch; from torch import nn; from dmlbench.models import torchscript;"
        "from tests.test_module_identity import Scaled;"
        "torch.manual_seed(0); net = nn.Sequential(Scaled(2.0), nn.Hardtanh());"
        "print(torchscript.digest(torch.jit.script(net)))"
    )
    found = set()
    for seed in "123":
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[1],
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1


def test_layers_of_pytorch_with_default_values_keep_their_identity() -> None:
    """Cells that were stored before unprinted values were looked at stay valid."""
    layers = (nn.AvgPool2d(3, padding=1), nn.Upsample(scale_factor=2), nn.MaxPool2d(2), nn.ReLU6())
    lists = (nn.ParameterList([torch.ones(1)]), nn.ParameterDict({"a": torch.ones(1)}))
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), *layers, nn.GRU(2, 2), *lists)
    assert module_model(network).attributes == Attributes()


def test_stored_cells_of_another_module_are_not_taken(
    net: nn.Module, small: Dataset, tmp_path: Path
) -> None:
    def measured(module: Levels, results: Path | None) -> list[float]:
        how: dict[str, Any] = {"attacks": "es:steps=2", "progress": False, "results": results}
        label = f"{module.levels} levels, {len(module._forward_pre_hooks)} hooks"
        report = dml.evaluate(module, small, label=label, **how)
        return [report[name].value for name in ("mAP", "ES:D (steps=2)")]

    for levels in (1, 3):
        assert measured(Levels(net, levels), tmp_path) == measured(Levels(net, levels), None)
    for count in (1, 3):  # what a lambda computes cannot be compared
        module = Levels(net, 2)
        module.levels = count
        module.register_forward_pre_hook(lambda m, x, count=count: (x[0] * count,))
        fresh = measured(module, None)
        with pytest.warns(UserWarning, match="cells are not taken.*Levels.*_forward_pre_hooks"):
            assert measured(module, tmp_path) == fresh


def test_a_factory_that_changed_is_another_network(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights and classes may be the same."""
    monkeypatch.chdir(tmp_path)
    ids = []
    for levels in (2, 2, 3):
        Path("nets.py").write_text(
            OWN.replace("784", "64") + "from tests.networks import Levels\n"
            "def wrapped():\n"
            f"    return Levels(make(), {levels})\n"
        )
        weights = initial_weights(
            small, small.load(None), parse_model("nets.py:wrapped"), None, 0, Compute()
        )
        ids.append(identity(weights.facts))
        assert weights.about.label == "none (as built)"
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_factory_that_loads_another_script_is_another_network(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code and its weights are the same, and so is the function."""
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text("import torch\ndef make():\n    return torch.jit.load('net.pt')\n")
    linear, ids = nn.Linear(64, 8), []
    for last in (nn.Identity(), nn.Identity(), nn.Hardtanh()):
        torch.jit.script(nn.Sequential(nn.Flatten(), linear, last)).save("net.pt")
        weights = initial_weights(
            small, small.load(None), parse_model("nets.py:make"), None, 0, Compute()
        )
        ids.append(identity(weights.facts))
    assert ids[0] == ids[1] != ids[2]
