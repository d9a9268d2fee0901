"""A component named by the place of its class: ``package.module:Class`` or ``path/file.py:Class``.

A class that is not registered is known by this name on the command line, in run files and in other
processes. Its source code (``core.sources``) is part of its identity, so that changed code gives
new numbers.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import secrets
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from dmlbench.common.errors import CellError, UserError
from dmlbench.common.files import read_file
from dmlbench.common.text import message_of
from dmlbench.core import sources

_PATTERN = re.compile(
    r"((?:[A-Za-z]:[\\/])?[^:]+?\.py|[A-Za-z_][\w.]*)"  # a file (on Windows with a drive), a module
    r":([A-Za-z_]\w*)(?::(.*))?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Reference:
    """The place of a class or function, as the user wrote it.

    Attributes:
        place: a module (``package.module``), or a file that ends in ``.py``.
        name: of the class or function in it.
    """

    place: str
    name: str

    def __str__(self) -> str:
        return f"{self.place}:{self.name}"

    @property
    def is_file(self) -> bool:
        """True if ``place`` is a file, false if it is a module."""
        return self.place.endswith(".py")

    def load(self) -> object:
        """Import the module, or run the file, and return what is called ``name`` there.

        Raises:
            UserError: there is no such place or name, or the code there raises an error.
        """
        try:
            module = _from_file(Path(self.place)) if self.is_file else _import(self.place)
        except UserError as error:
            raise UserError(f"{self}: {error}") from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever the user's code raises
            raise UserError(f"{self}: {reason(error)}") from None
        if not hasattr(module, self.name):
            close = difflib.get_close_matches(self.name, vars(module), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{self}: {self.place} has no attribute {self.name!r}{hint}")
        return getattr(module, self.name)


def read(text: str) -> tuple[Reference, str | None] | None:
    """The reference that a spec begins with, and what follows its second colon.

    None if the spec does not begin with a reference.

    >>> read("my/attacks.py:Towards:steps=8")
    (Reference(place='my/attacks.py', name='Towards'), 'steps=8')
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        return None
    place, name, rest = match.groups()
    return Reference(Path(place).as_posix() if place.endswith(".py") else place, name), rest


@dataclass(frozen=True)
class Origin:
    """The file or module that a class which is not registered came from.

    Attributes:
        reference: as the user wrote it.
        path: the file that was read, absolute; None if there is none.
        source: digest of that file and of what it imports (``core.sources``).
    """

    reference: Reference
    path: Path | None
    source: str | None

    def restore(self) -> object:
        """An empty instance of the class, in a process that may not have loaded it yet.

        Raises:
            UserError: the class is not there, or its file has changed since.
        """
        place = self.reference
        if place.is_file:  # this process may work in another folder
            place = Reference(str(self.path), place.name)
        cls = place.load()
        assert isinstance(cls, type)
        if remember(cls, self.reference).source != self.source:
            raise UserError(f"{self.path} or what it imports was changed during the run: run again")
        return object.__new__(cls)


_origins: dict[type, Origin] = {}
_typed: dict[type, str] = {}


def remember(cls: type, reference: Reference) -> Origin:
    """Note that ``cls`` was given by ``reference``; the first reference stands."""
    if cls not in _origins:
        _origins[cls] = Origin(reference, sources.source_file(cls), sources.digest(cls))
    return _origins[cls]


def origin(cls: type) -> Origin | None:
    """The origin of a class that was given by a reference; None if it is registered."""
    return _origins.get(cls)


def source_facts(component: object, key: str) -> dict[str, str | None]:
    """The source's part of an identity: ``{key: digest}``.

    It is empty for what is part of dmlbench, whose versions are on its cards, and for a class that
    was written in C. One that was typed into a notebook cannot be told from the next one of that
    name, so it has a digest that no other class has, and a warning says what follows from this.
    """
    cls = type(component)
    known = origin(cls)
    if known is not None:
        return {key: known.source}
    if is_own(cls):
        return {}
    if sources.is_typed(cls):
        return {key: _of_typed(cls)}
    digest = sources.digest(cls)
    return {key: digest} if digest else {}


def _of_typed(cls: type) -> str:
    """A random digest for a class without a file, the same as long as the class is in memory."""
    if cls not in _typed:
        _typed[cls] = secrets.token_hex(32)
        warnings.warn(
            f"{cls.__name__} is in no file: another session cannot know that it is the same, and "
            "trains and measures anew; put it into a file to keep its results",
            stacklevel=2,
        )
    return _typed[cls]


def is_own(cls: type) -> bool:
    """True if a class is one of this package; false for one of a plugin or a user."""
    return cls.__module__.partition(".")[0] == "dmlbench"


@contextmanager
def foreign(component: object) -> Iterator[None]:
    """Whatever the code of a component outside dmlbench raises becomes a UserError that names it.

    That is any exception but Ctrl-C: also ``SystemExit``, which would end the run without a word.
    """
    try:
        yield
    except (UserError, CellError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if is_own(type(component)):
            raise
        cls = type(component)
        place = sources.source_file(cls) or cls.__module__
        raise UserError(f"{cls.__qualname__} of {place}: {reason(error)}") from None


def _import(name: str) -> ModuleType:
    """A module of an installed package or of the working folder."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a script of the user's own, as python -m has it
    return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    """The module that a file holds; a file that is imported already is not run again.

    The name of the module follows from the content: a file that was changed is another module.
    """
    try:
        there = path.is_file()
    except OSError as error:  # a name that is too long
        raise UserError(error.strerror) from None
    if not there:
        where = "" if path.is_absolute() else f" in {Path.cwd()} (where dmlbench was started)"
        raise UserError(f"there is no file {path}{where}")
    path = path.resolve()
    content = read_file(path)
    name = f"{sources.OF_FILE}{sha256(str(path).encode() + content).hexdigest()[:16]}"
    known = sys.modules.get(name) or _imported(path)
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # files beside it may be imported
    try:
        exec(compile(content, path, "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _imported(path: Path) -> ModuleType | None:
    """The module that was imported from ``path`` under its usual name, e.g. from a package."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__dict__", {}).get("__file__")
        ours = getattr(module, "__name__", "").startswith(sources.OF_FILE)
        if file and not ours and Path(file).name == path.name and Path(file).resolve() == path:
            return module
    return None


def reason(error: BaseException) -> str:
    """The error in one line, with the line of the user's code that raised it."""
    said = message_of(error, "no message")
    if isinstance(error, ModuleNotFoundError | SyntaxError):  # they name their place
        return said
    frames = traceback.extract_tb(error.__traceback__)
    last = [frame for frame in frames if Path(frame.filename).parent != Path(__file__).parent][-1:]
    where = f" (line {last[0].lineno} of {last[0].filename})" if last else ""
    return f"{type(error).__name__}: {said}{where}"
