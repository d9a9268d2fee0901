"""Transfer: adversarial images are made on another model and shown to the one under test.

The other model (``from``) is attacked in full sight of its gradient, with its own embeddings of
the same gallery. The model under test sees the result once, so it is a black box of one pass.
A query whose clean top-1 is wrong under the model under test keeps its clean image.

An attack on the top-1 (``by=margin``, the default) goes on after the other model is broken, for all
its steps: a farther image breaks more models. With ``of=item`` it goes for the item that is the
top-1 under the model that is tested.

The identity of a number has the digest of the other model's weights, not the place of their file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from dmlbench.attacks.base import ATTACKS, Attack, Column
from dmlbench.attacks.black_box import BlackBoxAttack
from dmlbench.attacks.engine.gallery import Gallery
from dmlbench.attacks.engine.optimizer import Perturbed, Search
from dmlbench.attacks.engine.outcomes import Outcomes
from dmlbench.attacks.top1 import HELP, TopOneAttack, TopOneGoal
from dmlbench.common.errors import CellError, UserError
from dmlbench.common.lazy import torch
from dmlbench.core import spec
from dmlbench.core.papers import Paper
from dmlbench.core.protocol import OPTIMIZER_OF, Threat
from dmlbench.core.reference import source_facts
from dmlbench.core.registry import Card
from dmlbench.core.spec import parameter
from dmlbench.models.base import MODELS, Model, parse_model
from dmlbench.models.pretrained import Pretrained

if TYPE_CHECKING:
    from dmlbench.compute.embedding import EmbeddingModel
    from dmlbench.metrics.distance import Metric
    from dmlbench.storage.checkpoint import StoredWeights

PAPERNOT = Paper(
    key="papernot2016transferability",
    title="Transferability in Machine Learning: from Phenomena to Black-Box Attacks using "
    "Adversarial Samples",
    authors="Papernot, Nicolas and McDaniel, Patrick and Goodfellow, Ian",
    venue="arXiv",
    year=2016,
    url="https://arxiv.org/abs/1605.07277",
)


# those of an attack that has another one in it, which takes them over
SHARED_KEYS = ("eps", "alpha", "steps", "suite", "optimizer", "bits", "norm")


@dataclass(frozen=True)
class Source:
    """The model that images are made on.

    Attributes:
        weights: its file.
        network: its network.
        as_published: the file is that of the network as it is published, without a new layer; it is
            loaded as ``attack --model`` loads it: also by the order of its tensors, if their names
            are others.
    """

    weights: StoredWeights
    network: Model
    as_published: bool = False

    def load(self, images: torch.Tensor) -> EmbeddingModel:
        """The model, in eval mode on the device of ``images`` (B, C, H, W).

        Raises:
            UserError: the weights do not fit the network, or the network such images.
        """
        from dmlbench.compute.embedding import on_device
        from dmlbench.compute.folding import folded
        from dmlbench.compute.randomness import as_trained
        from dmlbench.storage.checkpoint import load_weights, stored_weights

        known = self.weights.manifest
        with as_trained(known.training["seed"] if known else None):
            model = self.network.build(images.shape[1], images.shape[2], initial=self.as_published)
        if not self.as_published:
            try:
                load_weights(self.weights.path, model)
            except UserError as error:
                if not isinstance(self.network, Pretrained) or self.network.head != "fc":
                    raise
                hint = "if it is of a network as it is published, add head=none to network="
                raise UserError(f"transfer: {error}; {hint}") from None
        if stored_weights(self.weights.path).sha256 != self.weights.sha256:
            raise UserError(f"{self.weights.path} was replaced during the run: run again")
        return folded(on_device(model.eval().requires_grad_(False), images.device), images)


@ATTACKS.register
@dataclass(frozen=True, kw_only=True)
class Transfer(TopOneAttack):
    """The images of another model; eps, alpha, steps and optimizer are those of its attack."""

    card = Card("transfer", "adversarial images made on another model", PAPERNOT)
    columns = (Column("Transfer", "%", "higher", HELP),)
    loss = "margin"
    held_against_noise = False  # images of another model need not be stronger than noise
    auto = "optimizer=apgd, alpha=2 eps"

    from_: str = parameter(
        "",
        "the model that the images are made on: its folder, a file of weights, or its zoo name",
        required=True,
    )
    by: str = parameter(
        "margin",
        "spec of the attack on it, by APGD unless optimizer= says else",
        spec_of=ATTACKS,
    )
    network: str | None = parameter(
        None,
        "spec of its network; auto: what its manifest says, which lies beside the weights",
        spec_of=MODELS,
    )
    source: Source | None = dataclasses.field(default=None, repr=False)
    attack: Attack | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "from_", spec.expanded(self.from_))
        if self.restarts:
            raise ValueError('restarts are those of the attack on it: by="margin:restarts=5"')

    def resolve(self, threat: Threat) -> Self:
        """Find the other model, and complete the attack on it.

        Raises:
            UserError: the model is not there, or the attack cannot be read.
        """
        if not self.from_:
            raise UserError("transfer: name the model that the images are made on: from=FOLDER")
        optimizer = self.optimizer or "apgd"
        whole = super(Transfer, replace(self, optimizer=optimizer)).resolve(threat)
        by = followed(self, self.by)
        assert whole.suite is not None
        same: dict[str, Any] = {key: getattr(whole, key) for key in SHARED_KEYS}
        same["alpha"] = self.alpha  # None: as the attack on it has it
        same["optimizer"] = whole.optimizer or OPTIMIZER_OF[whole.suite]
        if isinstance(by, TopOneAttack):
            same["beyond"] = True
            if self.of == "item":
                same["of"] = self.of
        try:
            inner = replace(by, **same)
            spec.check(inner)  # certified knows no norm but l2
            inner = inner.resolve(replace(threat, suite=whole.suite))
        except ValueError as error:
            raise UserError(f"transfer: by={self.by}: {error}") from None
        return replace(
            whole,
            alpha=inner.alpha,
            optimizer="pgd" if same["optimizer"] == "pgd" else whole.optimizer,  # None: APGD
            by=spec.canonical(by),
            source=_source(self.from_, self.network),
            attack=inner,
        )

    def in_tables(self) -> Self:
        """With the name of the other model, and not its place."""
        return self if self.source is None else replace(self, from_=self.source.weights.name)

    @property
    def version(self) -> int:
        """The card's version, plus 1 if ``by`` is an attack on the top-1.

        The earlier version stopped at the first image that broke the other model.
        """
        return super().version + isinstance(self.attack, TopOneAttack)

    @property
    def facts(self) -> dict[str, Any]:
        """With the digest of the weights, the network and the whole attack on it."""
        assert self.source is not None
        assert self.attack is not None
        assert self.suite is not None
        own = None if self.optimizer == OPTIMIZER_OF[self.suite] else self.optimizer
        return super(Transfer, replace(self, optimizer=own)).facts | {
            "from": self.source.weights.sha256,
            "network": self.source.network.facts,
            "by": facts_of(self.attack, self.source.network.metric),
        }

    @property
    def most_passes(self) -> int:
        """Those on the other model; the one under test takes one forward pass."""
        return 0 if self.attack is None else self.attack.most_passes

    @property
    def most_forward_passes(self) -> int:
        """Those on the other model too."""
        return 0 if self.attack is None else self.attack.most_forward_passes

    def perturb(
        self,
        search: Search,
        embed: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        goal: TopOneGoal,
        start: torch.Tensor | None,
    ) -> Perturbed:
        """Attack the other model; queries whose clean top-1 is wrong keep their image."""
        gallery, source, attack = goal.gallery, self.filled(self.source), self.filled(self.attack)
        name = f"seen by {source.weights.sha256} {source.network}"
        model, seen = gallery.shared(name, lambda: _look(source, gallery, images))
        found = attack.run(model, images, goal.index, seen, seed=goal.seed).perturbed
        right = goal.first(gallery.queries[goal.index]) > 0
        return replace(
            found,
            images=torch.where(right.view(-1, 1, 1, 1), found.images, images),
            flat_start=torch.zeros_like(right),  # that is the other model's
        )

    def _last(self, search: Search, goal: TopOneGoal, perturbed: Perturbed) -> Outcomes:
        """Nothing: the last iterate was embedded by the other model."""
        return {}


def followed(outer: Attack, by: str) -> Attack:
    """The attack ``by`` (a spec), whose gradient the attack ``outer`` follows.

    Raises:
        UserError: it cannot be read, has no gradient, perturbs no query, or sets a key that is
            that of ``outer``.
    """
    name, inner = outer.card.name, spec.parse(by, ATTACKS)
    if isinstance(inner, type(outer) | Transfer | BlackBoxAttack):
        raise UserError(f"{name}: by={inner.card.name} is no attack that follows a gradient")
    if inner.perturbs != "query":
        raise UserError(f"{name}: by={by} perturbs no query: take one that does")
    for p in spec.parameters(type(inner)):
        if p.key in SHARED_KEYS and getattr(inner, p.name) != p.default:
            raise UserError(f"{name}: {p.key} is a key of {name} itself, not of by={by}")
    return inner


def facts_of(inner: Attack, metric: Metric | None = None) -> dict[str, Any]:
    """All facts that decide the numbers of an attack that another one follows, as JSON types.

    ``metric`` is that of the other model; None: of the model under test.
    """
    version = inner.version_under(metric) if metric else inner.version
    facts = {"attack": inner.card.name, "version": version, "values": inner.facts}
    return facts | source_facts(inner, "source")


def _look(source: Source, gallery: Gallery, images: torch.Tensor) -> tuple[EmbeddingModel, Gallery]:
    """The other model, and the gallery as it embeds it, as many images at once as ``images``."""
    from dmlbench.compute.embedding import embed

    if gallery.images is None or gallery.query_images is None:
        raise CellError("transfer needs the images of the gallery, for the other model to embed")
    model = source.load(images)

    def look(at: Callable[[torch.Tensor], torch.Tensor], count: int) -> torch.Tensor:
        index = torch.arange(count, device=images.device)
        with torch.no_grad():
            return torch.cat([embed(model, at(rows)) for rows in torch.split(index, len(images))])

    return model, gallery.as_embedded_by(model.metric, look)


def _source(path: str, network: str | None) -> Source:
    """The model at ``path``.

    Raises:
        UserError: there is none, it was altered, nothing says what its network is, or the manifest
            beside it names code, which the user has not asked to run.
    """
    from dmlbench.storage.checkpoint import stored_weights
    from dmlbench.zoo.fetch import local_or_zoo

    try:
        weights = stored_weights(local_or_zoo(path))
    except UserError as error:
        raise UserError(f"transfer: from: {error}") from None
    known = weights.manifest.model if weights.manifest else ""
    if not (network or known):
        raise UserError(f"transfer: no manifest says what network {path} is of: add network=SPEC")
    if not network and (named := spec.read_reference(known, MODELS)):
        raise UserError(
            f"transfer: the manifest of {path} names the network {named[0]}, which is code that "
            f"would be run: look at it, and name it yourself with network={spec.quoted(known)}"
        )
    made = parse_model(network or known)
    if not known and isinstance(made, Pretrained) and made.head != "fc":
        return Source(weights, replace(made, weights=str(weights.path)), as_published=True)
    return Source(weights, made)
