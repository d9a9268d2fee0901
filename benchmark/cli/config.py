"""Sweeps as YAML files: the flags of ``run``, by name and without the dashes.

A file may be of anyone: it is small and flat, each value is the text that a flag would have, and
it runs no code (``refuse_code``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml
from click.core import ParameterSource

from dmlbench.common.errors import UserError
from dmlbench.common.files import read_file
from dmlbench.common.suggest import unknown
from dmlbench.common.text import one_line

if TYPE_CHECKING:
    from dmlbench.core.registry import Registry

NOT_IN_FILES = ("config", "dry_run", "as_json", "help", "allow_code")
LARGEST, LONGEST, DEEPEST, MOST_ALIASES = 1 << 20, 4096, 3, 100
"""Bytes of a file, characters of a value, levels of lists and mappings, uses of anchors."""
_NOTHING = ("", "~", "null", "Null", "NULL")


def use_config(
    context: click.Context, _: click.Parameter, paths: tuple[Path, ...]
) -> tuple[Path, ...]:
    """Callback of ``--config``: make the values in the file the defaults of the flags.

    Raises:
        UserError: there are two files, or the file is missing, is no YAML mapping, or has a key
            that is no flag.
    """
    if len(paths) > 1:
        raise UserError(
            f"--config is given {len(paths)} times ({', '.join(map(str, paths))}): a run takes one "
            "file, so put all keys into it"
        )
    for path in paths:
        context.default_map = {**(context.default_map or {}), **_read(path, context.command)}
    return paths


def refuse_code(**registries: Registry[Any]) -> None:
    """UserError if ``--config`` names code, ``module:Class`` or ``file.py:Class``.

    What the command line itself names is run: whoever typed it has consented.

    Args:
        registries: parameter of the command -> the registry that its specs are of.
    """
    from dmlbench.core.spec import refuse_reference

    context = click.get_current_context()
    for name, registry in registries.items():
        if context.get_parameter_source(name) is ParameterSource.DEFAULT_MAP:
            value = context.params[name]
            for text in [value] if isinstance(value, str) else value:
                refuse_reference(text, registry, "--config")


def _read(path: Path, command: click.Command) -> dict[str, Any]:
    content = _parsed(path)
    if not isinstance(content, dict):
        raise UserError(f"--config {path} must hold keys and values, e.g. 'defense: [none, hm]'")
    known = {
        option.removeprefix("--"): parameter
        for parameter in command.params
        if parameter.name not in NOT_IN_FILES
        for option in parameter.opts
    }
    found = {}
    for key, value in content.items():
        name = key.replace("_", "-")
        if name not in known:
            raise UserError(f"--config {path}: {unknown('key', name, known)}")
        parameter = known[name]
        assert parameter.name is not None
        if parameter.name in found:
            raise UserError(f"--config {path}: key {name!r} is given twice")
        found[parameter.name] = _value(f"--config {path}: {key}", value, parameter)
    return found


def _parsed(path: Path) -> Any:
    """The content of the file: texts, lists and mappings; None for a value that is left out."""
    try:
        raw = read_file(path)
        if len(raw) > LARGEST:
            raise UserError(f"--config {path} is larger than {LARGEST >> 20} MiB")
        depth = aliases = 0
        for event in yaml.parse(raw, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            aliases += isinstance(event, yaml.AliasEvent)
            if depth > DEEPEST or aliases > MOST_ALIASES:
                raise UserError(f"--config {path} is nested too deeply, or has too many aliases")
        return _plain(yaml.compose(raw, Loader=yaml.SafeLoader), path)
    except OSError as error:
        raise UserError(f"--config {path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        said = getattr(error, "problem", None) or "it has bytes that are not text"
        raise UserError(f"--config {path} is not YAML: {said}{where}") from None


def _plain(node: yaml.Node | None, path: Path, level: int = 0) -> Any:
    """A node with every scalar as the text that stands in the file."""
    if level > DEEPEST:
        raise UserError(f"--config {path} has an alias that contains itself")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(one, path, level + 1) for one in node.value]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or _plain(key, path) is None:
                raise UserError(f"--config {path}: a key must be the name of a flag")
            if key.value in found:
                raise UserError(f"--config {path}: a key is given twice: {_shown(key.value)}")
            found[key.value] = _plain(value, path, level + 1)
        return found
    if not isinstance(node, yaml.ScalarNode) or (node.style is None and node.value in _NOTHING):
        return None
    if len(node.value) > LONGEST or one_line(node.value) != node.value:
        raise UserError(f"--config {path}: a value is longer than a line, or is not text")
    return node.value


def _shown(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."


def _value(subject: str, value: Any, parameter: click.Parameter) -> Any:
    """The value as on the command line: text, or a list of texts for a flag that may repeat.

    A callback makes one value of a flag's texts, so there is one in the file.
    """
    if isinstance(value, dict) and parameter.name == "recipe":  # recipe: {epochs: 2, pairs: 32}
        value = ",".join(f"{k}={_text(subject, v)}" for k, v in value.items())
    if isinstance(parameter, click.Option) and parameter.multiple:
        items = value if isinstance(value, list) and parameter.callback is None else [value]
        return [_text(subject, item) for item in items]
    return _text(subject, value)


def _text(subject: str, value: Any) -> str:
    if not isinstance(value, str):
        kinds = {type(None): "nothing", dict: "keys and values", list: "a list"}
        kind = kinds[type(value)]
        raise UserError(f"{subject} must be a single value, got {kind}")
    return value
