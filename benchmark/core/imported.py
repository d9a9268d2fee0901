"""Comparison of an imported module, whose code this process runs, with its file as it is now."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from dmlbench.common.files import read_file


def has_changed(module: ModuleType, file: Path) -> bool:
    """True if a function or method of ``module`` is no longer as its file has it.

    Other values (constants, defaults) are not compared, as a module keeps no trace of how they were
    written; nor are functions that the file does not have. Modules whose code is changed as they
    are imported (by pytest, by a type checker) are taken as unchanged.

    Args:
        module: is imported from ``file``.
        file: the resolved path of a Python file.
    """
    spec = module.__spec__
    if spec is None or type(spec.loader) is not SourceFileLoader:
        return False
    try:
        with warnings.catch_warnings(action="ignore"):  # they were shown at the import
            written = compile(read_file(file), str(file), "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):
        return True
    by_name: dict[str, list[CodeType]] = {}
    for code in _within(written):
        by_name.setdefault(code.co_qualname, []).append(code)
    return any(
        code.co_qualname in by_name
        and not any(_alike(code, one) for one in by_name[code.co_qualname])
        for code in _functions(module, module.__name__, set())
        if Path(code.co_filename).resolve() == file
    )


def _within(code: CodeType) -> Iterator[CodeType]:
    """The code of every function and class in ``code``, at any depth."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _within(constant)


def _functions(place: ModuleType | type, module: str, seen: set[type]) -> Iterator[CodeType]:
    """The code of the functions in a module or a class, and of the methods of its classes.

    ``seen``: classes that were looked at, to which this one adds: two may refer to each other.
    """
    for value in vars(place).values():
        if isinstance(value, type):
            if value.__module__ == module and value not in seen:
                seen.add(value)
                yield from _functions(value, module, seen)
            continue
        parts: tuple[object, ...] = (value,)
        if type(value) is property:
            parts = value.fget, value.fset
        elif type(value) in (staticmethod, classmethod):
            parts = (value.__func__,)
        elif type(value) is functools.cached_property:
            parts = (value.func,)
        for part in parts:
            while type(part) is FunctionType:
                yield part.__code__
                part = vars(part).get("__wrapped__")  # what a decorator has wrapped


def _alike(a: CodeType, b: CodeType) -> bool:
    """True if two functions do the same; they may stand in other lines."""
    instructions = a.co_code == b.co_code and a.co_names == b.co_names
    return instructions and a.co_varnames == b.co_varnames and _equal(a.co_consts, b.co_consts)


def _equal(a: object, b: object) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, CodeType) and isinstance(b, CodeType):
        return _alike(a, b)
    if isinstance(a, frozenset):
        return a == b
    return type(a) is type(b) and repr(a) == repr(b)  # NaN is as NaN, 1 is not 1.0
