"""Whether the file of an imported module still holds the code that this process runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from dmlbench.common.files import read_file


def has_changed(module: ModuleType, file: Path) -> bool:
    """True if a function or method of ``module`` is no longer as its file has it.

    Values outside functions are not compared: a module keeps no trace of how they were written.
    Modules whose code is changed as they are imported (by pytest, by a type checker) are taken as
    unchanged.

    Args:
        module: is imported from ``file``.
        file: the resolved path of a Python file.
    """
    spec = module.__spec__
    if spec is None or type(spec.loader) is not SourceFileLoader:
        return False
    try:
        written = compile(read_file(file), str(file), "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):
        return True
    by_name: dict[str, list[CodeType]] = {}
    for code in _within(written):
        by_name.setdefault(code.co_qualname, []).append(code)
    return any(
        code.co_qualname in by_name and code not in by_name[code.co_qualname]
        for code in _of(module)
        if Path(code.co_filename).resolve() == file
    )


def _within(code: CodeType) -> Iterator[CodeType]:
    """The code of every function and class in ``code``, at any depth."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _within(constant)


def _of(module: ModuleType) -> Iterator[CodeType]:
    """The code of the functions of a module, and of the methods of its classes."""
    classes = [one for one in vars(module).values() if isinstance(one, type)]
    own = [one for one in classes if one.__module__ == module.__name__]
    for found in (module, *own):
        for value in vars(found).values():
            parts = (value.fget, value.fset) if isinstance(value, property) else (value,)
            for part in parts:
                function = getattr(part, "__func__", part)  # of static and class methods
                if callable(function) and inspect.isfunction(inner := inspect.unwrap(function)):
                    yield inner.__code__
