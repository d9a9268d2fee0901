"""The base of networks, and networks from any ``module:factory`` or ``file.py:factory``."""

from __future__ import annotations

import abc
import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlbench.common.errors import UserError
from dmlbench.common.hashing import file_sha256
from dmlbench.core import spec
from dmlbench.core.reference import Reference, source_facts
from dmlbench.core.registry import Card, Component, Registry
from dmlbench.core.spec import parameter
from dmlbench.metrics.distance import METRICS, Metric

if TYPE_CHECKING:
    from torch import nn

    from dmlbench.compute.embedding import EmbeddingModel

MODELS: Registry[Model] = Registry("model", "dmlbench.models", required=("backbone",))


@dataclass(frozen=True, kw_only=True)
class Model(Component, abc.ABC):
    """A network and the metric its embeddings are compared with.

    A subclass writes ``backbone``; images in [0, 1] come in, raw embeddings (B, D) go out.
    """

    metric: Metric = parameter("N", "distance: N (normalised Euclidean), E or C", choices=METRICS)

    @abc.abstractmethod
    def backbone(self, channels: int, size: int) -> nn.Module:
        """A freshly initialised network for images (B, channels, size, size).

        Raises:
            UserError: it cannot take images of that shape.
        """

    def initialise(self, backbone: nn.Module) -> None:
        """Give a new backbone the weights that training starts from, if not random ones.

        Raises:
            UserError: they cannot be had, or are another network's.
        """
        return None

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each input channel; empty for none."""
        return (), ()

    @property
    def freezes_batch_norm(self) -> bool:
        """Whether the statistics of batch norm stay as they are in training."""
        return False

    @property
    def steady(self) -> bool:
        """Whether a batch has the same embeddings in training as in evaluation: it has no dropout
        and no stochastic depth, and freezes batch norm.
        """
        return False

    def build(self, channels: int, size: int, *, initial: bool = False) -> EmbeddingModel:
        """The backbone with input normalisation before and the metric's geometry after it.

        Args:
            channels: of an image.
            size: height and width of an image.
            initial: load the weights that training starts from; weights from a checkpoint would
                replace them.

        Raises:
            UserError: it cannot be built, or does not embed two images of that shape.
        """
        import torch

        from dmlbench.compute.embedding import EmbeddingModel, frozen

        try:
            backbone = self.backbone(channels, size)
            if initial:
                self.initialise(backbone)
            model = EmbeddingModel(
                backbone, self.metric, *self.normalisation(), self.freezes_batch_norm, self.steady
            )
            if not any(p.requires_grad for p in model.parameters()):
                raise UserError(f"model {canonical_model(self)} has no parameters to train")
            with frozen(model), torch.no_grad():
                model(torch.zeros(2, channels, size, size))
        except UserError:
            raise
        except Exception as error:  # whatever a network of the user's own raises
            reason = " ".join(str(error).split()) or type(error).__name__
            shape = f"{channels}x{size}x{size}"
            raise UserError(
                f"model {canonical_model(self)} cannot embed {shape} images: {reason}"
            ) from None
        return model

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the function that its weights compute (JSON types)."""
        return {
            "name": self.card.name,
            "version": self.card.version,
            "values": spec.values(self),
            **source_facts(self, "source"),
        }

    @property
    def training_facts(self) -> dict[str, Any]:
        """What besides decides the weights that training ends with (JSON types)."""
        return {}


@dataclass(frozen=True, kw_only=True)
class FactoryModel(Model):
    """Any callable ``module:factory`` or ``file.py:factory`` that returns an ``nn.Module``.

    ``pkg.nets:make:width=32,metric=C`` calls ``pkg.nets.make(width=32)``. Values are Python
    literals, else strings. The module must map images in [0, 1] to (B, D) embeddings.
    """

    path: str
    arguments: tuple[tuple[str, object], ...] = ()

    @property
    def card(self) -> Card:  # type: ignore[override]  # one class stands for every factory
        """A card made on the spot."""
        return Card(name=self.path, summary="a network of your own")

    @property
    def facts(self) -> dict[str, Any]:
        """The arguments, and a digest of the source that holds the factory."""
        source = inspect.getsourcefile(self._factory())
        digest = file_sha256(Path(source)) if source else None
        return super().facts | {"arguments": dict(self.arguments), "source": digest}

    def backbone(self, channels: int, size: int) -> nn.Module:
        """What the factory returns; UserError if it cannot be found or called."""
        from torch import nn

        network = self._factory()(**dict(self.arguments))
        if not isinstance(network, nn.Module):
            raise UserError(f"model {self.path}: must return a torch.nn.Module, got {network!r}")
        return network

    def _factory(self) -> Callable[..., object]:
        try:
            factory: Any = Reference(*self.path.rsplit(":", 1)).load()
        except UserError as error:
            raise UserError(f"model {error}") from None
        try:
            inspect.signature(factory).bind(**dict(self.arguments))
        except (TypeError, ValueError) as error:
            raise UserError(f"model {self.path}: {error}") from None
        made: Callable[..., object] = factory
        return made


def parse_model(text: str) -> Model:
    """A network by name, ``module:Class`` or ``file.py:Class`` of a ``Model``, or a factory.

    A factory is any other callable, ``module:factory`` or ``file.py:factory``.
    """
    pointed = spec.read_reference(text, MODELS)
    if pointed is None:
        return spec.parse(text, MODELS)
    place, rest = pointed
    try:
        found = place.load()
    except UserError as error:
        raise UserError(f"model {error}") from None
    if isinstance(found, type) and issubclass(found, Model):
        return spec.parse(text, MODELS)
    pairs = spec.split_pairs(rest, f"model {text!r}")
    metric = {"metric": pairs.pop("metric")} if "metric" in pairs else {}
    known = spec.build(FactoryModel, metric, f"model {place}", path=str(place))
    arguments = tuple((key, _literal(value)) for key, value in sorted(pairs.items()))
    return FactoryModel(metric=known.metric, path=known.path, arguments=arguments)


def canonical_model(model: Model) -> str:
    """The spelling that ``parse_model`` reads back to ``model``."""
    return _spell_factory(model) if isinstance(model, FactoryModel) else spec.canonical(model)


def shown_model(model: Model) -> str:
    """``canonical_model`` for tables: a class by the name of its card (``spec.shown``)."""
    return _spell_factory(model) if isinstance(model, FactoryModel) else spec.shown(model)


def _spell_factory(model: FactoryModel) -> str:
    pairs = [] if model.metric == "N" else [f"metric={model.metric}"]
    pairs += [f"{key}={_spell(value)}" for key, value in model.arguments]
    return f"{model.path}:{','.join(pairs)}" if pairs else model.path


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _spell(value: object) -> str:
    text = value if isinstance(value, str) and _literal(value) == value else repr(value)
    return text if "," not in text and '"' not in text else '"' + text.replace('"', '\\"') + '"'
