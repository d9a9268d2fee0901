"""The spec grammar: types, the canonical form, reading it back, and helpful errors."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from dmlbench.attacks.base import ATTACKS
from dmlbench.attacks.candidate import CandidateUp
from dmlbench.common.errors import UserError
from dmlbench.core import spec
from dmlbench.core.protocol import Recipe, Threat
from dmlbench.datasets.base import DATASETS
from dmlbench.defenses.base import DEFENSES
from dmlbench.defenses.hm import HardnessManipulation
from dmlbench.models.base import MODELS, FactoryModel, canonical_model, parse_model

REGISTRIES = [ATTACKS, DEFENSES, DATASETS, MODELS]


def domain(p: spec.Parameter) -> st.SearchStrategy[object]:
    """Values inside a parameter's domain."""
    low = p.bounds["at_least"] if p.bounds["above"] is None else p.bounds["above"]
    if p.choices:
        values: st.SearchStrategy[object] = st.sampled_from(p.choices)
    elif p.type is int:
        high = p.bounds["at_most"]
        values = st.integers(int(low or 0), 10**6 if high is None else int(high))
    elif p.type is float:
        high = p.bounds["at_most"]
        sixteenths = st.integers(1, 255).map(lambda n: n / 255)
        floats = st.floats(low, high, exclude_min=p.bounds["above"] is not None, allow_nan=False)
        values = floats.filter(lambda x: x < 1e300) | sixteenths
    elif p.type is bool:
        values = st.booleans()
    else:
        values = st.text(min_size=1)
    return st.none() | values if p.optional else values


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.kind)
@settings(max_examples=20)
@given(data=st.data())
def test_canonical_form_round_trips(registry: spec.Registry, data: st.DataObject) -> None:
    cls = registry.get(data.draw(st.sampled_from(registry.names())))
    chosen = {p.name: data.draw(domain(p), p.name) for p in spec.parameters(cls)}
    try:
        component = cls(**chosen)
    except ValueError:  # a rule between fields
        reject()
    text = spec.canonical(component)
    assert spec.parse(text, registry) == component
    assert spec.canonical(spec.parse(text, registry)) == text


@given(st.text())
def test_any_string_value_survives_quoting(value: str) -> None:
    p = spec.Parameter("root", str, False, None, "", dict.fromkeys(("above",)), (), False)
    p = dataclasses.replace(p, bounds={"above": None, "at_least": None, "at_most": None})
    pairs = spec.split_pairs(f"root={p.show(value)},x=1", "test")
    assert p.read(pairs["root"]) == value
    assert pairs["x"] == "1"


@given(st.text(alphabet='abz+-:=,/"\\ 019.e', max_size=30))
def test_nonsense_is_refused_in_one_line(text: str) -> None:
    message = ""
    try:
        spec.parse(text, ATTACKS)
    except UserError as error:
        message = str(error)
    assert "\n" not in message


def test_values_are_typed_and_may_be_fractions() -> None:
    attack = spec.parse("ca+:w=5,eps=77/255,alpha=1e-2", ATTACKS)
    assert attack == CandidateUp(w=5, eps=77 / 255, alpha=0.01)
    assert spec.canonical(attack) == "ca+:eps=77/255,alpha=0.01,w=5"
    assert spec.parse(" hm : source = random, ics=0 ".replace(" : ", ":"), DEFENSES) == (
        HardnessManipulation(source="random", ics=0.0)
    )


@pytest.mark.parametrize(
    ("text", "registry", "words"),
    [
        ("CA+", ATTACKS, ["names are lower case: 'ca+'"]),
        ("ca", ATTACKS, ["unknown attack 'ca'", "did you mean", "available: ca+, ca-"]),
        ("hmm", DEFENSES, ["did you mean 'hm'", "available: acap, act, amd, ca-tride, est, "]),
        (
            "ca+:q=1",
            ATTACKS,
            ["unknown key 'q'", "eps, alpha, steps, restarts, suite, optimizer, bits, norm, w"],
        ),
        ("hm:sorce=random", DEFENSES, ["did you mean 'source'"]),
        (
            "hm:source=rndom",
            DEFENSES,
            ["did you mean 'random'", "random, semihard, softhard, distance, hardest"],
        ),
        ("ca+:w=1,w=2", ATTACKS, ["w is given twice"]),
        ("ca+:w", ATTACKS, ["expected key=value"]),
        ("ca+:w=", ATTACKS, ["expected key=value"]),
        ("ca+:", ATTACKS, []),
        ("ca+:eps=-1", ATTACKS, ["eps must be float >= 0 and <= 1", "-1"]),
        ("es:eps=8", ATTACKS, ["eps must be float >= 0 and <= 1, got 8: 8/255?"]),
        (
            "alpha=1/255",
            ATTACKS,
            ["has a key and no name: write NAME:KEY", "(in quotes where it has"],
        ),
        ("ca+:eps=2", ATTACKS, ["eps must be"]),
        ("ca+:eps=1/0", ATTACKS, ["must be a number or fraction, got '1/0'"]),
        ("ca+:eps=nan", ATTACKS, ["finite"]),
        ("ca+:steps=0", ATTACKS, ["steps must be int >= 1, got 0"]),
        ("ca+:steps=1.5", ATTACKS, ["must be a whole number, got '1.5'"]),
        ("ca+:w=0", ATTACKS, ["w must be int >= 1, got 0"]),
        (f"ca+:w={2**63 - 1}", ATTACKS, []),
        (f"ca+:w={2**63}", ATTACKS, ["w must be smaller than 2^63"]),
        ("hm:eta=0", DEFENSES, ["eta must be int >= 1"]),
        ("act:ics=0.5", DEFENSES, ["adversarial anchor", "only HM has"]),
        ("hm:eps=1e999999999", DEFENSES, ["finite"]),
        ("fashion:x=1", DATASETS, ["there are none"]),
        ("c2f2:metric=X", MODELS, ["metric must be one of N, E, C"]),
    ],
)
def test_errors_name_the_mistake_and_the_remedy(
    text: str, registry: spec.Registry, words: list[str]
) -> None:
    if not words:
        spec.parse(text, registry)
        return
    with pytest.raises(UserError) as caught:
        spec.parse(text, registry)
    for word in words:
        assert word in str(caught.value)


def test_shortest_spelling_leaves_out_what_the_card_fills_in() -> None:
    threat = Threat(eps=77 / 255, alpha=3 / 255, steps=32)
    for text, expected in [
        ("ca+", "ca+"),
        ("ca+:eps=77/255,steps=32", "ca+"),
        ("ca+:steps=1", "ca+:steps=1"),  # its alpha is eps, as FGSM's always is
        ("ca+:steps=1,alpha=3/255", "ca+:alpha=3/255,steps=1"),
    ]:
        resolved = spec.parse(text, ATTACKS).resolve(threat)
        assert spec.shortest(resolved, lambda a: a.resolve(threat)) == expected


def test_recipes_read_the_same_grammar() -> None:
    assert spec.build(Recipe, spec.split_pairs("epochs=2,lr=1e-4", "recipe"), "recipe") == Recipe(
        epochs=2, lr=1e-4
    )
    with pytest.raises(UserError, match="recipe: epochs must be int >= 1"):
        spec.build(Recipe, {"epochs": "0"}, "recipe")


def test_any_factory_is_a_model() -> None:
    text = "torch.nn:Linear:metric=C,in_features=3,out_features=4"
    model = parse_model(text)
    assert canonical_model(model) == text
    assert parse_model(canonical_model(model)) == model
    assert model.metric == "C"
    assert tuple(model.backbone(1, 8).weight.shape) == (4, 3)
    assert parse_model("c2f2:metric=E") == spec.parse("c2f2:metric=E", MODELS)


def test_facts_of_a_factory_are_what_a_manifest_gives_back(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("def make(widths):\n    return widths\n")
    model = parse_model(f'{tmp_path / "nets.py"}:make:widths="(8, (4, 2))"')
    assert isinstance(model, FactoryModel)
    assert model.facts == json.loads(json.dumps(model.facts))
    assert model.arguments == (("widths", (8, (4, 2))),)  # the factory gets its tuple


WORDS = st.text() | st.text(alphabet="\"'\\,[]{}=:5 \t")
SCALARS = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | WORDS
SCALARS |= st.floats(-(2.0**62), 2.0**62)


@given(
    st.recursive(
        SCALARS,
        lambda x: st.lists(x) | st.lists(x).map(tuple) | st.dictionaries(WORDS, x),
        max_leaves=5,
    )
)
def test_any_argument_of_a_factory_round_trips(value: object) -> None:
    model = FactoryModel(path="torch.nn:Linear", arguments=(("x", value), ("y", 1)))
    read = parse_model(canonical_model(model))
    assert read == model
    assert canonical_model(read) == canonical_model(model)


@pytest.mark.parametrize(
    ("text", "value", "again"),
    [
        ("32", 32, "32"),
        ("'32'", "32", "'32'"),
        ('"32"', "32", "'32'"),
        ('"None"', "None", "'None'"),
        ("[32]", [32], "[32]"),
        ('"[32, 64]"', [32, 64], '"[32, 64]"'),
        ("\"{'a': (1, 2)}\"", {"a": (1, 2)}, "\"{'a': (1, 2)}\""),
        ("{[1]}", "{[1]}", "{[1]}"),
        ('""', "", '""'),
        ('"a,b"', "a,b", '"a,b"'),
        ('"a"', "a", "a"),
        ("C:\\dir", "C:\\dir", "C:\\dir"),
        ('"C:\\\\dir,1"', "C:\\dir,1", '"C:\\\\dir,1"'),
    ],
)
def test_an_argument_of_a_factory_is_a_literal_or_text(
    text: str, value: object, again: str
) -> None:
    model = parse_model(f"torch.nn:Linear:x={text}")
    assert isinstance(model, FactoryModel)
    assert model.arguments == (("x", value),)
    assert canonical_model(model) == f"torch.nn:Linear:x={again}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no_such_module:make", "No module named"),
        ("torch.nn:Nothing", "no attribute"),
        ("torch.nn:Linear:width=3", "missing a required argument|unexpected keyword"),
        ("math:sqrt", "has no Python source"),
        ("sys:exit", "has no Python source"),
        ("os:_exit:status=0", "has no Python source"),
        ("builtins:print", "has no Python source"),
        ("torch.nn:Flatten:start_dim=1e999", "start_dim must be text, a finite number"),
        (f"torch.nn:Flatten:start_dim={2**63}", "start_dim must be text, a finite number"),
        ("torch.nn:Flatten:start_dim=1j", "start_dim must be text, a finite number"),
        ("builtins:dict", "torch.nn.Module|no signature"),
        ("torch.nn:Linear:in_features=3,out_features=2", "cannot embed 1x8x8 images: "),
        ("torch.nn:LSTM:input_size=8,hidden_size=4", "cannot embed 1x8x8 images"),
        ("c2f2:dim=99999999999999", "cannot embed 1x8x8 images"),
        ("lenet", "at least 16x16 pixels"),
        ("lenet:dim", "expected key=value"),
    ],
)
def test_a_bad_network_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_model(text).build(1, 8, initial=True)
    assert "\n" not in str(caught.value)


def test_a_factory_is_known_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = tmp_path / "dmlbench_test_net.py"
    source.write_text("from torch import nn\ndef make(width): return nn.Linear(width, 2)\n")
    model = parse_model("dmlbench_test_net:make:width=3")
    before = model.facts
    assert before["arguments"] == {"width": 3}
    source.write_text(source.read_text() + "# another network\n")
    with pytest.raises(UserError, match=r"changed after it was imported: start Python again"):
        _ = parse_model("dmlbench_test_net:make:width=3").facts  # the old code is what runs here
    assert model.facts == before
    importlib.reload(sys.modules["dmlbench_test_net"])
    again = parse_model("dmlbench_test_net:make:width=3")
    assert again.facts["source"] != before["source"]


@pytest.mark.parametrize("text", ["nes:sigma=8/255", "ca+:eps=4/255", "es:alpha=1/255"])
def test_a_length_in_pixels_is_printed_in_grey_levels(text: str) -> None:
    assert spec.shown(spec.parse(text, ATTACKS)) == text
