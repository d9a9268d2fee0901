"""UAP against a loop over single images, and what it is made on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dmlbench.attacks.base import ATTACKS, Gallery
from dmlbench.attacks.engine.targets import positions
from dmlbench.common.errors import CellError, UserError
from dmlbench.compute.embedding import EmbeddingModel
from dmlbench.core import spec
from dmlbench.core.protocol import Threat
from dmlbench.datasets.base import RetrievalData
from dmlbench.metrics.clustering import KMEANS_SEED, kmeans
from dmlbench.models.small import C2F2
from dmlbench.storage.checkpoint import save_weights
from dmlbench.testing.attack_subject import Subject

THREAT = Threat(eps=0.2, alpha=0.05, steps=8)


def attack_of(text: str) -> Any:
    return spec.parse(text, ATTACKS).resolve(THREAT)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(ATTACKS.get("uap")())


def run(attack: Any, s: Subject, rows: torch.Tensor | None = None, seed: int = 0) -> Any:
    index = torch.arange(40) if rows is None else rows
    gallery = replace(s.gallery, _shared={})
    return attack.run(s.model, s.images[index], index, gallery, seed=seed)


def distances(model: EmbeddingModel, image: torch.Tensor, train: Gallery) -> torch.Tensor:
    return (model(image[None])[0] - train.embeddings).norm(dim=1)


def ltm(d: torch.Tensor, row: int, train: Gallery) -> torch.Tensor:
    """The loss of LTM, of the distances (80,) to the train split."""
    own = train.labels == train.labels[row]
    near = min(d[n] for n in range(80) if own[n] and n != row)
    return (d[~own].max() - near).relu()


def pair(x: torch.Tensor, row: int, train: Gallery) -> torch.Tensor:
    """The pair-wise loss of an embedding (D,): to the farthest centre, from the nearest one."""
    centres = torch.from_numpy(kmeans(train.embeddings.numpy(), 40, KMEANS_SEED).centres)
    clean = [float((train.embeddings[row] - c).norm()) for c in centres]
    near, far = (centres[clean.index(end(clean))] for end in (min, max))
    return ((x - far).norm() - (x - near).norm() + 0.08).relu()


@pytest.mark.parametrize("by", ["ltm", "pair"])
def test_it_is_the_loop_over_single_images(subject: Subject, by: str) -> None:
    attack = attack_of(f"uap:by={by},steps=5,batch=3,eps=0.3,alpha=0.1")
    train, v, m = subject.train_split(), torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    assert train.images is not None
    for rows in positions(80, 15, 7, "uap").split(3):
        v.requires_grad_()
        total = torch.zeros(())
        for row in rows.tolist():
            moved = train.images(torch.tensor([row]))[0] + v
            inside = (moved >= 0) & (moved <= 1)  # at the bounds clamp has another gradient
            x = torch.where(inside, moved, moved.detach().clamp(0, 1))
            if by == "pair":
                total = total + pair(subject.model(x[None])[0], row, train)
            else:
                total = total + ltm(distances(subject.model, x, train), row, train)
        (g,) = torch.autograd.grad(total, v)
        m += g / g.abs().sum()
        v = (v.detach() - 0.1 * m.sign()).clamp(-0.3, 0.3)
    expected = (subject.images + v).clamp(0, 1)
    found = run(attack, subject, seed=7).perturbed
    torch.testing.assert_close(found.images, expected, rtol=0, atol=1e-6)
    assert found.passes == found.full_passes == 15


def test_it_is_one_for_all_and_hurts_more_than_noise(subject: Subject) -> None:
    found = run(attack_of("uap:steps=40"), subject)
    inside = (subject.images > 0.2) & (subject.images < 0.8)
    moved = found.perturbed.images - subject.images
    for pixel in range(64):
        values = moved.flatten(1)[:, pixel][inside.flatten(1)[:, pixel]]
        assert values.numel() == 0 or values.max() - values.min() < 1e-6
    clean = {name: value.mean() for name, value in found.clean.items()}
    assert found.outcomes["UAP:R@1"].mean() < clean["UAP:R@1"] - 10
    assert found.outcomes["UAP:mAP"].mean() < clean["UAP:mAP"] - 5
    signs = torch.where(torch.rand(1, 8, 8) < 0.5, -0.2, 0.2)
    noisy = subject.model((subject.images + signs).clamp(0, 1))
    goal = attack_of("uap").goal(subject.gallery, torch.arange(40), 0)
    assert found.outcomes["UAP:mAP"].mean() < goal.outcome(noisy)["UAP:mAP"].mean()
    still = run(attack_of("uap:steps=3,eps=0"), subject)
    assert torch.equal(still.perturbed.images, subject.images)


def test_batches_order_and_labels_of_the_test_split_change_nothing(subject: Subject) -> None:
    attack = attack_of("uap:steps=4")
    whole = run(attack, subject).perturbed.images
    rows = torch.tensor([30, 2, 17])
    assert torch.equal(run(attack, subject, rows).perturbed.images, whole[rows])
    assert not torch.equal(run(attack, subject, seed=1).perturbed.images, whole)
    other = Subject(attack)
    other.gallery = replace(  # type: ignore[misc]
        subject.gallery, labels=torch.arange(40), relevance=None, _shared={}
    )
    assert torch.equal(run(attack, other).perturbed.images, whole)


def test_of_8_bits_every_pixel_is_whole(subject: Subject) -> None:
    found = run(attack_of("uap:steps=4,bits=8,eps=0.1"), subject).perturbed.images * 255
    torch.testing.assert_close(found, found.round(), rtol=0, atol=1e-4)


def test_another_models_perturbation_is_shown_by_transfer(
    subject: Subject, tmp_path: Path, tiny: RetrievalData
) -> None:
    source = C2F2(dim=8).build(1, 8).eval().requires_grad_(False)
    save_weights(tmp_path / "w.safetensors", source)
    text = f'transfer:from={tmp_path}/w.safetensors,network="c2f2:dim=8",by=uap,steps=6,alpha=0.05'
    with pytest.raises(UserError, match="by=uap: optimizer must be pgd"):
        attack_of(text)
    attack = attack_of(f"{text},optimizer=pgd")
    other = Subject(attack)
    other.model = source  # type: ignore[misc]
    made = run(attack_of("uap:steps=6,alpha=0.05"), other).perturbed.images
    found = run(attack, subject).perturbed.images
    right = subject.gallery.recall_at_1(subject.gallery.embeddings, torch.arange(40)) > 0
    assert torch.equal(found[right], made[right])
    assert torch.equal(found[~right], subject.images[~right])


def test_the_pair_wise_loss_reads_no_label(subject: Subject) -> None:
    attack = attack_of("uap:by=pair,steps=15")
    found = run(attack, subject)
    assert found.outcomes["UAP:mAP"].mean() < found.clean["UAP:mAP"].mean() - 5
    train, other = subject.train_split(), Subject(attack)
    unlabelled = replace(train, labels=torch.arange(80), relevance=None, _shared={})
    other.gallery = replace(subject.gallery, train=lambda: unlabelled, _shared={})  # type: ignore[misc]
    assert torch.equal(run(attack, other).perturbed.images, found.perturbed.images)


def test_its_identity_has_the_other_attack() -> None:
    assert attack_of("uap:by=pair").facts["by"] == "pair"
    facts = [attack_of(f"uap:by={by}").facts for by in ("ltm", "es", '"oa:k=3"')]
    assert [one["by"]["attack"] for one in facts] == ["ltm", "es", "oa"]
    assert facts[0]["by"]["version"] == ATTACKS.get("ltm").card.version
    assert facts[2]["by"]["values"]["k"] == 3
    plain = attack_of("uap")
    assert (plain.steps, plain.alpha) == (500, pytest.approx(0.02))  # eps / 10


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("uap:restarts=2", "restarts are not for uap"),
        ("uap:optimizer=apgd", "optimizer must be pgd"),
        ("uap:by=square", "no attack that follows a gradient"),
        ("uap:by=uap", "no attack that follows a gradient"),
        ("uap:by=ca+", "perturbs no query"),
        ('uap:by="es:eps=0.1"', "eps is a key of uap itself"),
        ('uap:by="ltm:bits=8"', "bits is a key of uap itself"),
        ('uap:by="ltm:restarts=5"', "the loss alone is taken"),
        ("uap:by=top1", "no search of its own"),
        ("uap:by=certified", "no search of its own"),
        ("uap:by=nothing", "unknown attack 'nothing'"),
    ],
)
def test_keys_that_make_no_sense_are_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        attack_of(text)


def test_without_a_train_split_it_says_so(subject: Subject) -> None:
    other = Subject(subject.component)
    other.gallery = replace(subject.gallery, train=None, _shared={})  # type: ignore[misc]
    with pytest.raises(CellError, match="made on a train split"):
        run(attack_of("uap:steps=2"), other)
