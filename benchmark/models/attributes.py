"""The values in a network that its state dict does not have, and that may change its output.

These are buffers that are not saved, attributes (a number of levels, a function), and hooks. The
text that PyTorch prints of a network has those of the layers of ``torch.nn``.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import re
import types
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from dmlbench.common.lazy import np, torch
from dmlbench.core import sources
from dmlbench.models import torchscript

if TYPE_CHECKING:
    from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PLAIN = (type(None), bool, int, float, complex, str, bytes, range)


@dataclass
class Attributes:
    """The attributes of a network and of all its layers.

    Attributes:
        known: name -> value as JSON types: a tensor by its digest, a function by its name.
        unknown: names of those whose values cannot be compared, and of classes without a file.
        code: functions and classes that are values.
    """

    known: dict[str, Any] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    code: list[Any] = field(default_factory=list)


class _IncomparableError(Exception):
    """Two values of this kind cannot be told apart, or not told to be the same."""


def attributes_of(network: nn.Module) -> Attributes:
    """Read all attributes of a network that its state dict and its printed text do not have."""
    found = Attributes()
    layers = {id(layer): name for name, layer in network.named_modules()}
    scripts = [one for one in network.modules() if isinstance(one, torch.jit.ScriptModule)]
    inside = {id(part) for one in scripts for part in one.modules() if part is not one}
    for name, layer in network.named_modules():
        if id(layer) in inside:
            continue  # the archive of the script has it
        cls = type(layer)
        if not _has_file(cls):
            found.unknown.append(f"the code of class {cls.__qualname__}, which is in no file")
        for key, value in _held(layer):
            where = f"{name}.{key}".lstrip(".")
            try:
                found.known[where] = _described(value, layers, found.code)
            except (_IncomparableError, RecursionError):
                found.unknown.append(where)
    found.unknown = list(dict.fromkeys(found.unknown))
    return found


def tensor_bytes(value: torch.Tensor) -> tuple[str, bytes]:
    """Type and shape of a tensor, and its values."""
    dense = value.detach().cpu().contiguous()
    content = dense.reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{dense.dtype} {tuple(dense.shape)}", content


def _held(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and value of what a layer holds itself."""
    for name in sorted(layer._non_persistent_buffers_set):
        yield name, layer._buffers[name]
    for name in HOOKS:
        if hooks := getattr(layer, name):
            yield name, list(hooks.values())
    if isinstance(layer, torch.jit.ScriptModule):
        yield "archive", layer
        return
    every = vars(torch.nn.Module())
    prints, printed, defaults = _declared(type(layer))  # type: ignore[arg-type]  # a class has a hash
    for name, value in vars(layer).items():
        if name in every:
            continue
        derived = prints and name.startswith("_")  # from what is printed
        usual = name not in defaults or value == defaults[name]
        if isinstance(value, torch.Tensor) or not (derived or (name in printed and usual)):
            yield name, value


@functools.cache
def _declared(cls: type[nn.Module]) -> tuple[bool, set[str], dict[str, Any]]:
    """The attributes that a layer of PyTorch's own declares and prints.

    It prints them all but some arguments, as ``ceil_mode`` of ``AvgPool2d``.

    Returns:
        True for a layer of PyTorch's own that prints its attributes (for any other class the rest
        is empty); the names of the attributes; the default values of those it does not print.
    """
    own = cls.__module__.startswith("torch.nn.modules.")
    if not own or cls.extra_repr is torch.nn.Module.extra_repr:
        return False, set(), {}
    places = ("__constants__", "__annotations__")
    classes = [one for one in cls.mro() if one is not torch.nn.Module]  # it declares ``forward``
    names = {name for one in classes for place in places for name in getattr(one, place, ())}
    words = set(re.findall(r"\w+", inspect.getsource(cls.extra_repr)))
    arguments = inspect.signature(cls).parameters
    hidden = names.intersection(arguments) - words
    return True, names, {name: arguments[name].default for name in hidden}


def _described(value: Any, layers: dict[int, str], code: list[Any]) -> Any:
    """A value as JSON types, the same for two values if and only if they are.

    Args:
        value: the value.
        layers: id -> name of the layers of the network.
        code: the functions and classes in the value are added to it.

    Raises:
        _IncomparableError: it holds something of which that cannot be said.
    """
    inner = functools.partial(_described, layers=layers, code=code)
    kind = type(value)
    if kind in PLAIN or isinstance(value, np.generic | np.dtype | PurePath):
        return repr(value)
    if isinstance(value, torch.dtype | torch.device | torch.layout | torch.memory_format):
        return repr(value)
    if isinstance(value, enum.Enum):
        return ["enum", inner(kind), value.name]
    if isinstance(value, torch.Tensor):
        return ["tensor", *_digested(value)]
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        content = np.ascontiguousarray(value).tobytes()
        return ["array", value.dtype.str, list(value.shape), hashlib.sha256(content).hexdigest()]
    if kind in (dict, OrderedDict):
        return ["dict", [[inner(k), inner(v)] for k, v in value.items()]]
    if kind in (set, frozenset):
        return ["set", sorted(json.dumps(inner(one)) for one in value)]
    if kind is list or isinstance(value, tuple):
        return [kind.__qualname__, [inner(one) for one in value]]
    if isinstance(value, torch.jit.ScriptModule):
        try:
            return ["TorchScript", torchscript.digest(value)]
        except ValueError:
            raise _IncomparableError from None
    if isinstance(value, torch.nn.Module) and id(value) in layers:
        return ["layer", layers[id(value)]]
    if isinstance(value, functools.partial):
        return ["partial", inner(value.func), inner(value.args), inner(value.keywords)]
    if isinstance(value, types.MethodType):
        return ["method", inner(value.__self__), inner(value.__func__)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        return ["dataclass", inner(kind), inner(fields)]
    return ["code", _named(value, code)]


def _has_file(code: Any) -> bool:
    """False for a function or a class that was typed into a shell or a notebook."""
    return code.__module__ != "__main__" or sources.source_file(code) is not None


def _digested(value: torch.Tensor) -> tuple[str, str]:
    try:
        form, content = tensor_bytes(value)
    except (RuntimeError, TypeError):  # it is sparse, or has no values
        raise _IncomparableError from None
    return form, hashlib.sha256(content).hexdigest()


def _named(value: Any, code: list[Any]) -> str:
    """The full name of a function or a class, which is added to ``code``."""
    if isinstance(value, types.BuiltinFunctionType):
        sound = value.__self__ is None or isinstance(value.__self__, type | types.ModuleType)
    elif isinstance(value, types.FunctionType | type):
        fixed = "<" not in value.__qualname__ and not getattr(value, "__closure__", None)
        sound = fixed and _has_file(value)
    else:
        sound = False
    if not sound:
        raise _IncomparableError
    code.append(value)
    return f"{value.__module__}.{value.__qualname__}"
