"""The defenses and variants that RobRank's code defines equal slow versions of its steps.

``scripts.peer_training`` compares them with the code itself, where there is a clone of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import pairwise_distance, triplet_margin_loss

from dmlbench.common.errors import UserError
from dmlbench.compute.embedding import EmbeddingModel
from dmlbench.core import spec
from dmlbench.datasets.base import RetrievalData
from dmlbench.defenses.base import DEFENSES, Batch, Defense
from dmlbench.defenses.losses import OF_TRIPLETS, SAMPLED
from dmlbench.defenses.samplers import Triplets
from tests.steps import GAMMA, THREAT, agrees, d, drawn, make_batch, network, slow_pgd

Embedded = list[torch.Tensor]
Losses = dict[str, Callable[[Embedded, int], torch.Tensor]]


def shift_losses(
    origin: Embedded, variant: str, generator: torch.Generator
) -> Callable[[Embedded, int], torch.Tensor]:
    """The embedding shift of RobRank's embShift, or of ours, in the first and the other steps."""
    shape = (len(origin[0]), len(origin), origin[0].shape[1])
    noise = torch.zeros(shape)
    if variant == "robrank":
        noise = torch.randint(-1, 2, shape, generator=generator) * 1e-7  # (T, k, D)

    def loss(e: Embedded, step: int) -> torch.Tensor:
        total = torch.zeros(())
        for k, (one, clean) in enumerate(zip(e, origin, strict=True)):
            if variant == "robrank":
                jitter = noise[:, k] if step == 0 else 0
                total = total - pairwise_distance(one, clean + jitter).sum()
            else:
                total = total - d(one, clean + (1e-7 if step == 0 else 0)).sum()
        return total

    return loss


@pytest.mark.parametrize("sampler", ["random", "softhard"])
@pytest.mark.parametrize("name", ["tbc", "amd", "acap"])
def test_a_step_on_perturbed_triplets(tiny: RetrievalData, name: str, sampler: str) -> None:
    model = network()
    batch = make_batch(model, tiny)
    defense = spec.parse(f"{name}:sampler={sampler}", DEFENSES).resolve(THREAT, "N")
    t = drawn(defense, sampler, batch)
    coins = (torch.rand(THREAT.eta, generator=batch.generator) > 0.5).tolist()

    def together(e: Embedded, step: int) -> torch.Tensor:
        return (d(e[1], e[2]) + d(e[0], e[1]) + d(e[0], e[2])).mean()

    def harder(e: Embedded, step: int) -> torch.Tensor:
        return (d(e[0], e[2]) - d(e[0], e[1])).mean()

    def coin(e: Embedded, step: int) -> torch.Tensor:
        return d(e[1], e[2]).mean() + 0 * e[0].sum() if coins[step] else harder(e, step)

    loss = {"tbc": together, "amd": harder, "acap": coin}[name]
    x = slow_pgd(model, batch.images[t.stack()], loss)
    a, p, n = (model(x[:, i]) for i in range(3))
    expected = (d(a, p) - d(a, n) + GAMMA).clamp(min=0).mean()
    batch.generator.manual_seed(0)
    agrees(model, batch, defense, expected)
    assert defense.label == f"{name.upper()}[{'R' if sampler == 'random' else 'S'}]"
    assert {True, False} == set(coins)  # so that both losses of acap are looked at


@pytest.mark.parametrize("variant", ["default", "robrank"])
def test_a_step_of_rest(tiny: RetrievalData, variant: str) -> None:
    model = network()
    batch = make_batch(model, tiny)
    defense = spec.parse(f"rest:variant={variant}", DEFENSES).resolve(THREAT, "N")
    t = drawn(defense, "random", batch)
    origin = [batch.embeddings[t.positive], batch.embeddings[t.negative]]
    loss = shift_losses(origin, variant, batch.generator)
    x = slow_pgd(model, batch.images[t.stack()[:, 1:]], loss)
    a, p, n = model(batch.images[t.anchor]), model(x[:, 0]), model(x[:, 1])
    expected = (d(a, p) - d(a, n) + GAMMA).clamp(min=0).mean()
    batch.generator.manual_seed(0)
    agrees(model, batch, defense, expected)


@pytest.mark.parametrize("variant", ["default", "robrank"])
def test_a_step_of_ses(tiny: RetrievalData, variant: str) -> None:
    model = network()
    batch = make_batch(model, tiny)
    defense = spec.parse(f"ses:variant={variant}", DEFENSES).resolve(THREAT, "N")
    loss = shift_losses([batch.embeddings], variant, batch.generator)
    x = slow_pgd(model, batch.images[:, None], loss)[:, 0]
    t = drawn(defense, "random", batch)
    clean, moved = model(batch.images), model(x)
    h = d(clean[t.anchor], clean[t.positive]) - d(clean[t.anchor], clean[t.negative])
    expected = (h + GAMMA).clamp(min=0).mean() + d(moved, clean).mean()
    batch.generator.manual_seed(0)
    agrees(model, batch, defense, expected)
    with pytest.raises(UserError, match="N and C"):
        spec.parse("ses", DEFENSES).resolve(THREAT, "E")


def test_est_as_robranks_code(tiny: RetrievalData) -> None:
    """The first step is jittered and goes the other way than by default."""
    model = network()
    batch = make_batch(model, tiny)
    defense = spec.parse("est:variant=robrank", DEFENSES).resolve(THREAT, "N")
    loss = shift_losses([batch.embeddings], "robrank", batch.generator)
    x = slow_pgd(model, batch.images[:, None], loss)[:, 0]
    e = model(x)
    t = defense.mine("random", batch, "N", e.detach())
    expected = triplet_margin_loss(e[t.anchor], e[t.positive], e[t.negative], margin=GAMMA)
    batch.generator.manual_seed(0)
    agrees(model, batch, defense, expected)
    assert defense.label == "EST[R, RobRank]"
    directions = []
    for variant in ("default", "robrank"):
        first = shift_losses([batch.embeddings], variant, batch.generator)
        still = batch.embeddings.clone().requires_grad_()
        directions.append(torch.autograd.grad(first([still], 0), still)[0].sign())
    assert torch.equal(directions[0], -directions[1])


def test_robranks_est_moves_batch_norm_by_the_clean_batch_too(tiny: RetrievalData) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()]
    start = EmbeddingModel(torch.nn.Sequential(*layers, torch.nn.Linear(144, 6)), "N")
    seen = {}
    for variant in ("default", "robrank"):
        model = copy.deepcopy(start)
        batch = make_batch(model, tiny)
        defense = spec.parse(f"est:variant={variant}", DEFENSES).resolve(THREAT, "N")
        defense.step(model.train(), batch, {})
        norm = model.backbone[1]
        assert isinstance(norm, torch.nn.BatchNorm2d)
        seen[variant] = int(norm.num_batches_tracked or 0)
    assert seen == {"default": 1, "robrank": 2}


def test_an_anchor_that_is_its_own_positive_is_perturbed_as_in_robrank(
    tiny: RetrievalData,
) -> None:
    """d(a, p) is zero there; RobRank's 1e-6 gives it a gradient, so a and p part at once."""
    model = network()
    batch = make_batch(model, tiny)
    defense = spec.parse("amd:sampler=softhard-robrank", DEFENSES).resolve(THREAT, "N")
    one = torch.zeros(4, dtype=torch.long)
    own = Triplets(one, one.clone(), (batch.labels != batch.labels[0]).nonzero()[:4, 0])

    def harder(e: Embedded, step: int) -> torch.Tensor:
        return (pairwise_distance(e[0], e[2]) - pairwise_distance(e[0], e[1])).mean()

    x = slow_pgd(model, batch.images[own.stack()], harder)
    images = batch.images[own.stack()]
    found = defense.perturb(model, images, defense.objective("N", batch)).images  # type: ignore[attr-defined]
    assert (found == x).double().mean() > 0.99
    assert (found[:, 0] != found[:, 1]).double().mean() > 0.5


@pytest.mark.parametrize("loss", [name for name in OF_TRIPLETS if name != "triplet"])
def test_act_with_other_losses(tiny: RetrievalData, loss: str) -> None:
    """The loss sees anchors, perturbed positives and negatives, and their pairs alone."""
    model = network()
    defense = spec.parse(f"act:loss={loss}", DEFENSES).resolve(THREAT, "N")
    batch = with_loss(make_batch(model, tiny), defense)
    t = drawn(defense, "random", batch)
    images = batch.images[torch.stack([t.positive, t.negative], 1)]
    x = slow_pgd(model, images, lambda e, _: d(e[0], e[1]).mean())
    e = [model(batch.images[t.anchor]), model(x[:, 0]), model(x[:, 1])]
    batch.generator.manual_seed(0)
    agrees(model, batch, defense, slow_loss(loss, *e))
    assert defense.label == f"ACT[{loss}, R]"


@pytest.mark.parametrize("loss", [name for name in SAMPLED if name != "triplet"])
def test_est_with_other_losses(tiny: RetrievalData, loss: str) -> None:
    model = network()
    defense = spec.parse(f"est:loss={loss}", DEFENSES).resolve(THREAT, "N")
    batch = with_loss(make_batch(model, tiny), defense)
    shift = shift_losses([batch.embeddings], "default", batch.generator)
    e = model(slow_pgd(model, batch.images[:, None], shift)[:, 0])
    t = defense.mine("random", batch, "N", e.detach())
    batch.generator.manual_seed(0)
    expected = slow_loss(loss, e[t.anchor], e[t.positive], e[t.negative])
    agrees(model, batch, defense, expected)
    assert defense.label == f"EST[{loss}, R]"


def test_losses_refuse_what_they_do_not_read() -> None:
    for text, reason in (
        ("act:loss=snr,margin=0.3", "act: margin is the triplet loss's"),
        ("est:loss=contrastive,sampler=softhard", "est: loss=contrastive reads the whole batch"),
    ):
        with pytest.raises(UserError, match=reason):
            spec.parse(text, DEFENSES).resolve(THREAT, "N")
    with pytest.raises(UserError, match="must be one of triplet, margin, snr, contrastive"):
        spec.parse("act:loss=n-pair", DEFENSES)


@pytest.mark.parametrize("text", ["est:loss=contrastive", "act:loss=snr", "none:loss=margin"])
def test_what_a_run_file_says_of_another_loss_can_be_read_back(text: str) -> None:
    """It has no margin, which such a loss refuses."""
    resolved = spec.parse(text, DEFENSES).resolve(THREAT, "N")
    again = spec.parse(spec.canonical(resolved), DEFENSES).resolve(THREAT, "N")
    assert again == resolved
    assert resolved.margin is None


def with_loss(batch: Batch, defense: Defense) -> Batch:
    companion = defense.companion(5, 8, "N")
    return Batch(batch.images, batch.labels, batch.embed, batch.generator, batch.world, companion)


def slow_loss(name: str, a: torch.Tensor, p: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """The loss of triplets by its paper, a triplet at a time."""
    terms = []
    for x, y, z in zip(a, p, n, strict=True):
        near, far = (x - y).norm(), (x - z).norm()
        if (
            name == "contrastive"
        ):  # Hadsell et al., CVPR 2006: margin 1, d itself and not its square
            terms.append((near, (1 - far).clamp(min=0)))
        elif name == "margin":  # Wu et al., ICCV 2017
            terms.append(((near - 1.0).clamp(min=0), (1.4 - far).clamp(min=0)))
        else:
            noise = ((x - y).var() - (x - z).var()) / x.var()
            terms.append(((noise + 0.2).clamp(min=0), 0.005 * x.sum().abs()))
    first, second = (torch.stack(column) for column in zip(*terms, strict=True))
    if name == "margin":
        return (first.sum() + second.sum()) / ((first > 0).sum() + (second > 0).sum())
    if name == "snr":
        return first.sum() / (first > 0).sum() + second.mean()
    return first[first > 0].mean() + second[second > 0].mean()
