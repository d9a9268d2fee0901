"""Components by module and by file: loaded, named, refused in a line, known by their source."""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dmlbench.attacks.base import ATTACKS, RESERVED
from dmlbench.attacks.candidate import CandidateUp
from dmlbench.common.errors import UserError
from dmlbench.core import reference, sources, spec
from dmlbench.core.protocol import Threat
from dmlbench.datasets.base import DATASETS
from dmlbench.defenses.base import DEFENSES
from dmlbench.metrics.names import CLEAN, ERS, EXTERNAL, WORST
from dmlbench.models.base import MODELS, FactoryModel, canonical_model, parse_model, shown_model
from dmlbench.sweep.plan import planned_attacks
from tests.outside import ATTACK, DATASET, DEFENSE

pytestmark = pytest.mark.usefixtures("registries")

THREAT = Threat(eps=0.1, alpha=0.05, steps=4)
BARE = ATTACK.replace("@ATTACKS.register\n", "").replace(", PAPER)", ")")
NETWORK = """
from dataclasses import dataclass
from torch import nn
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.models.base import Model

@dataclass(frozen=True, kw_only=True)
class Flat(Model):
    card = Card("flat", "one layer")
    dim: int = parameter(4, "embedding dimension", at_least=1)

    def backbone(self, channels: int, size: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, self.dim))

def make(dim=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, dim))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a file of each kind."""
    monkeypatch.chdir(tmp_path)
    sub = tmp_path / "sub"
    sub.mkdir()
    files = {"towards.py": BARE, "near.py": DEFENSE, "stripes.py": DATASET, "nets.py": NETWORK}
    for name, code in files.items():
        (tmp_path / name).write_text(code)
        (sub / name).write_text(code)
    return tmp_path


def test_a_network_that_a_factory_returns_again_is_copied(folder: Path) -> None:
    """It may be in use elsewhere: training it in place would give the next model its weights."""
    Path("shared.py").write_text(NETWORK + "\nNET = make()\ndef get():\n    return NET\n")
    first, second = (parse_model("shared.py:get").build(1, 8) for _ in range(2))
    before = second.backbone[1].weight.clone()
    assert torch.equal(first.backbone[1].weight, before)
    with torch.no_grad():
        first.backbone[1].weight.zero_()
    assert torch.equal(second.backbone[1].weight, before)
    assert torch.equal(parse_model("shared.py:get").build(1, 8).backbone[1].weight, before)


def test_a_network_that_cannot_be_copied_is_taken_if_it_is_a_new_one(folder: Path) -> None:
    bad = (
        NETWORK
        + "\ndef hard(net):\n    net.lock = __import__('threading').Lock()\n    return net\n"
    )
    Path("hard.py").write_text(f"{bad}\nNET = hard(make())\ndef get():\n    return NET\n"
                               "def new():\n    return hard(make())\n")  # fmt: skip
    assert parse_model("hard.py:new").build(1, 8).backbone[1].weight.numel()
    with pytest.raises(UserError, match="cannot be copied"):
        parse_model("hard.py:get").build(1, 8)


def test_the_place_ends_at_the_second_colon() -> None:
    Reference = reference.Reference  # noqa: N806
    assert reference.read("a.b:C") == (Reference("a.b", "C"), None)
    assert reference.read(" a.b:C:x=1,y=2:3 ") == (Reference("a.b", "C"), "x=1,y=2:3")
    assert reference.read("./x/a b.py:C") == (Reference("x/a b.py", "C"), None)
    assert reference.read(r"C:\x\a.py:C:r=b.py:D") == (Reference(r"C:\x\a.py", "C"), "r=b.py:D")
    for text in ("ca+", "ca+:w=5", "folder:root=a.py:B", "a.py", "a-b:C", "a:b.c", ":C", "a:"):
        assert reference.read(text) is None, text


@pytest.mark.parametrize(
    ("text", "registry", "shown"),
    [
        ("towards.py:TowardsAttack:steps=8,eps=8/255", ATTACKS, "towards:eps=8/255,steps=8"),
        ("sub/near.py:NearNegatives:sampler=hardest", DEFENSES, "near:sampler=hardest"),
        ("stripes.py:Stripes:noise=20", DATASETS, "stripes:noise=20"),
        ("nets.py:Flat:metric=E,dim=5", MODELS, "flat:metric=E,dim=5"),
    ],
)
def test_a_file_is_read_named_and_sent_to_other_processes(
    text: str, registry: spec.Registry[Any], shown: str, folder: Path
) -> None:
    component = spec.parse(text, registry)
    canonical = spec.canonical(component)
    assert spec.parse(canonical, registry) == component
    assert canonical == text.replace("steps=8,eps=8/255", "eps=8/255,steps=8")
    assert spec.shown(component) == shown
    assert pickle.loads(pickle.dumps(component)) == component
    path = folder / text.partition(":")[0]
    known = reference.origin(type(component))
    assert known is not None
    assert known.path == path.resolve()


def test_another_process_elsewhere_loads_the_same_file_or_says_that_it_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = spec.parse("towards.py:TowardsAttack:steps=8", ATTACKS)
    sent = pickle.dumps(attack)
    name = type(attack).__module__

    def forget() -> None:  # as if this were a process that has loaded nothing
        reference._origins.clear()
        ATTACKS._classes.pop("towards", None)
        for module in [m for m in sys.modules if m.startswith("dmlbench_file_")]:
            del sys.modules[module]

    forget()
    monkeypatch.chdir(folder / "sub")
    arrived = pickle.loads(sent)
    assert type(arrived) is not type(attack)
    assert type(arrived).__module__ == name
    assert spec.canonical(arrived) == "towards.py:TowardsAttack:steps=8"
    forget()
    (folder / "towards.py").write_text(BARE + "\n# changed\n")
    with pytest.raises(UserError, match="was changed during the run: run again"):
        pickle.loads(sent)


def test_the_source_is_part_of_the_identity_of_what_is_not_registered(folder: Path) -> None:
    attack = spec.parse("towards.py:TowardsAttack", ATTACKS)
    (planned,) = planned_attacks([attack], THREAT)
    assert planned.facts["attack"] == "towards"
    assert planned.facts["attack_version"] == 1
    assert planned.about["attack"] == "towards"
    assert planned.about["attack_resolved"].startswith("towards:eps=")
    (folder / "towards.py").write_text(BARE + "\n# changed\n")
    again = spec.parse("towards.py:TowardsAttack", ATTACKS)  # in one process, e.g. a notebook
    (changed,) = planned_attacks([again], THREAT)
    assert changed.facts.keys() == planned.facts.keys()
    assert changed.facts["attack_source"] != planned.facts["attack_source"]
    flat = parse_model("nets.py:Flat")
    assert len(flat.facts["source"]) == 64
    assert (flat.facts["name"], flat.facts["version"]) == ("flat", 1)
    assert (canonical_model(flat), shown_model(flat)) == ("nets.py:Flat", "flat")


def test_what_is_registered_is_known_by_its_name_however_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = Path(sys.modules["dmlbench.attacks.candidate"].__file__ or "")
    for text in ("dmlbench.attacks.candidate:CandidateUp:w=5", f"{file}:CandidateUp:w=5"):
        attack = spec.parse(text, ATTACKS)
        assert attack == CandidateUp(w=5)
        assert spec.canonical(attack) == "ca+:w=5"
        assert "attack_source" not in planned_attacks([attack], THREAT)[0].facts


@pytest.mark.parametrize("decorator", ["@ATTACKS.register\n", ""])
def test_a_decorator_in_a_file_makes_no_difference(decorator: str, folder: Path) -> None:
    other = BARE.replace("TowardsAttack(", "Other(").replace("towards", "other")
    other = other.replace("TOW:D", "OTHER")
    text = "@dataclass(frozen=True, kw_only=True)\nclass "
    code = (BARE + other).replace(text, decorator + text)
    code = code.replace("from __future__ import annotations\n", "")
    (folder / "two.py").write_text(code)
    for name in ("TowardsAttack", "Other"):
        attack = spec.parse(f"two.py:{name}", ATTACKS)
        assert spec.canonical(attack) == f"two.py:{name}"


def test_a_factory_may_be_in_a_file(folder: Path) -> None:
    model = parse_model("sub/nets.py:make:dim=7")
    assert isinstance(model, FactoryModel)
    assert canonical_model(model) == shown_model(model) == "sub/nets.py:make:dim=7"
    assert tuple(model.backbone(1, 8)[1].weight.shape) == (7, 64)  # type: ignore[index]


def test_a_module_that_was_edited_after_its_import_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first look already: this process runs the old code, and would store it as the new."""
    file = folder / "edited.py"
    text = "import functools\n\ndef make(dim=4):\n    return dim\n\nclass A:\n"
    text += "    @property\n    def b(self):\n        return 1\n    @staticmethod\n    def c():\n"
    text += "        return [x for x in (1, 2)]\n    class D:\n        def e(self):\n"
    text += "            return float('nan'), 1e999 - 1e999, 3 in {1, 2}\n"
    text += "    @functools.cached_property\n    def f(self):\n        return 4\n"
    text += "@functools.cache\n@functools.wraps(make)\ndef g():\n    pass\n"
    text += "from unittest.mock import call\nclass Proxy:\n    def __getattr__(self, name):\n"
    text += "        raise RuntimeError(name)\nproxy = Proxy()\nw = '\\\\d'\n"
    text += "A.me, A.other, Proxy.other = A, Proxy, A\n"
    changes = [("return dim", "return -dim"), ("return 1", "return 2"), ("(1, 2)", "(1, 3)")]
    changes += [("3 in", "4 in"), ("return 4", "return 5"), ("dim=4", "dim=4, e=3")]
    for number, (old, new) in enumerate([("", ""), *changes]):
        file = folder / f"edited{number}.py"
        file.write_text(text)
        monkeypatch.syspath_prepend(folder)  # so that the new file is seen
        make = importlib.import_module(file.stem).make
        file.write_text(text.replace(old, new) if old else f"# no other code\n{text}")
        if not old:
            assert sources.digest(make)
            continue
        with pytest.raises(
            UserError, match=rf"{file.name} was changed after it was imported: start"
        ):
            sources.digest(make)


@pytest.mark.parametrize("word", ["false", "TRUE"])
def test_a_mistyped_false_is_warned_of(folder: Path, word: str) -> None:
    """It stays a text: manifests and tables have it."""
    (folder / "flags.py").write_text("def make(flag=None):\n    return flag\n")
    said = rf"flag={word} is a text, which counts as true; .* is flag={word.capitalize()}$"
    with pytest.warns(UserWarning, match=said):
        model = parse_model(f"flags.py:make:flag={word}")
    assert isinstance(model, FactoryModel)
    assert dict(model.arguments) == {"flag": word}
    for text, value in (("False", False), ("None", None), ("none", "none")):  # no warning
        model = parse_model(f"flags.py:make:flag={text}")
        assert isinstance(model, FactoryModel)
        assert dict(model.arguments) == {"flag": value}
        assert canonical_model(model) == f"flags.py:make:flag={text}"


def test_the_code_of_a_network_stays_as_it_is_while_a_run_goes_on(folder: Path) -> None:
    """Another process of the run, which reads the file again, refuses another code."""
    file = folder / "sub" / "nets.py"
    model = parse_model("sub/nets.py:make:dim=7")
    before = model.facts
    sent = pickle.dumps(model)
    assert model.facts == pickle.loads(sent).facts == before
    file.write_text(file.read_text().replace("64", "32"))
    assert tuple(model.backbone(1, 8)[1].weight.shape) == (7, 64)  # type: ignore[index]
    assert model.facts == before
    with pytest.raises(
        UserError, match=r"code of model sub/nets\.py:make has changed since the run"
    ):
        pickle.loads(sent).backbone(1, 8)
    again = parse_model("sub/nets.py:make:dim=7")
    assert again.facts["source"] != before["source"]
    assert tuple(again.backbone(1, 8)[1].weight.shape) == (7, 32)  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "change", "words"),
    [
        ("absent.py:A", None, ["there is no file absent.py in", "where dmlbench was started"]),
        ("towards.py", None, ["name the class in that file too, towards.py:ClassName"]),
        ("towards.py:TowardAttack", None, ["no attribute", "did you mean 'TowardsAttack'"]),
        ("towards.py:Towards", None, ["must be a dataclass that derives from"]),
        ("towards.py:PAPER", None, ["must be a dataclass that derives from"]),
        ("near.py:NearNegatives", None, ["it is no attack: it lacks columns, goal"]),
        ("hmm:foo", None, ["unknown attack 'hmm'", "No module named 'hmm'"]),
        ("no.such.module:A", None, ["No module named"]),
        ("towards.py:TowardsAttack:stps=3", None, ["unknown key 'stps'", "did you mean 'steps'"]),
        ("towards.py:TowardsAttack:steps=0", None, ["towards.py:TowardsAttack: steps must be int"]),
        ("towards.py:TowardsAttack:steps", None, ["expected key=value"]),
        (
            "towards.py:TowardsAttack",
            ('"towards"', '"ca+"'),
            ["'ca+' is registered twice: in ", "candidate.py:", "towards.py:"],
        ),
        ("towards.py:TowardsAttack", ('"towards"', '"To wards"'), ["lower-case letters"]),
        ("towards.py:TowardsAttack", ("TOW:D", "GTM"), ["'GTM' is that of the attack 'gtm'"]),
        ("towards.py:TowardsAttack", ("TOW:D", "R@1"), ["'R@1' is that of a metric"]),
        ("towards.py:TowardsAttack", ("def goal(", "def gaol("), ["abstract method", "goal"]),
        ("towards.py:TowardsAttack", ("columns =", "x ="), ["it lacks columns"]),
        ("towards.py:TowardsAttack", ("card = Card", "x = Card"), ["it has no card"]),
        ("towards.py:TowardsAttack", ("    target:", "   target:"), ["(towards.py, line"]),
        (
            "towards.py:TowardsAttack",
            ("PAPER =", "1 / 0\nPAPER ="),
            ["ZeroDivisionError: division by zero (line", "towards.py)"],
        ),
        ("towards.py:TowardsAttack", ("PAPER =", "raise SystemExit\nPAPER ="), ["SystemExit"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    text: str, change: tuple[str, str] | None, words: list[str], folder: Path
) -> None:
    if change:
        assert change[0] in BARE
        (folder / "towards.py").write_text(BARE.replace(*change))
    with pytest.raises(UserError) as caught:
        spec.parse(text, ATTACKS)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_two_files_with_one_name_are_refused(folder: Path) -> None:
    spec.parse("towards.py:TowardsAttack", ATTACKS)
    with pytest.raises(UserError, match=r"registered twice: in .*/towards.py.* and in .*/sub/"):
        spec.parse("sub/towards.py:TowardsAttack", ATTACKS)


def test_columns_of_the_benchmark_are_reserved() -> None:
    assert (*CLEAN, WORST, ERS, f"{EXTERNAL}:R@1") == RESERVED
