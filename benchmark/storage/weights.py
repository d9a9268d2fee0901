"""Read weights from files of any origin, without running code that a file may contain."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlbench.common.errors import UserError
from dmlbench.common.files import open_file
from dmlbench.common.lazy import torch

if TYPE_CHECKING:
    from torch import nn

LIGHTNING = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "robrank.")


class _StandIn:
    """An empty replacement for a class that a Lightning checkpoint names."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def read_state(path: Path) -> Mapping[str, torch.Tensor]:
    """The state dict in a safetensors file, a PyTorch file or a checkpoint of PyTorch Lightning.

    PyTorch files are read with ``weights_only``, which refuses every class but tensors. A
    Lightning checkpoint (RobRank's models) also names classes of its callbacks: those of
    Lightning's and RobRank's own modules are replaced by empty ones, nothing is imported, and every
    other class is still refused. Only its ``backbone.*`` is returned, not the parameters of its
    loss.

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
            with torch.serialization.safe_globals(_stand_ins(path)):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist") from None
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {_first_line(error)}") from None
    except Exception as error:  # pickle.UnpicklingError and whatever a broken pickle raises
        raise UserError(
            f"checkpoint {path} is not a plain state dict (weights_only): {_refusal(error)}"
        ) from None
    lightning = isinstance(state, Mapping) and "pytorch-lightning_version" in state
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(torch.is_tensor(v) for v in state.values()):
        raise UserError(f"checkpoint {path} holds no state dict")
    if lightning:
        return {name: value for name, value in state.items() if name.startswith("backbone.")}
    return state


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
    return f"it names {named[1]}" if named else "it is no file of PyTorch's or safetensors'"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
