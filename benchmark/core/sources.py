"""The source code that a component outside dmlbench consists of, as one digest for identities.

It covers the file of the component, and every file that this one imports from outside installed
packages, directly or through others. Imports are read from the text of the files, those in
functions too, so the digest is the same in every process. A module that is found by its name only
while the code runs (``importlib.import_module``), and what the code reads from other files, are
not seen.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import sysconfig
import threading
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from dmlbench.common.errors import UserError
from dmlbench.common.files import read_file
from dmlbench.common.hashing import content_sha256, file_sha256
from dmlbench.core.imported import has_changed

OF_FILE = "dmlbench_file_"  # beginning of the names of modules that ``core.reference`` runs
INSTALLED = ("site-packages", "dist-packages")  # folders of installed packages
_STANDARD = Path(sysconfig.get_path("stdlib"))
_seen: dict[Path, tuple[object, str]] = {}
"""File of a module -> the spec that it was imported by, and its digest when it was first seen."""

PARSING = threading.Lock()  # Python 3.11 counts the depth of all threads together


def source_file(thing: object) -> Path | None:
    """The Python file that a class, a function or another callable is from.

    None if it was written in C, or typed into a shell or a notebook.
    """
    while isinstance(thing, functools.partial):
        thing = thing.func
    if not (inspect.isroutine(thing) or isinstance(thing, type | ModuleType)):
        thing = type(thing)
    try:
        found = inspect.getsourcefile(inspect.unwrap(thing))  # type: ignore[arg-type]
    except (TypeError, ValueError, OSError):
        return None
    return Path(found).resolve() if found and Path(found).is_file() else None


def is_typed(cls: type) -> bool:
    """True for a class that was typed into a shell or a notebook: its module has no file."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return file is None or not Path(file).is_file()


def digest(*things: object) -> str | None:
    """SHA-256 of the source of classes or callables; None if there is no file of the first.

    Of further ones those in installed packages do not count. Where one file is all there is, it is
    the SHA-256 of that file.

    Raises:
        UserError: a file that was imported has changed since; this process runs the old code.
    """
    files = {file: _home(thing) for thing in things[:1] if (file := source_file(thing))}
    if not files:
        return None
    for thing in things[1:]:
        file = source_file(thing)
        if file is not None and _outside(file):
            files.setdefault(file, _home(thing))
    roots = [_sha256(file, module) for file, module in files.items()]
    imported = _imported({file: _package(module) for file, module in files.items()})
    if len(roots) == 1 and not imported:
        return roots[0]
    return content_sha256({"roots": [roots[0], *sorted(roots[1:])], "imported": imported})


def _sha256(file: Path, module: ModuleType | None) -> str:
    """The digest of a module's file; UserError if it has changed since the module was imported."""
    now = file_sha256(file)
    if module is not None and not module.__name__.startswith(OF_FILE):
        if file not in _seen and has_changed(module, file):
            raise UserError(f"{file} was changed after it was imported: start Python again")
        spec, before = _seen.setdefault(file, (module.__spec__, now))
        if spec is not module.__spec__:  # imported again since
            _seen[file] = module.__spec__, now
        elif before != now:
            raise UserError(f"{file} was changed after it was imported: start Python again")
    return now


def _imported(roots: dict[Path, str]) -> dict[str, str]:
    """Name -> SHA-256 of each module outside installed packages that the files import.

    Args:
        roots: file -> the package that its relative imports begin at.
    """
    found: dict[str, str] = {}
    waiting, known = list(roots.items()), set(roots)
    while waiting:
        for name in sorted(set(_names(*waiting.pop()))):
            file, package = _module(name)
            if file is None or file in known or not _outside(file):
                continue
            known.add(file)
            found[name] = _sha256(file, sys.modules.get(name))
            if file.suffix == ".py":
                waiting.append((file, package))
    return found


def _names(file: Path, package: str) -> Iterator[str]:
    """Full names of the modules that a file may import, and of the packages around them."""
    try:
        content = read_file(file)
        with PARSING:
            tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):
        return  # it cannot be imported either
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            if parts[0] != "dmlbench" and parts[0] not in sys.stdlib_module_names:
                yield from (".".join(parts[: i + 1]) for i in range(len(parts)))


def _module(name: str) -> tuple[Path | None, str]:
    """The file of a module, and its package; None if it has no file. Nothing is imported."""
    module = sys.modules.get(name)
    if module is not None:
        file = getattr(module, "__file__", None)
        path = Path(file) if file else None  # that of torch.ops does not exist
        return path.resolve() if path and path.is_file() else None, _package(module)
    parent = name.rpartition(".")[0]
    spec = PathFinder.find_spec(name, _folders(parent) if parent else None)
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return None, ""
    return Path(spec.origin).resolve(), spec.parent or ""


def _folders(package: str) -> list[str]:
    """The folders that modules of a package are looked for in."""
    module = sys.modules.get(package)
    if module is not None:
        return list(getattr(module, "__path__", ()))
    parent = package.rpartition(".")[0]
    spec = PathFinder.find_spec(package, _folders(parent) if parent else None)
    return list(spec.submodule_search_locations or ()) if spec else []


def _home(thing: object) -> ModuleType | None:
    """The module that a class or a callable is defined in."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    return sys.modules.get(getattr(thing, "__module__", None) or "")


def _package(module: ModuleType | None) -> str:
    """The package that relative imports of a module begin at."""
    return getattr(module, "__package__", None) or ""


def _outside(file: Path) -> bool:
    """True if a file is neither of an installed package nor of Python itself."""
    return not (set(INSTALLED) & set(file.parts)) and not file.is_relative_to(_STANDARD)
