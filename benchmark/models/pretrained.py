"""The base of published networks: their weights, and what follows their pooled features.

The input is normalised as it was when the published weights were trained. Training leaves the
statistics of batch norm as they are (Roth et al., ICML 2020), but does change its scales and
shifts.
"""

from __future__ import annotations

import abc
import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dmlbench.common.errors import UserError
from dmlbench.common.hashing import file_sha256
from dmlbench.common.lazy import torch
from dmlbench.common.text import message_of
from dmlbench.core.spec import expanded, parameter
from dmlbench.models.base import Model, canonical_model
from dmlbench.models.key_order import renamed_by_order

if TYPE_CHECKING:
    from torch import nn

PRETRAINED, NONE = "imagenet", "none"
DIM = 512
SIZE = 224  # of the images that all of them take


@dataclass(frozen=True, kw_only=True)
class Pretrained(Model, abc.ABC):
    """A published network, whose classifier is replaced by a layer to the embedding, or by none."""

    dim: int = parameter(DIM, "embedding dimension", at_least=1)
    weights: str = parameter(
        PRETRAINED, "initial weights: imagenet (downloaded), none (random), or a file"
    )
    freeze_bn: bool = parameter(True, "leave the statistics of batch norm as they are in training")
    head: str = parameter(
        "fc",
        "what follows the pooled features: fc (a new layer to dim), none (they are the embedding), "
        "own (the published layer: CLIP's projection, a classifier)",
        choices=("fc", "none", "own"),
        late=True,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", expanded(self.weights))
        if self.head != "fc" and self.dim != DIM:
            raise ValueError(f"dim is for head=fc; with head={self.head} the network decides it")

    @property
    def freezes_batch_norm(self) -> bool:
        """The parameter ``freeze_bn``."""
        return self.freeze_bn

    @property
    def comes_trained(self) -> bool:
        """True if no weight that it starts from is random.

        Without a new layer all are published ones; with one, a file must have it too.

        Raises:
            UserError: the file cannot be read.
        """
        if self.weights == NONE or self.head != "fc":
            return self.weights != NONE
        return self.weights != PRETRAINED and self._has_new_layer()

    @property
    def starts_trained(self) -> bool:
        """True unless ``weights`` is none."""
        return self.weights != NONE

    def _has_new_layer(self) -> bool:
        """True if the file of weights has the layer that replaces the classifier, as it is here."""
        from dmlbench.storage.weights import BACKBONE, fitted, read_state

        with torch.random.fork_rng(devices=[]):  # the weights of this network are not used
            own = self.backbone(3, SIZE).state_dict()
        try:
            state, prefix = fitted(read_state(self._file()), own)
        except ValueError:
            return False
        return prefix == BACKBONE and not any(
            self._is_random(key, state, own) for key in filter(self._in_classifier, own)
        )

    @property
    def facts(self) -> dict[str, Any]:
        """The facts of every model, without those parameters that matter in training only."""
        facts = super().facts
        only_training = ("weights", "freeze_bn")
        facts["values"] = {k: v for k, v in facts["values"].items() if k not in only_training}
        return facts

    @property
    def training_facts(self) -> dict[str, Any]:
        """The initial weights (their published name or the SHA-256 of the file), ``freeze_bn``."""
        weights = self.weights
        if weights == PRETRAINED:
            weights = self.published
        elif weights != NONE:
            weights = file_sha256(self._file())
        return {"weights": weights, "freeze_bn": self.freeze_bn}

    def in_tables(self) -> Self:
        """The model with the name of its file of weights, without the folder."""
        return (
            self
            if self.weights in (PRETRAINED, NONE)
            else replace(self, weights=Path(self.weights).name)
        )

    @property
    @abc.abstractmethod
    def published(self) -> str:
        """The full name of the weights that ``weights=imagenet`` loads."""

    @property
    @abc.abstractmethod
    def classifier(self) -> tuple[str, ...]:
        """The attribute names of the layers that ``head`` replaces."""

    @abc.abstractmethod
    def published_network(self) -> nn.Module:
        """Build the network as it was published, with its classifier, and with random weights."""

    @abc.abstractmethod
    def download(self) -> Mapping[str, torch.Tensor]:
        """Download the published weights; raises whatever the library raises if it fails."""

    def initialise(self, backbone: nn.Module) -> None:
        """Load the weights that ``weights`` names.

        A replaced layer gets weights only from a checkpoint of dmlbench in which it has the same
        size; otherwise it stays random. A file whose names are others is matched by the order of
        its tensors, if every one of them fits (``renamed_by_order``), and a warning says so.

        Raises:
            UserError: the weights are not available, or do not fit the network.
        """
        if self.weights == NONE:
            return
        if self.weights == PRETRAINED:
            self._load(backbone, self._downloaded(), own_head=False)
            return
        from dmlbench.storage.weights import BACKBONE, fitted, read_state

        try:
            state, prefix = fitted(read_state(self._file()), backbone.state_dict())
        except ValueError as error:
            raise UserError(f"model {self.card.name}: {self.weights}: {error}") from None
        try:
            self._load(backbone, state, own_head=prefix == BACKBONE)
        except UserError as error:
            published = self.published_network().state_dict()
            renamed, reason = renamed_by_order(state, published, self._in_classifier)
            if renamed is None:
                raise UserError(f"{error}; and its tensors do not fit in order: {reason}") from None
            self._load(backbone, renamed, own_head=False)
            warnings.warn(
                f"model {self.card.name}: the names in {self.weights} are not the network's; its "
                f"{len(renamed)} tensors fit one by one and were loaded in their order",
                stacklevel=2,
            )

    def _load(self, backbone: nn.Module, state: Mapping[str, torch.Tensor], own_head: bool) -> None:
        """Load ``state``, all of it but the classifier.

        Args:
            backbone: the network.
            state: name -> tensor.
            own_head: also load the layer that replaces the classifier, where its size is the same.

        Raises:
            UserError: a name or a shape is not the network's.
        """
        from dmlbench.storage.weights import load_state

        own = backbone.state_dict()
        if self.head == "own":
            wanted = dict(state)
        else:
            wanted = {key: value for key, value in state.items() if not self._in_classifier(key)}
            for key in filter(self._in_classifier, own):
                there = own_head and not self._is_random(key, state, own)
                wanted[key] = state[key] if there else own[key]
        try:
            load_state(backbone, wanted)
        except RuntimeError as error:
            reason = message_of(error)[:200]
            raise UserError(
                f"model {self.card.name}: {self.weights} does not fit: {reason}"
            ) from None

    @staticmethod
    def _is_random(
        key: str, state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
    ) -> bool:
        """True if a tensor of the new layer stays random: a file lacks it, or has another size."""
        return key not in state or state[key].shape != own[key].shape

    def _downloaded(self) -> Mapping[str, torch.Tensor]:
        try:
            with redirect_stdout(sys.stderr):  # the hub prints its progress
                return self.download()
        except Exception as error:  # no connection, an error of the hub, a wrong hash
            reason = message_of(error)[:200]
            random = canonical_model(replace(self, weights=NONE))
            raise UserError(
                f"model {self.card.name}: {self.published} is not available ({reason}): "
                f"{self.manual_download}, or start from a file (weights=FILE) or from random "
                f"weights ({random})"
            ) from None

    @property
    def manual_download(self) -> str:
        """Advice, in an error message, for a machine without an internet connection."""
        return "fetch them on a machine that has a network"

    def _in_classifier(self, key: str) -> bool:
        return key.startswith(tuple(f"{name}." for name in self.classifier))

    def _file(self) -> Path:
        path = Path(self.weights)
        if not path.is_file():
            raise UserError(
                f"model {self.card.name}: weights must be imagenet, none or a file, and "
                f"{self.weights!r} is not a file"
            )
        return path

    def _check_channels(self, channels: int) -> None:
        if channels != 3:
            raise UserError(f"model {self.card.name} needs RGB images, got {channels} channel(s)")
