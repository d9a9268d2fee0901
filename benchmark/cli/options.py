"""Command-line options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from dmlbench.core.protocol import PRECISIONS, SUITES

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)
OPTIONS: dict[str, Callable[[F], F]] = {
    "dataset": click.option(
        "--dataset",
        default="fashion-mini",
        show_default=True,
        metavar="SPEC",
        help="Data set. A SPEC is a name, MODULE:CLASS or FILE.py:CLASS, and :KEY=VALUE,... behind "
        "it.",
    ),
    "defenses": click.option(
        "--defense",
        "defenses",
        multiple=True,
        required=True,
        metavar="SPEC",
        help="Defense to train, or 'all'. May be repeated.",
    ),
    "model": click.option(
        "--model",
        metavar="SPEC",
        help="Network; also a function, MODULE:FACTORY. Default: the data set's.",
    ),
    "recipe": click.option(
        "--recipe",
        default="",
        metavar="KEY=VALUE,...",
        help="Change the data set's training recipe, e.g. epochs=2,pairs=32.",
    ),
    "seeds": click.option(
        "--seed",
        "seeds",
        multiple=True,
        type=click.IntRange(min=0),
        default=(0,),
        show_default=True,
        help="Seed of training and targets. May be repeated.",
    ),
    "attacks": click.option(
        "--attack",
        "attacks",
        multiple=True,
        metavar="SPEC",
        help="Attack to run, or 'all'. May be repeated.",
    ),
    "suites": click.option(
        "--suite",
        "suites",
        multiple=True,
        type=click.Choice(SUITES),
        help="Definitions that attacks follow: the papers' (strict) or the published code's "
        "(ers). May be repeated. Without --attack it runs the nine attacks of ERS.",
    ),
    "queries": click.option(
        "--queries",
        type=click.IntRange(min=1),
        metavar="N",
        help="Attack N test images, drawn at random and the same for every model, and not each; "
        "labelled in the row. The gallery stays whole.",
    ),
    "results": click.option(
        "--results", type=PATH, default="results", show_default=True, help="Results folder."
    ),
    "leaderboards": click.option(
        "--leaderboards",
        type=PATH,
        default="leaderboards",
        show_default=True,
        help="Folder for rendered boards.",
    ),
    "data_root": click.option(
        "--data-root", type=PATH, help="Folder of data sets, searched first."
    ),
    "cache": click.option(
        "--cache",
        type=PATH,
        help="Folder for decoded images. Default: ~/.cache/dmlbench/decoded.",
    ),
    "device": click.option(
        "--device",
        default="auto",
        show_default=True,
        help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.",
    ),
    "batch_size": click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        help="Images a forward pass in evaluation; changes no result.",
    ),
    "threads": click.option("--threads", type=click.IntRange(min=1), help="CPU threads."),
    "precision": click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="fp32",
        show_default=True,
        help="Of the network in evaluation; tf32 and bf16 are labelled in the row.",
    ),
    "json": click.option(
        "--json", "as_json", is_flag=True, help="Print JSON for a script to read."
    ),
}


def options(*names: str) -> Callable[[F], F]:
    """The named shared options, in that order."""

    def decorate(command: F) -> F:
        for name in reversed(names):
            command = OPTIONS[name](command)
        return command

    return decorate
