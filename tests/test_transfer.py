"""Transfer: the images of another model, its place and digest, and models that are unfit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from dmlbench import testing
from dmlbench.attacks.base import ATTACKS, Gallery
from dmlbench.attacks.top1 import Margin, TopOneAttack
from dmlbench.attacks.transfer import Source
from dmlbench.common.errors import CellError, UserError
from dmlbench.common.hashing import identity
from dmlbench.compute.embedding import EmbeddingModel, embed, on_device
from dmlbench.core import spec
from dmlbench.core.protocol import Threat
from dmlbench.datasets.base import RetrievalData
from dmlbench.models.base import parse_model
from dmlbench.storage.checkpoint import save_weights
from dmlbench.sweep import plan
from dmlbench.sweep.requests import parse_attacks
from tests.masks import Wrapped

THREAT = Threat(eps=0.1, alpha=0.03, steps=6)
NETWORK = "c2f2:dim=8"
CERTIFIED = "certified:samples=20,draws=2,judges=10"


def network(seed: int) -> EmbeddingModel:
    torch.manual_seed(seed)
    return on_device(parse_model(NETWORK).build(1, 8), torch.device("cpu")).eval()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_weights(tmp_path / "source.safetensors", network(1))
    return tmp_path / "source.safetensors"


def transfer(weights: Path, more: str = "") -> Any:
    quoted = f'transfer:from={weights},network="{NETWORK}"{more}'
    return spec.parse(quoted, ATTACKS)


def gallery_of(model: EmbeddingModel, images: torch.Tensor, tiny: RetrievalData) -> Gallery:
    with torch.no_grad():
        e = embed(model, images)
    return Gallery(
        e, torch.from_numpy(tiny.test.labels), model.metric, images=lambda index: images[index]
    )


@pytest.mark.parametrize(
    ("more", "by"),
    [
        ("", "margin:optimizer=apgd"),
        (',by="qa+:m=2",steps=3', "qa+:m=2,steps=3,optimizer=apgd"),
        (',by="es",alpha=0.02,bits=32', "es:alpha=0.02,optimizer=apgd"),
        (",of=item,optimizer=pgd", "margin:of=item"),
        (',by="margin:restarts=2",eps=0.05', "margin:restarts=2,eps=0.05,optimizer=apgd"),
        (f',by="{CERTIFIED}",norm=l2,eps=2,steps=3', f"{CERTIFIED},eps=2,steps=3"),
    ],
)
def test_it_is_the_attack_on_the_other_model_shown_to_this_one(
    more: str, by: str, weights: Path, images: torch.Tensor, tiny: RetrievalData
) -> None:
    target, other, index = network(0), network(1), torch.arange(40)
    gallery, seen = (gallery_of(one, images, tiny) for one in (target, other))
    attack = transfer(weights, more).resolve(THREAT)
    found = attack.run(target, images, index, gallery, seed=4)
    source = spec.parse(by, ATTACKS).resolve(THREAT)
    if isinstance(source, TopOneAttack):
        source = replace(source, beyond=True)  # it stops nowhere
        seen = replace(seen, under_test=gallery)  # of=item: this model's top-1
    made = source.run(other, images, index, seen, seed=4).perturbed
    right = attack.goal(gallery, index, 4).first(gallery.embeddings) > 0
    by_hand = torch.where(right.view(-1, 1, 1, 1), made.images, images)
    assert torch.equal(found.perturbed.images, by_hand)
    e = embed(target, by_hand).detach()
    assert torch.equal(found.outcomes["Transfer"], attack.goal(gallery, index, 4).first(e))
    assert (found.outcomes["Transfer"] < found.clean["Transfer"]).any()
    assert found.perturbed.passes == made.passes
    assert attack.most_passes == source.most_passes


@pytest.mark.parametrize("more", ["", ",by=knn", ",by=top1", ",of=item"])
def test_a_query_that_the_other_model_gets_wrong_is_perturbed_too(
    more: str, weights: Path, images: torch.Tensor, tiny: RetrievalData
) -> None:
    """The same images of other classes are all wrong for the other model, and it goes on."""
    target, index = network(0), torch.arange(40)
    gallery = gallery_of(target, images, tiny)
    attack = transfer(weights, more).resolve(THREAT)
    seen = gallery_of(network(1), images, tiny)
    wrong = ~seen.recall_at_1(seen.embeddings, index).bool()
    right = attack.goal(gallery, index, 4).first(gallery.embeddings) > 0
    assert (wrong & right).any()
    shown = attack.run(target, images, index, gallery, seed=4).perturbed.images
    moved = (shown - images).abs().amax((1, 2, 3))
    assert (moved[right] > 0.5 * THREAT.eps).all()
    assert (moved[~right] == 0).all()


def test_of_item_goes_for_the_top1_of_the_model_under_test(
    weights: Path, images: torch.Tensor, tiny: RetrievalData, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery, index, goals = gallery_of(network(0), images, tiny), torch.arange(40), []
    make = Margin.goal
    monkeypatch.setattr(Margin, "goal", lambda *a, **k: goals.append(make(*a, **k)) or goals[-1])
    attack = transfer(weights, ",of=item").resolve(THREAT)
    attack.run(network(0), images, index, gallery, seed=4)
    top = gallery.nearest(index, 1)[:, 0]
    assert torch.equal(goals[-1].item, top)
    assert not torch.equal(gallery_of(network(1), images, tiny).nearest(index, 1)[:, 0], top)


@pytest.mark.parametrize(("more", "alpha"), [("", 0.01), (",alpha=0.05", 0.05)])
def test_a_step_that_is_not_given_is_that_of_the_attack_on_the_other_model(
    more: str, alpha: float, weights: Path
) -> None:
    """Of uap eps / 10, and not the data set's step."""
    attack = transfer(weights, f",by=uap,optimizer=pgd,steps=7{more}").resolve(THREAT)
    assert attack.attack.alpha == attack.alpha == pytest.approx(alpha)


def test_a_masked_gradient_of_the_other_model_is_not_held_against_this_one(
    weights: Path, images: torch.Tensor, tiny: RetrievalData, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked = EmbeddingModel(Wrapped(network(1).backbone, before=lambda x: x.detach()), "N")
    masked.eval().requires_grad_(False)
    monkeypatch.setattr(Source, "load", lambda self, images: masked)
    gallery, attack = gallery_of(network(0), images, tiny), transfer(weights).resolve(THREAT)
    run = attack.run(network(0), images, torch.arange(40), gallery, seed=0)
    assert not run.perturbed.flat_start.any()
    seen, margin = gallery_of(masked, images, tiny), attack.attack
    assert margin.run(masked, images, torch.arange(40), seen, seed=0).perturbed.flat_start.any()


def test_its_identity_is_the_weights_and_the_attack_on_them(weights: Path, tmp_path: Path) -> None:
    def facts(attack: Any) -> dict[str, Any]:
        (planned,) = plan.planned_attacks([attack], THREAT)
        assert str(tmp_path) not in json.dumps([planned.facts, planned.about])
        return planned.facts

    moved = tmp_path / "elsewhere" / "w.safetensors"
    moved.parent.mkdir()
    shutil.copy(weights, moved)
    here = identity(facts(transfer(weights)))
    assert here == identity(facts(transfer(moved)))
    assert here == identity(facts(transfer(weights, ",by=margin")))
    save_weights(moved, network(2))
    others = [transfer(moved), transfer(weights, ",by=dlr"), transfer(weights, ",optimizer=pgd")]
    others.append(transfer(weights, ',by="margin:of=item"'))
    assert len({here, *(identity(facts(one)) for one in others)}) == 5
    (planned,) = plan.planned_attacks([transfer(moved)], THREAT)
    assert planned.about["attack"].startswith("transfer:from=w@")
    run = spec.canonical(planned.attack)  # what `run --config` reads again
    assert spec.parse(run, ATTACKS).resolve(THREAT) == planned.attack


def test_models_that_are_missing_or_unfit_are_named(
    weights: Path, tmp_path: Path, images: torch.Tensor, tiny: RetrievalData
) -> None:
    for text, said in (
        ("transfer", "name from=..., the model"),
        (f"transfer:from={weights},restarts=2", 'by="margin:restarts=5"'),
    ):
        with pytest.raises(UserError, match=said):
            spec.parse(text, ATTACKS)
    for text, said in (
        ("transfer:from=nowhere", "transfer: from: checkpoint nowhere does not exist"),
        (f"transfer:from={tmp_path}", "folder without a manifest.json"),
        (f"transfer:from={weights}", "add network=SPEC"),
        (f"transfer:from={weights},network=c2f3", "unknown model 'c2f3'"),
        (f"transfer:from={weights},network=c2f2,by=square", "follows a gradient"),
        (
            f'transfer:from={weights},network=c2f2,by="es:eps=0.1"',
            "eps is a key of transfer itself",
        ),
        (
            f'transfer:from={weights},network=c2f2,by="margin:bits=8"',
            "bits is a key of transfer itself",
        ),
        (
            f"transfer:from={weights},network=c2f2,by=certified",
            "by=certified: certified: norm must be l2, got 'linf'",
        ),
        (f"transfer:from={weights},network=c2f2,by=ca+", "perturbs no query"),
        (f"transfer:from={weights},network=c2f2,by=nothing", "unknown attack 'nothing'"),
    ):
        with pytest.raises(UserError, match=said):
            spec.parse(text, ATTACKS).resolve(THREAT)
    target, index = network(0), torch.arange(40)
    gallery = gallery_of(target, images, tiny)
    unfit = spec.parse(f"transfer:from={weights},network=c2f2", ATTACKS).resolve(THREAT)
    with pytest.raises(UserError, match="does not fit the model"):
        unfit.run(target, images, index, gallery, seed=0)
    replaced = transfer(weights).resolve(THREAT)
    save_weights(weights, network(2))
    with pytest.raises(UserError, match="was replaced during the run"):
        replaced.run(target, images, index, gallery, seed=0)
    blind = Gallery(gallery.embeddings, gallery.labels, "N")
    with pytest.raises(CellError, match="needs the images of the gallery"):
        transfer(weights).resolve(THREAT).run(target, images, index, blind, seed=0)


@pytest.mark.filterwarnings("ignore:.*loaded in their order")
def test_a_network_as_a_package_publishes_it_is_loaded_by_the_order_of_its_tensors(
    tmp_path: Path,
) -> None:
    torch.manual_seed(3)
    plain = parse_model("mobilenet_v2:head=own,weights=none").build(3, 32).backbone
    file = tmp_path / "package.pt"
    named = [
        (f"layer{i}.{k.rpartition('.')[2]}", x)
        for i, (k, x) in enumerate(plain.state_dict().items())
    ]
    torch.save(dict(named), file)
    spelt = f'transfer:from={file},network="mobilenet_v2:head=none"'
    source = spec.parse(spelt, ATTACKS).resolve(THREAT).source
    images = torch.rand(2, 3, 32, 32)
    direct = parse_model(f"mobilenet_v2:head=none,weights={file}").build(3, 32, initial=True)
    with torch.no_grad():
        expected, found = direct.eval()(images), source.load(images)(images)
    assert torch.allclose(found, expected, atol=1e-5)  # batch norms are folded
    spelt_with_fc = f'transfer:from={file},network="mobilenet_v2:weights={file}"'
    unfit = spec.parse(spelt_with_fc, ATTACKS).resolve(THREAT).source
    with pytest.raises(UserError, match=r"does not fit.*published, add head=none to network="):
        unfit.load(images)  # and is given no new layer at random
    torch.save(dict(reversed(named)), file)
    with pytest.raises(UserError, match="do not fit in order"):
        spec.parse(spelt, ATTACKS).resolve(THREAT).source.load(images)


def test_all_attacks_are_those_that_need_no_key() -> None:
    names = [attack.card.name for attack in parse_attacks(["all"], [])]
    assert "square" in names
    assert "transfer" not in names


@pytest.mark.slow
def test_it_conforms(weights: Path) -> None:
    torch.manual_seed(1)
    save_weights(weights, parse_model("c2f2").build(1, 8))
    testing.check(transfer(weights, "").__class__(from_=str(weights), network="c2f2"))


@pytest.mark.parametrize("suite", ["strict", "ers", "auto"])
@pytest.mark.parametrize("more", ["", ",optimizer=pgd", ",optimizer=apgd", ",by=es,optimizer=pgd"])
def test_a_written_spec_is_the_same_attack(weights: Path, suite: str, more: str) -> None:
    """A run file holds complete specs: read again, they must not follow another optimizer."""
    threat = replace(THREAT, suite=suite)
    once = transfer(weights, more).resolve(threat)
    again = once.resolve(threat)
    assert again == once
    assert again.facts == once.facts


def test_the_command_line(dmlbench: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    """From a model's folder to itself: the white-box attack."""
    trained = dmlbench("train", "--defense", "none", "--dataset", "tiny")
    assert trained.returncode == 0, trained.stderr
    (folder,) = (tmp_path / "results/models").iterdir()
    done = dmlbench(
        *("attack", "--checkpoint", f"results/models/{folder.name}", "--dataset", "tiny"),
        *("--attack", f"transfer:from=results/models/{folder.name}"),
        *("--attack", "margin:optimizer=apgd", "--json"),
    )
    assert done.returncode == 0, done.stderr
    cells = [json.loads(p.read_text()) for p in (tmp_path / "results/cells").glob("*.json")]
    value = {name: m["value"] for cell in cells for name, m in cell["metrics"].items()}
    assert value["Transfer"] == value["Margin"]
    (cell,) = (c for c in cells if c["facts"].get("attack") == "transfer")
    assert cell["about"]["attack"] == f"transfer:from={folder.name}"
    missing = dmlbench(
        *("attack", "--checkpoint", f"results/models/{folder.name}", "--dataset", "tiny"),
        *("--attack", "transfer:from=results/models/none"),
    )
    assert missing.returncode == 2
    error = "error: transfer: from: checkpoint results/models/none does not exist"
    assert [x for x in missing.stderr.splitlines() if not x.startswith("warning: ")] == [error]
