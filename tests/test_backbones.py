"""Networks at 224 px: their heads, initial weights and frozen batch norm; foreign checkpoints."""

from __future__ import annotations

import os
import pickle
import re
import sys
import types
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import dmlbench as dml
from dmlbench.common.errors import UserError
from dmlbench.compute.device import Compute
from dmlbench.compute.embedding import EmbeddingModel
from dmlbench.core.protocol import Recipe
from dmlbench.defenses.base import DEFENSES
from dmlbench.models import imagenet
from dmlbench.models.base import parse_model
from dmlbench.storage import checkpoint
from dmlbench.storage.weights import named, read_state
from dmlbench.sweep.tasks import Weights
from dmlbench.sweep.weights import initial_weights
from dmlbench.training.job import Training

SIDE = 32  # the heads do not depend on it
NAMES = ["resnet18", "resnet50", "mnasnet1_0", "swin_t", "timm:name=resnet10t"]


def spell(name: str, **values: object) -> str:
    pairs = ",".join(f"{key}={value}" for key, value in values.items())
    return f"{name}{',' if ':' in name else ':'}{pairs}"


@pytest.fixture(scope="module")
def built() -> dict[str, EmbeddingModel]:
    return {name: parse_model(spell(name, weights="none", dim=6)).build(3, SIDE) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_classifier_is_one_layer_to_the_embedding(
    name: str, built: dict[str, EmbeddingModel]
) -> None:
    linear = [m for m in built[name].modules() if isinstance(m, nn.Linear)]
    assert linear[-1].out_features == 6
    assert all(layer.out_features != 1000 for layer in linear)
    with pytest.raises(UserError, match="needs RGB images, got 1 channel"):
        parse_model(spell(name, weights="none")).build(1, SIDE)


@pytest.mark.parametrize("name", ["resnet18", "mnasnet1_0"])
def test_weights_survive_safetensors(
    name: str, built: dict[str, EmbeddingModel], tmp_path: Path
) -> None:
    """MnasNet insists on a version mark that safetensors does not keep."""
    model = built[name].eval()
    checkpoint.save_weights(tmp_path / checkpoint.WEIGHTS, model)
    torch.manual_seed(1)
    fresh = parse_model(spell(name, weights="none", dim=6)).build(3, SIDE).eval()
    images = torch.rand(2, 3, SIDE, SIDE)
    assert not torch.equal(fresh(images), model(images))
    checkpoint.load_weights(tmp_path / checkpoint.WEIGHTS, fresh)
    assert torch.equal(fresh(images), model(images))


def test_normalisation_is_inside(built: dict[str, EmbeddingModel]) -> None:
    model = built["resnet18"].eval()
    images = torch.rand(2, 3, SIDE, SIDE)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (imagenet.MEAN, imagenet.STD))
    outside = nn.functional.normalize(model.backbone((images - mean) / std), dim=1)
    torch.testing.assert_close(model(images), outside)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet18:freeze_bn=false", "mnasnet1_0", "swin_t", "c2f2", "lenet"]
)
def test_a_steady_network_embeds_alike_in_training(name: str) -> None:
    big = name not in ("c2f2", "lenet")
    described = parse_model(spell(name, weights="none") if big else name)
    model = described.build(3, SIDE)
    images = torch.rand(4, 3, SIDE, SIDE)
    with torch.no_grad():
        alike = torch.equal(model.eval()(images), model.train()(images))
    assert described.same_in_training == model.same_in_training == alike


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norm_keeps_its_statistics_and_trains_its_scales(frozen: bool) -> None:
    model = parse_model(f"resnet18:weights=none,dim=4,freeze_bn={str(frozen).lower()}").build(3, 32)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    (model(torch.rand(4, 3, SIDE, SIDE)) * torch.arange(4.0)).sum().backward()
    optimizer.step()
    after = model.state_dict()
    assert (
        torch.equal(after["backbone.bn1.running_mean"], before["backbone.bn1.running_mean"])
        == frozen
    )
    assert not torch.equal(after["backbone.bn1.weight"], before["backbone.bn1.weight"])
    assert model.training


def test_only_training_depends_on_initial_weights(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "a")
    save_file({"x": torch.ones(1)}, tmp_path / "b")
    (tmp_path / "c").write_bytes((tmp_path / "a").read_bytes())
    models = {
        name: parse_model(f"resnet18:{text}" if text else "resnet18")
        for name, text in {
            "imagenet": "", "none": "weights=none", "thawed": "freeze_bn=false",
            "a": f"weights={tmp_path / 'a'}", "b": f"weights={tmp_path / 'b'}",
            "c": f"weights={tmp_path / 'c'}",
        }.items()
    }  # fmt: skip
    facts = {name: model.training_facts for name, model in models.items()}
    assert facts.pop("c") == facts["a"]  # the content counts, not the name
    assert len({str(one) for one in facts.values()}) == 5
    assert facts["imagenet"]["weights"] == "ResNet18_Weights.IMAGENET1K_V1"
    assert len({str(model.facts) for model in models.values()}) == 1
    trainings = {
        name: Training("set", "digest", model, DEFENSES.get("none")(), Recipe(epochs=1, pairs=2), 0)
        for name, model in models.items()
    }
    assert trainings.pop("c").id == trainings["a"].id
    assert len({training.id for training in trainings.values()}) == 5


@pytest.mark.parametrize(("prefix", "classes"), [("", 1000), ("backbone.", 6)])
def test_training_starts_from_a_file(prefix: str, classes: int, tmp_path: Path) -> None:
    """The replaced layer is taken where it fits, and left at random where it does not."""
    from torchvision.models import resnet18

    source = resnet18(num_classes=classes).state_dict()
    torch.save({prefix + name: value for name, value in source.items()}, tmp_path / "w.pth")
    model = parse_model(f"resnet18:weights={tmp_path / 'w.pth'},dim=6").build(3, 32, initial=True)
    own = model.backbone.state_dict()
    assert all(torch.equal(own[k], source[k]) for k in own if not k.startswith("fc."))
    assert (own["fc.weight"].shape == source["fc.weight"].shape) == (classes == 6)
    if classes == 6:
        assert torch.equal(own["fc.weight"], source["fc.weight"])


def test_published_weights_behind_a_random_layer_are_not_measured(tmp_path: Path) -> None:
    """Only where the new layer comes from the file, or there is none, no weight is random."""
    trained = parse_model("resnet18:weights=none,dim=6").build(3, 32)
    checkpoint.save_weights(tmp_path / "w.safetensors", trained)
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8)
    data = dml.from_arrays(images, [0, 0, 1, 1])

    def found(spec: str, seed: int) -> Weights:
        return initial_weights(data, data.load(None), parse_model(spec), None, seed, Compute())

    for keys in ("dim=6", "head=none"):
        spec = f"resnet18:{keys},weights={tmp_path / 'w.safetensors'}"
        first, other = (found(spec, seed) for seed in (0, 1))
        assert first.about.label == "none (pretrained)"
        assert first.id == other.id
    with pytest.raises(UserError, match=r"new layer with random weights.*head=none.*dmlbench run"):
        found(f"resnet18:dim=7,weights={tmp_path / 'w.safetensors'}", 0)
    with pytest.raises(UserError, match="head=none"):
        found("resnet18", 0)  # before anything is downloaded
    with pytest.warns(UserWarning, match="weights=none: its weights are random"):
        random = [found("resnet18:weights=none", seed) for seed in (0, 1)]
    assert random[0].about.label == "none (untrained)"
    assert random[0].id != random[1].id


def test_weights_that_are_not_available_or_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    wanted = "resnet18-f37072fd.pth into .*checkpoints.*weights=FILE.*weights=none"
    with pytest.raises(UserError, match=f"IMAGENET1K_V1 is not available.*no network.*{wanted}"):
        parse_model("resnet18").build(3, SIDE, initial=True)
    parse_model("resnet18").build(3, SIDE)  # to load a checkpoint into it takes no network
    with pytest.raises(UserError, match="'absent' is not a file"):
        parse_model("resnet18:weights=absent").build(3, SIDE, initial=True)
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not fit"):
        parse_model(f"resnet18:weights={tmp_path / 'other.pth'}").build(3, SIDE, initial=True)
    with pytest.raises(UserError, match=r"no network is called 'nonsense'|Unknown model"):
        parse_model("timm:name=nonsense,weights=none").build(3, SIDE)
    with pytest.raises(UserError, match=r"tag .nope.*there are resnet18\..*resnet18\.tv_in1k"):
        parse_model("timm:name=resnet18.nope,weights=none").build(3, SIDE)


def test_without_timm_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'dmlbench\[timm\]'"):
        parse_model("timm:name=resnet10t,weights=none").build(3, SIDE)


def lightning(path: Path, state: dict[str, Any], package: str = "pytorch_lightning") -> None:
    """A checkpoint as PyTorch Lightning 1.x wrote it: callbacks are keyed by their class, and
    hyper-parameters are a dict of its own kind.
    """
    modules = {name: types.ModuleType(name) for name in (package, f"{package}.of")}
    bases: dict[str, type] = {"ModelCheckpoint": object, "AttributeDict": dict}
    made = {
        name: type(name, (base,), {"__module__": f"{package}.of"}) for name, base in bases.items()
    }
    vars(modules[f"{package}.of"]).update(made)
    sys.modules.update(modules)
    callback = made["ModelCheckpoint"]
    try:
        torch.save(
            {
                "epoch": 7,
                "pytorch-lightning_version": "1.5.10",
                "state_dict": state,
                "callbacks": {callback: {"best_model_score": torch.tensor(1.0), "x": callback()}},
                "hyper_parameters": made["AttributeDict"](dataset="cub", loss="ptripletN"),
                "optimizer_states": [],
            },
            path,
        )
    finally:
        for name in modules:
            del sys.modules[name]


def test_a_published_lightning_checkpoint_loads(
    built: dict[str, EmbeddingModel], tmp_path: Path
) -> None:
    model = built["resnet18"].eval()
    state = {f"backbone.{name}": v for name, v in model.backbone.state_dict().items()}
    lightning(tmp_path / "last.ckpt", state | {"lossfunc.beta": torch.zeros(3)})
    with pytest.raises(pickle.UnpicklingError, match="pytorch_lightning"):
        torch.load(tmp_path / "last.ckpt", weights_only=True)
    torch.manual_seed(1)
    fresh = parse_model("resnet18:weights=none,dim=6").build(3, SIDE).eval()
    checkpoint.load_weights(tmp_path / "last.ckpt", fresh)
    images = torch.rand(2, 3, SIDE, SIDE)
    assert torch.equal(fresh(images), model(images))
    assert "pytorch_lightning" not in sys.modules


def test_a_c2f2_as_robrank_builds_it_has_the_same_embeddings(tmp_path: Path) -> None:
    """RobRank pools after the ReLU, under the same names as ours, and keeps its loss beside it."""
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 5, padding=2), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(32, 64, 5, padding=2), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(64 * 7 * 7, 1024), torch.nn.ReLU(),
        torch.nn.Linear(1024, 512),
    )  # fmt: skip
    state = {f"backbone.{name}": value for name, value in theirs.state_dict().items()}
    lightning(tmp_path / "last.ckpt", state | {"lossfunc.beta": torch.zeros(3)})
    ours = parse_model("c2f2").build(1, 28).eval()
    checkpoint.load_weights(tmp_path / "last.ckpt", ours)
    images = torch.rand(3, 1, 28, 28)
    expected = torch.nn.functional.normalize(theirs(images), dim=1)
    assert torch.allclose(ours(images), expected, atol=1e-6)


def as_timm_0_4_has_it(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Swin as RobRank's timm named it: a stage ends with its downsampling, the masks are kept."""

    def renamed(key: str) -> str:
        key = re.sub(
            r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key
        )
        return key.replace("head.fc.", "head.")

    old = {renamed(key): value for key, value in state.items()}
    return old | {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49).long()}


@pytest.mark.slow
def test_a_lightning_checkpoint_of_an_old_swin_loads(tmp_path: Path) -> None:
    name = "timm:name=swin_tiny_patch4_window7_224,weights=none,dim=6"
    torch.manual_seed(0)
    model = parse_model(name).build(3, 224).eval()
    old = as_timm_0_4_has_it(model.backbone.state_dict())
    assert "layers.0.downsample.reduction.weight" in old
    assert "head.weight" in old
    lightning(tmp_path / "last.ckpt", {f"backbone.{key}": value for key, value in old.items()})
    torch.manual_seed(1)
    fresh = parse_model(name).build(3, 224).eval()
    images = torch.rand(1, 3, 224, 224)
    assert not torch.equal(fresh(images), model(images))
    checkpoint.load_weights(tmp_path / "last.ckpt", fresh)
    assert torch.equal(fresh(images), model(images))
    checkpoint.save_weights(tmp_path / checkpoint.WEIGHTS, fresh)
    checkpoint.load_weights(tmp_path / checkpoint.WEIGHTS, model)  # as it is named today
    torch.save({"backbone.layers.0.downsample.reduction.weight": images}, tmp_path / "part.pt")
    with pytest.raises(
        UserError,
        match=r"model: the file lacks patch_embed\.proj\.w.* and 165 more; this network does not",
    ):
        checkpoint.load_weights(tmp_path / "part.pt", fresh)


class PlannedAttack:
    """Unpickling it would make a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (PlannedAttack.path,)

    path = ""


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlannedAttack, "path", str(tmp_path / "made"))
    state = {"pytorch-lightning_version": "1.5", "state_dict": {}, "callbacks": PlannedAttack()}
    torch.save(state, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"not a plain state dict .*it names \w+\.mkdir"):
        read_state(tmp_path / "evil.ckpt")
    lightning(tmp_path / "foreign.ckpt", {}, "elsewhere")
    with pytest.raises(UserError, match=r"it names elsewhere\.of\."):
        read_state(tmp_path / "foreign.ckpt")
    assert not (tmp_path / "made").exists()
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        read_state(tmp_path / "list.pt")


@pytest.mark.parametrize(("count", "end"), [(8, "7"), (9, "7 and 1 more"), (11, "7 and 3 more")])
def test_an_error_names_eight_keys_and_counts_the_rest(count: int, end: str) -> None:
    assert named(map(str, range(count))) == f"0, 1, 2, 3, 4, 5, 6, {end}"
