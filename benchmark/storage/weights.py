"""Read weights from files of any origin, without running code that a file may contain.

A file is read in two steps: ``read_state`` unpacks its state dict, and ``fitted`` gives the weights
the names that the network has, as wrappers (DataParallel, torch.compile, a Lightning module) put
prefixes before them.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from dmlbench.common.errors import UserError
from dmlbench.common.files import open_file
from dmlbench.common.lazy import torch
from dmlbench.common.text import first_line, listed

if TYPE_CHECKING:
    from torch import nn

CONTAINERS = ("state_dict", "model_state_dict", "model", "model_state", "network", "net")
"""Keys that training scripts save a state dict under."""

BACKBONE = "backbone."  # before the network's names in an ``EmbeddingModel``
DEPTH = 3  # parts of a prefix, as in module.model.backbone.
REMEDY = "save the weights alone, by torch.save(network.state_dict(), FILE)"
NAMED = 8  # keys of a kind that an error names
LIGHTNING = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "robrank.")


class _StandIn:
    """An empty replacement for a class that a Lightning checkpoint names."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def read_state(path: Path) -> Mapping[str, torch.Tensor]:
    """The state dict in a safetensors file, a PyTorch file or a checkpoint of PyTorch Lightning.

    It may be the whole file, or lie in it under one of ``CONTAINERS``. PyTorch files are read with
    ``weights_only``, which refuses every class but tensors. A Lightning checkpoint (RobRank's
    models) also names classes of its callbacks: those of Lightning's and RobRank's own modules are
    replaced by empty ones, nothing is imported, and every other class is still refused.

    Raises:
        UserError: the file is missing, unreadable, or holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        open_file(path).close()  # a pipe is refused, not waited for
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_stand_ins(path)), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*TorchScript archive")  # is refused
                state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist") from None
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {_reason(error)}") from None
    except Exception as error:  # pickle.UnpicklingError and whatever a broken pickle raises
        raise UserError(
            f"checkpoint {path} is not a plain state dict (weights_only): {_refusal(error)}"
        ) from None
    while isinstance(state, Mapping) and (key := _container(state)):
        others = [str(one) for one, value in state.items() if one != key and _is_state(value)]
        if others:
            warnings.warn(
                f"checkpoint {path} holds the weights {key} and {named(others)}: {key} is taken; "
                "to measure others, save them alone",
                stacklevel=2,
            )
        state = state[key]
    if not _is_state(state):
        listing = isinstance(state, Mapping) and state
        keys = f": it has the keys {named(map(str, state))}" if listing else ""
        raise UserError(f"checkpoint {path} holds no state dict{keys}; {REMEDY}")
    return state


def _container(state: Mapping[str, Any]) -> str:
    """The one of ``CONTAINERS`` that holds a state dict; empty if none does."""
    return next((key for key in CONTAINERS if isinstance(state.get(key), Mapping)), "")


def _is_state(value: Any) -> TypeGuard[Mapping[str, torch.Tensor]]:
    """True if ``value`` is a state dict: a mapping to tensors."""
    return isinstance(value, Mapping) and bool(value) and all(map(torch.is_tensor, value.values()))


def fitted(
    state: Mapping[str, torch.Tensor], own: Collection[str]
) -> tuple[Mapping[str, torch.Tensor], str]:
    """``state`` by the names of a network, and the prefix that was taken off.

    The prefix is the one behind which most names are the network's. What lies outside of it (the
    parameters of a loss) is left out; a name with this prefix that the network does not have is
    kept, so that loading reports it.

    Args:
        state: name -> tensor, as ``read_state`` gives it.
        own: the names of the network's own state dict.

    Raises:
        ValueError: two prefixes hold the whole network, or equally many names and most of it, so
            the file does not say which is meant.
    """
    start = BACKBONE if own and all(name.startswith(BACKBONE) for name in own) else ""
    wanted = {name.removeprefix(start) for name in own}
    heads = {head for name in state for head in _heads(name)}
    found = {head: {n for n in state if n.startswith(head) and n[len(head) :] in wanted}
             for head in sorted(heads, key=lambda head: (len(head), head))}  # fmt: skip
    prefix = max(found, key=lambda head: (len(found[head]), head == start), default="")
    most = len(found.get(prefix, ()))
    alike = [head for head, names in found.items() if len(names) == most]
    apart = any(not longer.startswith(shorter) for shorter, longer in combinations(alike, 2))
    if len(alike) > 1 and (most == len(wanted) or (apart and most > len(wanted) / 2)):
        raise ValueError(f"the network is in it {len(alike)} times, under {named(alike)}: keep one")
    inside = {name: value for name, value in state.items() if name.startswith(prefix)}
    if prefix == start and len(inside) == len(state):
        return state, prefix  # with the version marks that it has
    return {start + name[len(prefix) :]: value for name, value in inside.items()}, prefix


def _heads(name: str) -> Iterable[str]:
    """The prefixes of a name: of ``a.b.weight`` the empty one, ``a.`` and ``a.b.``."""
    parts = name.split(".")[:-1][:DEPTH]
    return ["".join(f"{part}." for part in parts[:count]) for count in range(len(parts) + 1)]


def misfit(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> str:
    """The names and shapes in which ``state`` is not that of a network, in one line.

    Empty if they agree.
    """
    missing = [_short(name) for name in own if name not in state]
    unknown = [_short(name) for name in state if name not in own]
    shapes = [
        f"{_short(name)} ({_shape(state[name])} in the file, {_shape(own[name])} in the network)"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if unknown and not (missing or shapes):
        return (
            f"the file also has {named(unknown)}, which this network does not have: save only the "
            "weights of the embedding network"
        )
    parts = (
        ("the file lacks", missing),
        ("this network does not have", unknown),
        ("of another shape:", shapes),
    )
    return "; ".join(f"{what} {named(names)}" for what, names in parts if names)


def named(names: Iterable[str]) -> str:
    """The first names of a list, and how many more there are."""
    return listed([name or "no prefix" for name in names], NAMED)


def _short(name: str) -> str:
    return name.removeprefix(BACKBONE)


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """``model.load_state_dict`` for a state that has lost its version marks, as in safetensors.

    Weights of another floating-point type than the model's are converted, with a warning.

    Raises:
        RuntimeError: the names, the shapes or the kinds of numbers are not the model's.
    """
    _check_types(model, state)
    marked: Any = OrderedDict(state)
    own: Any = model.state_dict()
    marked._metadata = getattr(state, "_metadata", own._metadata)
    model.load_state_dict(marked)


def _check_types(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """RuntimeError for complex weights, say, which would lose a part; a warning for half ones."""
    converted = {}
    for name, own in model.state_dict().items():
        given = state.get(name)
        if given is None or given.dtype == own.dtype:
            continue
        if not (given.is_floating_point() and own.is_floating_point()):
            raise RuntimeError(f"{name} holds {given.dtype}, the network computes in {own.dtype}")
        converted[str(given.dtype)] = str(own.dtype)
    for given_type, own_type in converted.items():
        warnings.warn(f"weights of {given_type} are converted to {own_type}", stacklevel=3)


def _stand_ins(path: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (OSError, RuntimeError, ValueError):  # unreadable, or older than the zip format
        return []
    ours = [name for name in names if name.startswith(LIGHTNING)]  # AttributeDict has items
    return [(OrderedDict if name.endswith("Dict") else _StandIn, name) for name in ours]


def _refusal(error: Exception) -> str:
    """The reason why PyTorch refused a file, in a few words instead of its page."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named is None:
        return "it is no file of PyTorch's or safetensors'"
    return f"it names {named[1]}; {REMEDY}"


def _reason(error: Exception) -> str:
    if "TorchScript" in str(error):
        return f"it is an archive of TorchScript; {REMEDY}"
    if isinstance(error, EOFError):
        return "it is empty or cut off"
    if "enforce fail" in str(error):  # of an archive that is none of PyTorch's
        return f"it is no file of PyTorch; {REMEDY}"
    return first_line(error)
