"""Networks as they are published: their features, files in another naming, towers, their size."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
import torchvision
from torch import nn

import dmlbench as dml
from dmlbench.common.errors import UserError
from dmlbench.models.base import canonical_model, parse_model, shown_model
from dmlbench.models.imagenet import MEAN, STD
from tests import trees

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def others_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under names of another library, in the same order."""
    return {
        f"_m{i}.{key.rpartition('.')[2]}": value for i, (key, value) in enumerate(state.items())
    }


@pytest.fixture(scope="module")
def mobile(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """MobileNetV2 of torchvision, and a file of it in other names, without the classifier."""
    torch.manual_seed(5)
    network = torchvision.models.mobilenet_v2().eval()
    body = {k: v for k, v in network.state_dict().items() if not k.startswith("classifier.")}
    path = tmp_path_factory.mktemp("weights") / "mobile.pt"
    torch.save(others_names(body), path)
    return network, path


def test_without_a_head_the_pooled_features_are_the_embedding(
    mobile: tuple[nn.Module, Path],
) -> None:
    network, path = mobile
    with pytest.warns(UserWarning, match="312 tensors fit one by one and were loaded in their"):
        model = parse_model(f"mobilenet_v2:head=none,weights={path},metric=E").build(
            3, 32, initial=True
        )
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        features = network.features((images - mean) / std).mean((2, 3))
        torch.testing.assert_close(model.eval()(images), features)


@pytest.mark.parametrize("head", ["none", "own", "fc"])
def test_a_file_with_a_classifier_fits_in_order(head: str, tmp_path: Path) -> None:
    torch.manual_seed(6)
    source = timm.create_model("tf_efficientnet_lite0").eval()
    torch.save(others_names(source.state_dict()), tmp_path / "lite.pth")
    name = f"timm:name=tf_efficientnet_lite0,weights={tmp_path / 'lite.pth'},head={head},metric=E"
    with pytest.warns(UserWarning, match="tensors fit one by one"):
        model = parse_model(name).build(3, 32, initial=True).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        normal = (images - 0.5) / 0.5
        pooled = source.forward_head(source.forward_features(normal), pre_logits=True)
        expected = {"none": pooled, "own": source(normal)}
        if head == "fc":
            assert model(images).shape == (2, 512)
            assert torch.equal(model.backbone.conv_stem.weight, source.conv_stem.weight)
        else:
            torch.testing.assert_close(model(images), expected[head])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("missing", "it has 311 of them, the network 314"),
        (
            "swapped",
            r"number 4 is _m4.running_var \(32,\), the network's features.0.1.running_mean",
        ),
        ("shape", r"number 1 is _m0.weight \(32, 3, 3, 5\), the network's features.0.0.weight"),
    ],
)
def test_nothing_is_loaded_in_part_or_in_a_doubtful_order(
    mobile: tuple[nn.Module, Path], tmp_path: Path, change: str, reason: str
) -> None:
    state = torch.load(mobile[1])
    items = list(state.items())
    if change == "missing":
        items.pop()
    elif change == "swapped":
        items[3], items[4] = items[4], items[3]
    else:
        items[0] = (items[0][0], torch.zeros(32, 3, 3, 5))
    torch.save(dict(items), tmp_path / "w.pt")
    model = parse_model(f"mobilenet_v2:head=none,weights={tmp_path / 'w.pt'}")
    with pytest.raises(UserError, match=f"does not fit: .*do not fit in order: {reason}"):
        model.build(3, 32, initial=True)


def test_random_weights_are_not_called_pretrained() -> None:
    trained = {name: parse_model(name).comes_trained for name in (
        "resnet18:head=none", "resnet18:head=own", "resnet18", "resnet18:head=none,weights=none",
        "c2f2",
    )}  # fmt: skip
    assert list(trained.values()) == [True, True, False, False, False]


def test_a_dimension_is_for_a_new_layer() -> None:
    with pytest.raises(UserError, match="dim is for head=fc"):
        parse_model("resnet18:head=none,dim=64")


def test_tables_name_a_file_and_not_its_folder(tmp_path: Path) -> None:
    model = parse_model(f"resnet18:weights={tmp_path / 'w.pt'},head=none")
    assert shown_model(model) == "resnet18:weights=w.pt,head=none"
    assert parse_model(canonical_model(model)) == model
    assert "head" not in parse_model("resnet18").facts["values"]  # as it was before there was one


TOWERS = {  # the smallest of each family: its own normalisation, and the side of its images
    "vit_xsmall_patch16_clip_224": ("own", 0.48145466, 224),
    "vit_small_patch14_dinov2": ("none", 0.485, 518),
    "vit_base_patch16_siglip_224": ("none", 0.5, 224),
}


@pytest.mark.parametrize("name", TOWERS)
def test_images_of_another_size_are_refused_with_both_remedies(name: str) -> None:
    _, mean, side = TOWERS[name]
    model = parse_model(f"timm:name={name}")
    assert model.normalisation()[0][0] == mean
    wrong = f"takes {side}x{side} images and the data set gives 112x112: .*size={side} in its spec"
    with pytest.raises(UserError, match=wrong):
        model.build(3, 112)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if "clip" in name else pytest.mark.slow) for name in TOWERS],
)
def test_a_tower_has_its_own_normalisation_and_size(name: str, tmp_path: Path) -> None:
    head = TOWERS[name][0]
    spec = f"timm:name={name},head={head},metric=E"
    model = parse_model(spec)
    torch.manual_seed(7)
    source = timm.create_model(name).eval()
    torch.save(source.state_dict(), tmp_path / "tower.pt")
    small = parse_model(f"{spec},size=112,weights={tmp_path / 'tower.pt'}")
    built = small.build(3, 112, initial=True).eval()  # position embeddings are resampled
    images = torch.rand(1, 3, 112, 112)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in model.normalisation())
    reference = timm.create_model(name, img_size=112).eval()
    convert = timm.models.vision_transformer.checkpoint_filter_fn
    reference.load_state_dict(convert(source.state_dict(), reference))
    with torch.no_grad():
        torch.testing.assert_close(built(images), reference((images - mean) / std))


def test_a_network_of_any_size_has_no_size() -> None:
    with pytest.raises(UserError, match="resnet10t takes images of any size: leave size out"):
        parse_model("timm:name=resnet10t,size=64").build(3, 64)


def test_attack_and_evaluate_need_no_checkpoint(
    dmlbench: Run, tmp_path: Path, mobile: tuple[nn.Module, Path]
) -> None:
    root = trees.folder(tmp_path / "set", classes=4, each=3)
    model = f"mobilenet_v2:head=none,weights={mobile[1]}"
    dataset = f"folder:root={root},size=32"
    places = ("--dataset", dataset, "--cache", "decoded", "--attack", "es:steps=2")
    done = dmlbench("attack", "--model", model, *places)
    assert done.returncode == 0, done.stderr
    assert "the names in" in done.stderr
    (row,) = pd.read_csv(tmp_path / "results" / "wide.csv").to_dict("records")
    assert (row["defense"], row["model"]) == (
        "none (pretrained)", "mobilenet_v2:weights=mobile.pt,head=none",
    )  # fmt: skip
    with pytest.warns(UserWarning, match="were loaded in their order"):
        report = dml.evaluate(
            model, dataset, attacks="es:steps=2", cache=tmp_path / "decoded", progress=False
        )
    stored = [json.loads(p.read_text()) for p in (tmp_path / "results/cells").glob("*.json")]
    assert {cell["id"] for cell in stored} == {record["cell"] for record in report.records}
    behind_a_random_layer = dmlbench("attack", "--model", model.replace("head=none,", ""), *places)
    assert behind_a_random_layer.returncode == 2
    said = r"error: model mobilenet_v2:weights=mobile.pt: a new layer with random weights follows "
    assert re.search(said, behind_a_random_layer.stderr)
    nothing = dmlbench("attack", *places)
    assert nothing.returncode == 2
    said = r"error: name the weights \(--checkpoint FILE, --zoo NAME\), or a network"
    assert re.search(said, nothing.stderr)
