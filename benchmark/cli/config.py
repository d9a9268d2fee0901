"""Sweeps as YAML files: the flags of ``run``, by name and without the dashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml

from dmlbench.common.errors import UserError
from dmlbench.common.suggest import unknown

NOT_IN_FILES = ("config", "dry_run", "as_json", "help")


def use_config(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Callback of ``--config``: make the values in the file the defaults of the flags.

    Raises:
        UserError: the file is missing, is no YAML mapping, or has a key that is no flag.
    """
    if path is not None:
        context.default_map = {**(context.default_map or {}), **_read(path, context.command)}
    return path


def _read(path: Path, command: click.Command) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise UserError(f"--config {path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"--config {path} is not YAML: {error}") from None
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
        name = str(key).replace("_", "-")
        if name not in known:
            raise UserError(f"--config {path}: {unknown('key', name, known)}")
        parameter = known[name]
        assert parameter.name is not None
        found[parameter.name] = _value(f"--config {path}: {key}", value, parameter)
    return found


def _value(subject: str, value: Any, parameter: click.Parameter) -> Any:
    """The value as on the command line: text, or a list of texts for a flag that may repeat."""
    if isinstance(value, dict):  # recipe: {epochs: 2, pairs: 32}
        value = ",".join(f"{k}={_text(subject, v)}" for k, v in value.items())
    if isinstance(parameter, click.Option) and parameter.multiple:
        items = value if isinstance(value, list) else [value]
        return [_text(subject, item) for item in items]
    return _text(subject, value)


def _text(subject: str, value: Any) -> str:
    if value is None or isinstance(value, list | dict):
        raise UserError(f"{subject} must be a single value, got {value!r}")
    return str(value).lower() if isinstance(value, bool) else str(value)
