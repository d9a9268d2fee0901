"""Entry point of the command line. Slow imports happen inside the verbs, when they are needed."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, NoReturn

import click

from dmlbench import __version__
from dmlbench.cli import (
    attack,
    check,
    compare,
    data,
    doctor,
    leaderboard,
    list,
    merge,
    reproduce,
    run,
    show,
    submit,
    train,
    verify,
    verify_attack,
    zoo,
)
from dmlbench.common.errors import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EXIT_USAGE,
    Terminated,
    UserError,
)
from dmlbench.common.text import message_of, one_line

UNABLE = ("strict", "surrogateescape")  # the latter in the locale C; both raise for other letters


def _nowhere() -> bool:
    """True if the folder that this process works in was deleted."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


class _Group(click.Group):
    """Ends a mistake of the user, or a stop by a signal, with one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command; letters that the encoding of the output lacks are printed as ``?``."""
        if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in UNABLE:
            sys.stdout.reconfigure(errors="replace")
        return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            _fail_of_click(error)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(message_of(error), EXIT_USAGE)
        except click.ClickException as error:
            _fail_of_click(error)
        except OSError as error:
            if error.errno == errno.EPIPE:  # nobody reads the output any more: click's matter
                raise
            place = f"{error.filename}: " if error.filename else ""
            if isinstance(error, FileNotFoundError) and _nowhere():
                place = "the current folder was deleted: "
            _fail(f"{place}{(error.strerror or str(error)).lower()}", EXIT_USAGE)
        except KeyboardInterrupt as stop:
            how, code = (
                ("terminated", EXIT_TERMINATED)
                if isinstance(stop, Terminated)
                else ("interrupted", EXIT_INTERRUPTED)
            )
            again = getattr(stop, "__notes__", ["run again to go on"])[-1]
            _fail(f"{how}; finished work is stored, {again}", code)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"error: {_shortened(one_line(message))}", err=True)
    sys.exit(code)


def _fail_of_click(error: click.ClickException) -> NoReturn:
    """End with click's message of a wrong argument in one line, and where the arguments are listed.

    A group without a command is no mistake: its help is printed.
    """
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        raise error
    listed = ""
    if isinstance(error, click.UsageError):
        context = error.ctx or click.get_current_context(silent=True)
        listed = f" ({context.command_path} --help)" if context else ""
    _fail(error.format_message() + listed, error.exit_code)


def _shortened(message: str) -> str:
    """A message whose long words, those of 5,000 digits say, are cut."""
    return re.sub(r"(\S{60})\S{340,}", r"\1...", message)


def _terminate(*_: object) -> None:
    raise Terminated


def _one_line_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {one_line(str(message))}", err=True)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nFirst command:\n  dmlbench run --defense hm --attack ca+\n\n"
    "\b\nSee what there is:\n  dmlbench list\n\n"
    "\b\nComplete names and specs with Tab (bash; zsh_source and fish_source for others):\n"
    '  eval "$(_DMLBENCH_COMPLETE=bash_source dmlbench)"',
)
@click.version_option(__version__, prog_name="dmlbench")
def main() -> None:
    """The benchmark of adversarial robustness for deep metric learning (image retrieval)."""
    # A thread that waits for another one sleeps. By default it keeps its core busy for a while,
    # which others need on a busy machine. OpenMP reads this when torch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    warnings.showwarning = _one_line_warning
    if threading.current_thread() is threading.main_thread():  # the only one that may
        signal.signal(signal.SIGTERM, _terminate)


for verb in (
    run.run,
    train.train,
    attack.attack,
    verify_attack.verify_attack,
    reproduce.reproduce,
    submit.submit,
    verify.verify,
    check.check,
    data.data,
    doctor.doctor,
    list.list_,
    zoo.zoo,
    show.show,
    compare.compare,
    merge.merge,
    leaderboard.leaderboard,
):
    main.add_command(verb)
