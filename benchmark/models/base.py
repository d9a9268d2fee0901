"""The base class of networks, and networks that a user gives as ``module:factory``."""

from __future__ import annotations

import abc
import ast
import copy
import inspect
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from dmlbench.common.errors import UserError
from dmlbench.common.numbers import LARGEST
from dmlbench.common.text import raised_in, reason_of
from dmlbench.core import sources, spec
from dmlbench.core.reference import Reference, source_facts
from dmlbench.core.registry import Card, Component, Registry
from dmlbench.core.spec import parameter
from dmlbench.metrics.distance import METRICS, Metric

if TYPE_CHECKING:
    from torch import nn

    from dmlbench.compute.embedding import EmbeddingModel

Network = TypeVar("Network", bound="nn.Module")
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".ckpt")
"""Endings of the names of files that are taken for weights."""


def _hint(name: str) -> str:
    """The remedy for the name of a file in the place of a network; empty for any other name."""
    if name.endswith(WEIGHT_FILES):
        return f"name weights by --checkpoint {name}, and their network by --model"
    if name.endswith(".onnx"):
        return "wrap it in a torch.nn.Module, as the FAQ says, and name that: nets.py:Wrapped"
    return ""


MODELS: Registry[Model] = Registry("model", "dmlbench.models", ("backbone",), _hint)


@dataclass(frozen=True, kw_only=True)
class Model(Component, abc.ABC):
    """A network, and the metric that compares its embeddings.

    A subclass must define ``backbone``, which maps images to raw embeddings.
    """

    metric: Metric = parameter(
        "N", "distance: N (normalised Euclidean), E (Euclidean), C (cosine)", choices=METRICS
    )

    @abc.abstractmethod
    def backbone(self, channels: int, size: int) -> nn.Module:
        """Build a network with random weights that maps (B, channels, size, size) to (B, D).

        Its input is normalised by ``normalisation``; without one it lies in [0, 1].

        Raises:
            UserError: the network cannot take images of this shape.
        """

    def check_images(self, channels: int, size: int) -> None:
        """Refuse images that the network cannot embed; a dry run calls it.

        It builds the network with random weights, unless a subclass knows without torch.

        Raises:
            UserError: the network cannot take images of this shape.
        """
        self.build(channels, size)

    def initialise(self, backbone: nn.Module) -> None:
        """Load the weights that training starts from; by default the random ones stay.

        Raises:
            UserError: the weights are not available, or do not fit the network.
        """
        return None

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation of each input channel; empty for none."""
        return (), ()

    @property
    def freezes_batch_norm(self) -> bool:
        """True if training leaves the statistics of batch norm as they are."""
        return False

    @property
    def comes_trained(self) -> bool:
        """True if it can be measured without any training: no weight of it is random."""
        return False

    @property
    def starts_trained(self) -> bool:
        """True if weights that were trained before are loaded into it; some may be random still."""
        return False

    @property
    def same_in_training(self) -> bool:
        """True if a batch has the same embeddings in train mode as in eval mode.

        This holds for a network without dropout, stochastic depth and trained batch norm
        statistics. Some defenses then need one forward pass less.
        """
        return False

    def build(self, channels: int, size: int, *, initial: bool = False) -> EmbeddingModel:
        """Build the whole embedding model: normalisation, backbone, unit length for N and C.

        Args:
            channels: number of channels of an image.
            size: height and width of an image, in pixels.
            initial: load the weights that training starts from. Not needed if the weights of a
                checkpoint are loaded afterwards.

        Raises:
            UserError: the network cannot be built, or fails to embed two images of this shape.
        """
        import torch

        from dmlbench.compute.embedding import EmbeddingModel, frozen

        backbone = None
        try:
            backbone = self.backbone(channels, size)
            if initial:
                self.initialise(backbone)
            model = EmbeddingModel(
                backbone,
                self.metric,
                *self.normalisation(),
                self.freezes_batch_norm,
                self.same_in_training,
            ).cpu()  # a network in memory may lie on a GPU
            with frozen(model), torch.no_grad():
                model(torch.zeros(2, channels, size, size))
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException as error:  # the code of a user may raise anything
            shape = f"{channels}x{size}x{size}"
            raise UserError(
                f"model {canonical_model(self)} cannot embed {shape} images: {reason_of(error)}"
                f"{raised_in(error)}{_other_types(backbone, error)}"
            ) from None
        return model

    @property
    def facts(self) -> dict[str, Any]:
        """All facts that decide what the network computes from given weights (JSON types)."""
        return {
            "name": self.card.name,
            "version": self.card.version,
            "values": spec.values(self),
            **source_facts(self, "source"),
        }

    @property
    def training_facts(self) -> dict[str, Any]:
        """Facts about the initial weights, which decide those after training too (JSON types)."""
        return {}


@dataclass(frozen=True, kw_only=True)
class FactoryModel(Model):
    """A network of the user, built by ``module:factory`` or ``file.py:factory``.

    The factory is any callable that returns an ``nn.Module``.

    ``pkg.nets:make:width=32,metric=C`` calls ``pkg.nets.make(width=32)``. A value that is a Python
    literal is passed as such, any other as a string. One with a comma is written in double quotes:
    ``widths="[32, 64]"`` is a list; but ``size="32"`` is the string. The network must map images in
    [0, 1] to embeddings (B, D).

    Attributes:
        path: ``module:factory``.
        arguments: (name, value) of each argument of the factory.
    """

    path: str
    arguments: tuple[tuple[str, object], ...] = ()

    @property
    def card(self) -> Card:  # type: ignore[override]  # one class stands for every factory
        """The card of this network; the name is the path of its factory."""
        return Card(name=self.path, summary="a network of your own")

    @property
    def facts(self) -> dict[str, Any]:
        """The facts of every model, the arguments, and the digest of the factory's source code."""
        _, source = self._loaded
        arguments = json.loads(json.dumps(dict(self.arguments)))  # a tuple as a manifest has it
        return super().facts | {"arguments": arguments, "source": source}

    def backbone(self, channels: int, size: int) -> nn.Module:
        """A copy of what the factory returns, which may be a network that others use too.

        What cannot be copied is taken itself if the factory makes another one each time.

        Raises:
            UserError: it is not found, cannot be called or returns no Module, or is no longer what
                another process of the run has planned with.
        """
        import torch
        from torch import nn

        factory, _ = self._loaded
        network = factory(**dict(self.arguments))
        if not isinstance(network, nn.Module):
            raise UserError(f"model {self.path}: must return a torch.nn.Module, got {network!r}")
        try:
            return copied(network, self.path)
        except UserError:
            with torch.random.fork_rng(devices=[]):  # what is drawn next stays the same
                if factory(**dict(self.arguments)) is not network:
                    return network
            raise

    @cached_property
    def _loaded(self) -> tuple[Callable[..., object], str | None]:
        """The factory and the digest of its source, which stay as they are while a run goes on."""
        factory = self._factory()
        source = sources.digest(factory)
        if vars(self).get("planned", source) != source:
            raise UserError(
                f"the code of model {self.path} has changed since the run began: run again"
            )
        return factory, source

    def __getstate__(self) -> dict[str, Any]:
        """The fields, and in place of the factory the digest of its source (``planned``)."""
        state = dict(vars(self))
        loaded = state.pop("_loaded", None)
        return state if loaded is None else state | {"planned": loaded[1]}

    def _factory(self) -> Callable[..., object]:
        from torch import nn

        try:
            factory: Any = Reference(*self.path.rsplit(":", 1)).load()
        except UserError as error:
            raise UserError(f"model {error}") from None
        if isinstance(factory, nn.Module):
            raise UserError(
                f"model {self.path} is a network: name a function or a class that builds it"
            )
        if sources.source_file(factory) is None:
            raise UserError(
                f"model {self.path} has no Python source: name a function or a class that builds "
                "a torch.nn.Module, in a file"
            )
        try:
            inspect.signature(factory).bind(**dict(self.arguments))
        except (TypeError, ValueError) as error:
            raise UserError(f"model {self.path}: {error}") from None
        made: Callable[..., object] = factory
        return made


def copied(network: Network, name: str) -> Network:
    """A copy of the network called ``name``; UserError if it cannot be copied."""
    try:
        found = copy.deepcopy(network)
    except Exception as error:  # whatever a module of the user's own raises
        raise UserError(f"model {name} cannot be copied: {error}") from None
    for p in found.parameters():
        if not p.is_leaf:  # of TorchScript: each copy is computed from the original
            p.detach_().requires_grad_()
    for layer in found.modules():
        if not hasattr(layer, "training"):  # of frozen TorchScript
            layer.training = False
    return found


def _other_types(network: nn.Module | None, error: BaseException) -> str:
    """A remedy if weights of the network are not in float32, as images are; else empty."""
    import torch

    tensors = [] if network is None else [*network.parameters(), *network.buffers()]
    types = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    others = sorted(str(one).removeprefix("torch.") for one in types - {torch.float32})
    if others:
        return f"; it has weights in {', '.join(others)}, images are in float32: use net.float()"
    if isinstance(network, torch.jit.ScriptModule) and not types and "dtype" in str(error):
        return "; images are in float32: use float() before freeze()"
    return ""


def parse_model(text: str) -> Model:
    """Build a model from a spec, or from a class or factory of the user.

    Args:
        text: a registered name with its keys; or ``module:Class`` or ``file.py:Class`` of a
            ``Model``; or ``module:factory`` or ``file.py:factory``, any other callable.

    Raises:
        UserError: the text describes no model; the message says why.
    """
    if not isinstance(text, str):
        raise UserError(
            "model must be the spec of a network, such as 'resnet18' or 'nets.py:make', got "
            f"{type(text).__name__}"
        )
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
    for key, value in pairs.items():
        if _is_mistyped(value):
            warnings.warn(
                f"model {place}: {key}={value} is a text, which counts as true; what Python reads "
                f"as a truth value is {key}={value.capitalize()}",
                stacklevel=2,
            )
    arguments = tuple((key, _read(value)) for key, value in sorted(pairs.items()))
    for key, argument in arguments:
        if not _is_plain(argument):
            raise UserError(f"model {place}: {key} must be text, a finite number or a list of them")
    return FactoryModel(metric=known.metric, path=known.path, arguments=arguments)


def canonical_model(model: Model) -> str:
    """Write ``model`` as the text that ``parse_model`` reads back to it."""
    return _spell_factory(model) if isinstance(model, FactoryModel) else spec.canonical(model)


def shown_model(model: Model) -> str:
    """``canonical_model`` for tables: a class by the name of its card (``spec.shown``)."""
    return _spell_factory(model) if isinstance(model, FactoryModel) else spec.shown(model)


def _spell_factory(model: FactoryModel) -> str:
    pairs = [] if model.metric == "N" else [f"metric={model.metric}"]
    pairs += [f"{key}={_spell(value)}" for key, value in model.arguments]
    return f"{model.path}:{','.join(pairs)}" if pairs else model.path


def _read(text: str) -> object:
    """The value of an argument; what is no list and the like in double quotes stays text."""
    value = _literal(spec.unquoted(text))
    plain = not text.startswith('"') or isinstance(value, str | list | tuple | dict)
    return value if plain else spec.unquoted(text)


def _is_mistyped(text: str) -> bool:
    """True of ``false``, which Python writes as ``False``, and of ``true``."""
    return text.lower() in ("true", "false") and text not in ("True", "False")


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _is_plain(value: object) -> bool:
    """True if JSON can hold a value, which makes it fit for an identity."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return abs(value) <= LARGEST  # neither infinite nor NaN
    return isinstance(value, str | bool | None)


def _spell(value: object) -> str:
    """``value`` as ``_read`` reads it back."""
    text = value if isinstance(value, str) and _literal(value) == value else repr(value)
    plain = text and text == text.strip() and not re.search(r'[",]', text)
    return text if plain else spec.quoted(text)
