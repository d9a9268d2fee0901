"""A digest of what a network of TorchScript computes: its code, its constants, its values.

PyTorch saves such a network as an archive: Python code of its classes, and pickles of its objects
and constants. It numbers classes by what the process has compiled before, lists their attributes in
an order that changes from process to process, and pickles the same objects in other bytes. So
neither names of classes nor bytes are compared, but what they stand for.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from dmlbench.common.hashing import content_sha256
from dmlbench.common.lazy import torch

OWN = "__torch__."  # begins the full name of each class and function of an archive
_NAME = re.compile(r"__torch__(?:\.\w+)+")
_CONSTANT = re.compile(r"CONSTANTS\.c(\d+)")
_DEFINITION = re.compile(r"^(?:class|def) (\w+)", re.MULTILINE)


def digest(script: torch.jit.ScriptModule) -> str:
    """SHA-256 of what a network of TorchScript consists of, in evaluation mode.

    It is the same for a network that was compiled or traced once more, in another process too, or
    saved and loaded, as long as PyTorch writes the same code. PyTorch writes other code if another
    function of the same name was compiled before, and for frozen networks with constants that
    nothing reads. Two networks that compute different things never have the same digest.

    Raises:
        ValueError: PyTorch cannot save it, or it holds what cannot be read without its code, as an
            enum.
    """
    try:
        return _digest(script)
    except Exception as error:  # an archive may hold anything
        raise ValueError(f"this TorchScript cannot be compared: {error}") from None


def _digest(script: torch.jit.ScriptModule) -> str:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
        torch.jit.save(copy.deepcopy(script).eval(), content)
    with zipfile.ZipFile(content) as archive:
        files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    constants = _Description(_Code({}, ())).of(_read(files, "constants"))
    code = _Code(_definitions(files), constants[1:])
    return content_sha256({"archive": _Description(code).of(_read(files, "data"))})


def _definitions(files: Mapping[str, bytes]) -> dict[str, str]:
    """Full name -> text of each class and function in an archive."""
    found = {}
    for path, content in files.items():
        if path.startswith("code/") and path.endswith(".py"):
            module, text = path[len("code/") : -len(".py")].replace("/", "."), content.decode()
            starts = list(_DEFINITION.finditer(text))
            for start, after in zip_longest(starts, starts[1:]):
                end = len(text) if after is None else after.start()
                found[f"{module}.{start[1]}"] = _in_order(text[start.start() : end])
    return found


def _in_order(definition: str) -> str:
    """The text of a class with its attributes, which come before its methods, sorted by name."""
    first, *rest = definition.rstrip().split("\n")
    methods = next((n for n, line in enumerate(rest) if line.startswith("  def ")), len(rest))
    if first.startswith("class "):
        rest[:methods] = sorted(rest[:methods])
    return "\n".join([first, *rest])


class _Object:
    """An object of a class of the archive."""

    name = ""
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


@dataclass(frozen=True)
class _Storage:
    """The values of one tensor, or of several that share them."""

    key: str
    content: list[Any]


@dataclass(frozen=True)
class _Call:
    """The result of a function of PyTorch, which is not called."""

    name: str
    arguments: tuple[Any, ...] = ()

    def __call__(self, *arguments: Any) -> _Call:
        return _Call(self.name, arguments)


def _read(files: Mapping[str, bytes], name: str) -> Any:
    """Read a pickle of the archive; none of its code is run."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, cls: str) -> Any:
            full = f"{module}.{cls}"
            return type(cls, (_Object,), {"name": full}) if full.startswith(OWN) else _Call(full)

        def persistent_load(self, pid: Any) -> Any:
            _, kind, key, _, count = pid
            content = hashlib.sha256(files[f"{name}/{key}"]).hexdigest()
            return _Storage(key, [kind.name, content, count])

    return Unpickler(io.BytesIO(files[f"{name}.pkl"])).load()


@dataclass
class _Code:
    """The code of an archive.

    Attributes:
        definitions: full name -> text of each class and function.
        constants: the description of each constant.
    """

    definitions: Mapping[str, str]
    constants: Any
    known: dict[str, str] = field(default_factory=dict)

    def of(self, name: str, inside: tuple[str, ...] = ()) -> str:
        """Digest of a class or function with all that it refers to; else the name itself.

        Of ``__torch__.Color.RED``, a value in a class, it is that of the class, and the rest.
        """
        defined = name
        while defined and defined not in self.definitions:
            defined = defined.rpartition(".")[0]
        rest = name[len(defined) :]
        if not defined:
            return name
        if defined in inside:
            return f"{inside[::-1].index(defined)} around{rest}"
        if defined not in self.known:
            text = self.definitions[defined]
            text = _CONSTANT.sub(lambda n: json.dumps(self.constants[int(n[1])]), text)
            text = self.resolved(text, (*inside, defined))
            self.known[defined] = hashlib.sha256(text.encode()).hexdigest()
        return self.known[defined] + rest

    def resolved(self, text: str, inside: tuple[str, ...] = ()) -> str:
        """The text with digests in the place of names."""
        return _NAME.sub(lambda name: self.of(name[0], inside), text)


@dataclass
class _Description:
    """Describes objects by JSON types."""

    code: _Code
    seen: dict[int | str, int] = field(default_factory=dict)

    def of(self, value: Any) -> Any:
        """The description of a value; of an object that was described before, its number."""
        if isinstance(value, _Object):
            if id(value) in self.seen:
                return ["again", self.seen[id(value)]]
            self.seen[id(value)] = len(self.seen)
            state = value.state
            if isinstance(state, dict):
                state = dict(sorted(state.items()))
            return ["object", self.code.of(value.name), self.of(state)]
        if isinstance(value, _Storage):
            return [self.seen.setdefault(value.key, len(self.seen)), *value.content]
        if isinstance(value, _Call):
            arguments = value.arguments
            if value.name == "torch._utils._rebuild_tensor_v2":
                arguments = arguments[:4]  # storage, offset, shape, strides; not requires_grad
            return [value.name, *map(self.of, arguments)]
        if isinstance(value, dict):
            return ["dict", *([self.of(k), self.of(v)] for k, v in value.items())]
        if isinstance(value, list | tuple):
            return [type(value).__name__, *map(self.of, value)]
        return repr(self.code.resolved(value) if isinstance(value, str) else value)
