"""Images, data sets and arguments that the Python interface takes, and those that it refuses."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

import dmlbench as dml
from dmlbench.attacks.base import ATTACKS, Attack
from dmlbench.attacks.candidate import CandidateUp
from dmlbench.attacks.top1 import Margin
from dmlbench.core.parameters import parameter
from dmlbench.core.registry import Component, Registry
from dmlbench.datasets.base import Dataset, RetrievalData
from dmlbench.datasets.folder import Folder
from dmlbench.defenses.base import DEFENSES
from dmlbench.defenses.hm import HardnessManipulation
from dmlbench.sweep.requests import parse_all
from tests.mistakes import refused
from tests.networks import own_network


def sparse_network() -> nn.Module:
    network = nn.Linear(64, 2)
    network.weight = nn.Parameter(torch.eye(2, 64).to_sparse())
    return network


def frozen_in_float64() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of TorchScript
        script = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double().eval())
        frozen: nn.Module = torch.jit.freeze(script)
    return frozen


class DoubleBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 2)
        self.register_buffer("scale", torch.ones(64, dtype=torch.float64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(images.flatten(1) * self.scale)
        return found


def test_images_of_every_form(tiny: RetrievalData) -> None:
    images, labels = tiny.test.images, tiny.test.labels
    reference = dml.from_arrays(images, labels).load(None).test
    named = [f"class {label}" for label in labels]
    floats = torch.from_numpy(images).float() / 255
    forms = [images[:, 0], torch.from_numpy(images), floats, [*floats.requires_grad_()]]
    for form in forms:
        found = dml.from_arrays(form, named).load(None).test
        assert np.array_equal(found.images, reference.images)
        assert np.array_equal(found.labels, reference.labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((4, 8, 8, 3), np.uint8)}, r"move the channels to the front"),
        ({"images": np.zeros((4, 8), np.uint8)}, r"must be \(N, C, H, W\)"),
        ({"images": np.full((40, 8, 8), 0.123)}, "whole multiples of 1/255"),
        ({"images": np.full((40, 8, 8), 7.0)}, r"in \[0, 1\]"),
        ({"images": np.full((40, 8, 8), np.nan)}, "whole multiples of 1/255"),
        ({"labels": [1, 2]}, "40 images need as many labels, got 2"),
        ({"labels": [1] * 40}, "two or more classes"),
        ({"name": "a/b"}, "letters, digits"),
        ({"name": "fashion"}, "name 'fashion' is that of a registered data set"),
        ({"train": (np.zeros((2, 4, 4), np.uint8), [0, 1])}, "must have one shape"),
    ],
)
def test_bad_images_are_one_line(
    tiny: RetrievalData, change: dict[str, object], message: str
) -> None:
    given = {"images": tiny.test.images, "labels": tiny.test.labels} | change
    with pytest.raises(dml.UserError, match=message) as caught:
        dml.from_arrays(**given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_what_trains_and_is_measured_too_is_warned_of(tiny: RetrievalData) -> None:
    test = tiny.test.images, tiny.test.labels
    classes = "^arrays: 5 classes are in both splits, so this does not measure retrieval of unseen"
    with pytest.warns(UserWarning, match=classes):
        dml.from_arrays(*test, train=(255 - test[0], test[1]))
    images = "^arrays: 3 of 40 test images train too, so this measures .* leave them out of one"
    with pytest.warns(UserWarning, match=images):
        dml.from_arrays(*test, train=(test[0][:3], [7, 7, 8]))
    with pytest.warns(UserWarning, match=images):  # those of the gallery may train
        dml.from_arrays(*test, gallery=(255 - test[0], test[1]), train=(test[0][:3], [7, 7, 8]))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"attacks": "ca"}, "unknown attack 'ca'"),
        ({"suite": "stric"}, "did you mean .strict.|one of strict"),
        ({"attacks": ATTACKS.get("es")(eps=-1.0)}, "eps must be"),
        ({"precision": "fp8"}, "precision must be one of fp32"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"queries": 40}, "the test split has 40 images"),
        ({"queries": 0}, "queries must be at least 1 and a whole number, got 0"),
        ({"queries": -1}, "queries must be at least 1 and a whole number, got -1"),
        ({"queries": 1.5}, "queries must be at least 1 and a whole number, got 1.5"),
        ({"batch_size": 1.5}, "batch_size must be at least 1 and a whole number, got 1.5"),
        ({"mean": [0.5]}, "mean and std go together"),
        ({"device": "cuda:99"}, "cuda:99 cannot be used"),
        ({"model": "absent.pt"}, "absent.pt does not exist"),
        ({"model": "c2f3"}, "did you mean 'c2f2'"),
        ({"model": "c2f2", "metric": "E"}, "network='c2f2:metric=E'"),
        ({"model": nn.Flatten(0)}, "Flatten cannot embed 1x8x8 images"),
        (
            {"model": own_network().double()},
            r"in float64, images are in float32: use net.float",
        ),
        ({"model": DoubleBuffer()}, r"in float64, images are in float32: use net.float"),
        ({"model": frozen_in_float64()}, r"use float\(\) before freeze\(\)"),
        ({"model": own_network().bfloat16()}, r"in bfloat16, .*: use net.float"),
        ({"model": f"nets.py:make:text={'x' * 300}"}, "nets.py"),
        ({"model": nn.LazyLinear(2)}, "weight is sparse or has no values: run a lazy module once"),
        ({"model": nn.Linear(64, 2, device="meta")}, "weight is sparse or has no values"),
        ({"model": sparse_network()}, "weight is sparse or has no values"),
        ({"attacks": 3}, "attacks must be a name or a list of names, got 3"),
        ({"attacks": ["es", 3]}, "attacks must be a name or a list of names, got 3"),
        ({"data_root": 3}, "data_root must be a path, got 3"),
        ({"cache": 3}, "cache must be a path, got 3"),
        ({"results": 3}, "results must be a path, got 3"),
        ({"results": "a\0b"}, "results must be a path, got"),
        ({"device": None}, "--device None cannot be used"),
        ({"device": "meta"}, "--device meta cannot be used"),
        ({"model": "fashion-mini/nope"}, "unknown model of the zoo 'fashion-mini/nope'"),
        ({"dataset": Folder(root=".", size=10)}, "folder: size must be"),
        ({"dataset": Folder(root=".", size="64")}, "folder: size must be"),
    ],
)
def test_mistakes_are_user_errors_of_one_line(
    net: nn.Module, small: Dataset, how: dict[str, object], message: str
) -> None:
    given = {"model": net, "dataset": small, "attacks": "es", "progress": False} | how
    with pytest.raises(dml.UserError, match=message) as caught:
        dml.evaluate(**given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("default::FutureWarning")  # PyTorch's, of TorchScript
@pytest.mark.parametrize("made", ["scripted", "traced", "frozen"])
def test_a_network_of_torchscript_is_measured_as_the_plain_one(
    net: nn.Module, small: Dataset, made: str
) -> None:
    how: dict[str, Any] = {"dataset": small, "attacks": "es:steps=2", "progress": False}
    if made == "traced":
        script = torch.jit.trace(net, torch.rand(2, 1, 8, 8))
    else:
        script = torch.jit.script(net.eval())
    script = torch.jit.freeze(script) if made == "frozen" else script
    assert dml.evaluate(script, **how)["ES:D (steps=2)"].value == pytest.approx(
        dml.evaluate(net, **how)["ES:D (steps=2)"].value, abs=1e-4
    )
    assert all(p.is_leaf and p.requires_grad for p in script.parameters())


def test_an_empty_list_of_attacks_is_clean_images_alone(net: nn.Module, small: Dataset) -> None:
    found = dml.evaluate(net, small, attacks=[], seed=np.int64(1), progress=False)
    assert {record["attack"] for record in found.records} == {""}
    assert repr(found).startswith("<Report of Sequential: R@1, ")
    with pytest.raises(dml.UserError, match=r"--queries 99: the test split has 40 images"):
        dml.evaluate(net, small, attacks="es", queries=np.int64(99), progress=False)


def test_an_attack_may_name_its_suite(net: nn.Module, small: Dataset) -> None:
    found = dml.evaluate(
        net, small, attacks=["es:suite=ers,steps=1", "ca+:steps=1"], progress=False
    )
    suites = {one["attack"]: one["suite"] for one in found.records if one["attack"]}
    assert suites == {"es:steps=1": "ers", "ca+:steps=1": "strict"}


def test_names_for_a_run_are_names(small: Dataset, tmp_path: Path) -> None:
    for names in ({"defenses": 3}, {"defenses": "hm", "attacks": [3]}):
        with pytest.raises(dml.UserError, match=r"s must be a name or a list of names, got 3"):
            dml.run(dataset=small, results=tmp_path, **names)  # type: ignore[arg-type]


def test_wrong_arguments_of_run_and_load_model(small: Dataset, tmp_path: Path) -> None:
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"model": own_network()}, "model must be the spec of a network, such as 'resnet18' or"),
        ({"recipe": 5}, "recipe must be 'epochs=2' or {'epochs': 2}, got 5"),
        ({"seeds": np.array([], int)}, "name a seed"),
        *(
            ({"seeds": one}, f"seeds must be a list of whole numbers such as [0, 1], got {one!r}")
            for one in (0, "0", np.array(0), {"a": 1})
        ),
        ({"recipe": {1: 2}}, "unknown key '1'"),
    )
    for changed, words in wrong:
        with pytest.raises(dml.UserError, match=re.escape(words)):
            dml.run("none", dataset=small, results=tmp_path, progress=False, **changed)
    with pytest.raises(dml.UserError, match=r"no model 'x*' in "):
        dml.load_model("x" * 300, results=tmp_path)
    for shape in (28, (3,), (3, "28"), (0, 28)):
        with pytest.raises(dml.UserError, match="image_shape"):
            dml.load_model("fashion-mini/hm", image_shape=shape)  # type: ignore[arg-type]
    row: dict[str, Any] = {"images": "x.npz", "row": "hm", "by": "Jane Doe"}
    calls: tuple[Callable[[], object], ...] = (
        lambda: dml.load_results(5),  # type: ignore[arg-type]
        lambda: dml.compare("none", "hm", results=5),  # type: ignore[arg-type]
        lambda: dml.verify_attack(**row | {"images": 5}),
        lambda: dml.verify_attack(**row | {"by": 5}),
    )
    for call in calls:
        with pytest.raises(dml.UserError, match=r"must be a (path|name).*, got 5"):
            call()


def test_a_training_that_is_too_short_is_refused_before_the_others_begin(
    small: Dataset, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"recipe": "epochs=1,pairs=8", "results": tmp_path, "progress": False}
    with pytest.raises(dml.UserError, match=r"ca-tride: .* one epoch perturbs nothing"):
        dml.run(["fast", "ca-tride"], "tma:steps=1", dataset=small, **asked)
    assert not [*tmp_path.glob("models/*")]


@pytest.mark.parametrize("validate", [-1, 1.5])
def test_epochs_between_validations_are_a_whole_number(
    small: Dataset, tmp_path: Path, validate: Any
) -> None:
    with pytest.raises(dml.UserError, match="validate must be at least 0 and a whole number, got"):
        dml.train("none", small, validate=validate, results=tmp_path, progress=False)


@dataclass(frozen=True, kw_only=True)
class Honest(CandidateUp):
    """An attack with values that a spec gives: of other types, and fields that follow from them."""

    card = replace(CandidateUp.card, name="honest")
    columns = (replace(CandidateUp.columns[0], name="HONEST"),)
    place: Path = parameter(Path("a"), "a path")
    kind: Literal["a", 1] = parameter("a", "one of two")
    nothing: float = float("nan")
    table: torch.Tensor = field(default_factory=lambda: torch.ones(3))
    derived: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "derived", 2 * (self.w or 1))


@dataclass(frozen=True, kw_only=True)
class Turned(CandidateUp):
    """An attack with a field that no spec can give."""

    card = replace(CandidateUp.card, name="turned")
    columns = (replace(CandidateUp.columns[0], name="TURNED"),)
    sign: float = 1.0


GALLERY = {"gallery": (np.ones((4, 8, 8), np.uint8), [0, 0, 1, 1])}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"eps": 8}, "eps must be within 0 and 1, as pixels are, got 8: 8/255?"),
        ({"eps": float("nan")}, "eps must be within 0 and 1"),
        ({"eps": "eight"}, "eps must be a number or a fraction '8/255', got 'eight'"),
        ({"alpha": None}, "alpha must be a number or a fraction '8/255', got None"),
        ({"alpha": 0}, "alpha must be above 0: it is the length of a step"),
        ({"eps": True}, "eps must be a number or a fraction '8/255', got True"),
        ({"steps": 0}, "steps must be at least 1 and a whole number, got 0"),
        ({"steps": 2.5}, "steps must be at least 1 and a whole number, got 2.5"),
        ({"images": [np.zeros((8, 8)), np.zeros((9, 9))]}, "a list of images of one size"),
        ({"images": torch.zeros(4, 8, 8, device="meta")}, "must be an array or a dense tensor"),
        ({"recipe": "epochs=2"}, "recipe must be a dmlbench.core.protocol.Recipe, got 'epochs=2'"),
        ({"training_threat": 5}, "training_threat must be a dmlbench.core.protocol.TrainingThr"),
        ({"labels": [[1], [2, 3], [1], [2]]}, "labels of images must be one number or text for"),
        ({"train": np.zeros((4, 8, 8))}, "train must be a pair (images, labels)"),
        ({"gallery": np.zeros((4, 8, 8))}, "gallery must be a pair (images, labels)"),
        ({"positives": np.zeros((4, 1))}, "go with a gallery"),
        (GALLERY | {"sources": ([1] * 4,)}, "sources must be a pair (of images, of the gallery)"),
        (GALLERY | {"sources": (1, 2)}, "4 query images need as many sources, got 1"),
        (GALLERY | {"sources": ([1] * 4, [[1], [2, 3]])}, "sources must be one number or text for"),
        (GALLERY | {"sources": ([1] * 4, np.ones((4, 1)))}, "sources must be one number or text"),
        (GALLERY | {"positives": [3, 1, 2, 0]}, "positives must be a list of gallery positions"),
        (GALLERY | {"positives": 3}, "positives must be a list of gallery positions"),
    ],
)
def test_wrong_arguments_of_from_arrays(changed: dict[str, Any], words: str) -> None:
    right: dict[str, Any] = {"images": np.zeros((4, 8, 8), np.uint8), "labels": [0, 0, 1, 1]}
    with pytest.raises(dml.UserError, match=re.escape(words)):
        dml.from_arrays(**right | changed)


def test_a_radius_may_be_a_fraction_in_words_or_of_numpy() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    made = [
        dml.from_arrays(images, [0, 0, 1, 1], eps=eps).protocol.threat.eps  # type: ignore[arg-type]
        for eps in (8 / 255, "8/255", np.float64(8 / 255))
    ]
    assert len(set(made)) == 1
    assert all(type(one) is float for one in made)


def test_what_the_caller_writes_into_its_array_later_changes_nothing() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    made, before = dml.from_arrays(pixels, [0, 0, 1, 1]), pixels.copy()
    pixels[:] = 0
    assert np.array_equal(made.load(None).test.images[:, 0], before)


class TwoLayers(nn.Module):
    """Uses its second layer in training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(64, 4), nn.Linear(64, 4)])
        self.used = 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers[self.used](images.flatten(1))
        return found


class OwnTrain(TwoLayers):
    def train(self, mode: bool = True) -> OwnTrain:
        self.used = int(mode)
        return super().train(mode)


class OwnEval(TwoLayers):
    def eval(self) -> OwnEval:
        self.used = 0
        return super().eval()


@pytest.mark.parametrize("kind", [OwnTrain, OwnEval])
def test_a_network_is_measured_as_its_own_eval_leaves_it(
    kind: type[TwoLayers], small: Dataset
) -> None:
    asked: dict[str, Any] = {"dataset": small, "attacks": "tma", "progress": False}
    reference, network = dml.evaluate(kind().eval(), **asked), kind()
    found = dml.evaluate(network, **asked)
    assert (found["mAP"], found["TMA"]) == (reference["mAP"], reference["TMA"])
    assert (network.used, network.training) == (1, True)  # a copy was measured


def test_defaults_that_the_caller_has_set_change_nothing(net: nn.Module, small: Dataset) -> None:
    asked: dict[str, Any] = {"dataset": small, "attacks": "es", "progress": False}
    reference = dml.evaluate(net, **asked)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        found = dml.evaluate(net, **asked)
        assert (torch.get_default_dtype(), torch.ones(1).device.type) == (torch.float64, "meta")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    with torch.device("meta"):
        inside = dml.evaluate(net, **asked)
    assert torch.ones(1).device.type == "cpu"
    assert inside["ES:D"] == reference["ES:D"]
    assert (found["R@1"], found["ES:D"]) == (reference["R@1"], reference["ES:D"])


def test_images_in_half_precision_are_those_of_8_bits() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    half = (torch.from_numpy(pixels).float() / 255).half()
    made = dml.from_arrays(half, [0, 0, 1, 1])
    assert np.array_equal(made.load(None).test.images[:, 0], pixels)


def test_numbers_of_numpy_are_those_of_python(net: nn.Module, small: Dataset) -> None:
    given = CandidateUp(eps=np.float64(8 / 255), alpha=np.float32(0.25), steps=np.int64(2))
    report = dml.evaluate(net, small, attacks=given, progress=False)
    (spelt,) = {one["attack"] for one in report.records} - {""}
    assert spelt == "ca+:alpha=0.25,steps=2"  # the usual eps


@pytest.mark.parametrize(
    ("component", "words"),
    [
        (HardnessManipulation(reuse="false"), "hm: reuse must be bool, got 'false'"),  # type: ignore[arg-type]
        (HardnessManipulation(reuse=1), "hm: reuse must be bool, got 1"),  # type: ignore[arg-type]
        (HardnessManipulation(eta=True), "hm: eta must be int >= "),
        (Turned(sign=-1.0), "turned: sign cannot be set: write it as a parameter"),
        (Margin(beyond=True), "margin: beyond cannot be set"),
    ],
)
def test_values_that_no_spec_can_give_are_refused(component: Component, words: str) -> None:
    """Their numbers would be stored as those of another value."""
    registry: Registry[Any] = ATTACKS if isinstance(component, Attack) else DEFENSES
    with pytest.raises(dml.UserError, match=re.escape(words)):
        parse_all([component], registry)
    for honest in (Honest(), Honest(w=3), Honest(kind=1)):
        assert parse_all([honest], ATTACKS)[0] is honest
    if isinstance(component, Turned):
        assert parse_all([Turned()], registry) == [Turned()]
        refused(Turned, "parameters", "sign can be set in Python alone, and numbers of two values")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": lambda x: x}, "model must be a torch.nn.Module, a file of weights, or a spec"),
        ({"dataset": [1, 2]}, "what dmlbench.from_arrays(images, labels) makes"),
        ({"mean": 0.5, "std": 0.5}, "mean and std must be one number per channel each, got 0.5"),
        ({"mean": [104], "std": [1]}, "divide both by 255 if yours are of 0..255"),
        ({"mean": [0.5], "std": [0]}, "std above 0"),
        ({"metric": "cosine"}, "metric must be one of N, E, C, got 'cosine'"),
        ({"network": "lenet"}, "network= is for a checkpoint"),
        ({"model": nn.Identity}, "got type: make a network of the class Identity"),
        ({"dataset": np.zeros(3)}, "what dmlbench.from_arrays(images, labels) makes"),
        ({"label": 5}, "label must be a text that can be seen, got 5"),
        ({"label": " "}, "label must be a text that can be seen, got ' '"),
        ({"label": "a\nb"}, "has a control character, such as a tab or a line end"),
        ({"mean": [0.5] * 3, "std": [1] * 3}, "they have 3 and 3, the images 1 channels"),
        ({"attacks": {"es": 2}}, "attacks must be a name or a list of names, got {'es': 2}"),
        ({"dataset": "tests"}, "the images of a folder are folder:root=tests"),
        ({"model": "mine.onnx"}, "wrap it in a torch.nn.Module"),
    ],
)
def test_wrong_arguments_of_evaluate(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(dml.UserError, match=re.escape(words)):
        dml.evaluate(**{"model": own_network(), "progress": False} | changed)


def test_a_set_without_images_to_train_on_says_so(tmp_path: Path) -> None:
    data = dml.from_arrays(np.arange(256, dtype=np.uint8).reshape(4, 8, 8), [0, 0, 1, 1])
    with pytest.raises(dml.UserError, match="no images to train on: give it some"):
        dml.train("none", data, results=tmp_path, progress=False)
