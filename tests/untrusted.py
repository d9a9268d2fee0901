"""Commands on files that cannot be trusted, and the form of their refusal."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from dmlbench.cli.main import main


def call(*arguments: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, arguments)


def refused(done: Result, *words: str) -> None:
    """Exit code 2, one line of error, no code run."""
    assert done.exit_code == 2, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    (line,) = [x for x in done.output.splitlines() if x.lower().startswith("error: ")]
    assert len(line) < 500
    for word in words:
        assert word in line
    assert not Path("ran").exists()
