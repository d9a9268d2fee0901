"""Options that several verbs of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from dmlbench.cli.completion import specs
from dmlbench.cli.numbers import Whole
from dmlbench.common.errors import UserError
from dmlbench.core.protocol import PRECISIONS, SUITES

F = TypeVar("F", bound=Callable[..., Any])


class _AnyPath(click.Path):
    """A path of a file or folder, which need not be there."""

    def convert(self, value: Any, param: Any, context: Any) -> Any:
        """The path, ``~`` at its beginning expanded, as a shell does not do in ``--results=~/out``.

        Text that no file can be called is refused.
        """
        try:
            path: Any = super().convert(value, param, context)
        except ValueError:
            self.fail("it is not the name of a file", param, context)
        with suppress(RuntimeError):  # no user is called so: it is the name of a file
            return path.expanduser()
        return path


def _only(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str | None:
    """The value of an option that is given at most once: a second one is refused, not dropped."""
    if len(values) > 1:
        given = ", ".join(values)
        raise UserError(f"{option.opts[0]} is given {len(values)} times ({given}): name one")
    return values[0] if values else None


def _joined(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> str:
    """The pairs ``key=value`` of an option that may be repeated, as one text."""
    return ",".join(filter(None, values))


def once(*names: str, **how: Any) -> Callable[[F], F]:
    """An option of which a second value is an error: users may take it for one to be repeated."""
    return click.option(*names, multiple=True, callback=_only, metavar="SPEC", **how)


PATH = _AnyPath(path_type=Path)
DATASET = "fashion-mini"
OPTIONS: dict[str, Callable[[F], F]] = {
    "dataset": once(
        "--dataset",
        default=(DATASET,),
        show_default=True,
        shell_complete=specs("datasets"),
        help="Data set; 'dmlbench list datasets' shows all. It sets network, training recipe and "
        "the adversary, unless other options change them. A SPEC is a name, MODULE:CLASS or "
        "FILE.py:CLASS, and :KEY=VALUE,... behind it.",
    ),
    "defenses": click.option(
        "--defense",
        "defenses",
        multiple=True,
        required=True,
        metavar="SPEC",
        shell_complete=specs("defenses"),
        help="Defense (way of training) to train, e.g. hm or hm:eta=32, or 'all'. May be repeated. "
        "A --config may name it instead.",
    ),
    "model": once(
        "--model",
        shell_complete=specs("models"),
        help="Network that embeds the images, e.g. resnet18, or a function of your own, "
        "MODULE:FACTORY. Default: the data set's.",
    ),
    "recipe": click.option(
        "--recipe",
        multiple=True,
        callback=_joined,
        metavar="KEY=VALUE,...",
        help="Changes to the data set's training recipe, e.g. epochs=2,pairs=32 (pairs in a "
        "batch). May be repeated.",
    ),
    "seeds": click.option(
        "--seed",
        "seeds",
        multiple=True,
        type=Whole(),
        default=(0,),
        show_default=True,
        help="Seed of the training and of the attacks' targets. May be repeated: a model for each.",
    ),
    "attacks": click.option(
        "--attack",
        "attacks",
        multiple=True,
        metavar="SPEC",
        shell_complete=specs("attacks"),
        help="Attack to measure under, e.g. ca+ or es:eps=8/255, or 'all'. May be repeated.",
    ),
    "suites": click.option(
        "--suite",
        "suites",
        multiple=True,
        type=click.Choice(SUITES),
        help="Definitions of the attacks: as the papers write them (strict), as the code behind "
        "the published numbers computes them (ers), or as the papers write them but with a strong "
        "optimizer (auto). May be repeated. Without --attack, the nine attacks of ERS, the "
        "Empirical Robustness Score, are run; auto adds top1 and radius.",
    ),
    "queries": click.option(
        "--queries",
        type=Whole(1),
        metavar="N",
        help="Attack only N test images, drawn at random and the same for every model, instead of "
        "all; rows say so. The gallery is still the whole test split.",
    ),
    "recalls": click.option(
        "--recalls",
        is_flag=True,
        help="Also report R@1, 2, 4 and 8 of the attacked queries, and the distance that their "
        "embeddings were moved, of each attack that perturbs a query (ES:R@4, LTM:D).",
    ),
    "eot": click.option(
        "--eot",
        type=Whole(1),
        default=1,
        metavar="N",
        help="For a randomised network (noise, dropout or random sizes in eval mode): gradients "
        "and outcomes are means over N draws; rows say so. Costs N times the passes.",
    ),
    "zoo": click.option(
        "--zoo",
        metavar="NAME",
        help="Model of the zoo, instead of --checkpoint, e.g. fashion-mini/hm; 'dmlbench zoo' "
        "lists them.",
    ),
    "allow_code": click.option(
        "--allow-code",
        is_flag=True,
        help="Run the MODULE:CLASS and FILE.py:CLASS that files name (--config, the manifest of a "
        "model, a stored row). What the command line itself names is always run.",
    ),
    "results": click.option(
        "--results", type=PATH, default="results", show_default=True, help="Folder of results."
    ),
    "leaderboards": click.option(
        "--leaderboards",
        type=PATH,
        default="leaderboards",
        show_default=True,
        help="Folder that boards (ranked tables) are written to.",
    ),
    "data_root": click.option(
        "--data-root",
        type=PATH,
        help="Folder of data sets. Default: ~/.cache/dmlbench.",
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
        help="cpu, cuda, cuda:1, ...; auto is a GPU if there is one.",
    ),
    "batch_size": click.option(
        "--batch-size",
        type=Whole(1),
        help="Images in a forward pass of the evaluation; changes numbers by rounding only. "
        "Default: 128 on a CPU, 1024 on a GPU, a quarter of that for large images.",
    ),
    "threads": click.option(
        "--threads",
        type=Whole(1, 1024),
        help="CPU threads to use. Default: one for each processor, 16 at most.",
    ),
    "precision": click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="fp32",
        show_default=True,
        help="Floating-point precision of the network in evaluation; tf32 and bf16 are faster, and "
        "rows say so.",
    ),
    "json": click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text."),
}


def options(*names: str) -> Callable[[F], F]:
    """Decorator that adds the options of these names, in this order."""

    def decorate(command: F) -> F:
        for name in reversed(names):
            command = OPTIONS[name](command)
        return command

    return decorate
