"""Damage files and give nonsense, and count what becomes of it: ``python -m scripts.faults``.

- bits: flips every bit of the files of four cells, and some of their outcomes, one at a time. Each
  must be found, or change nothing that the cell says;
- lines: command lines, configs and CSVs made at random. None may end in a traceback or hang;
- hostile: checkpoints, archives, images, manifests, CSVs and configs (``scripts.hostile``). Each
  gives one line of error, or is harmless; no code runs and no file lies elsewhere.

Kills are in ``pytest -m slow tests/test_kills.py``. Everything happens in a temporary folder.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from click.testing import CliRunner

from dmlbench.analysis.records import tidy
from dmlbench.cli.main import main
from dmlbench.common.errors import UserError
from dmlbench.datasets.files.archive import _unpack
from dmlbench.storage.store import Store
from scripts import hostile
from scripts.hostile import VALUES

SECONDS = 30  # after which a command counts as hanging
FEW = ("run", "--defense", "none", "--queries", "20", "--recipe", "epochs=1", "--threads", "1")
EACH = 20  # hostile files of a kind
BAD = ("traceback", "hangs", "mute")


class Hangs(BaseException):
    """A command that did not end in time."""


def _hangs(*_: object) -> None:
    raise Hangs


def outcome(arguments: list[str]) -> tuple[str, str]:
    """Name how a command ended by what it said: fine, one line, traceback, hangs, mute."""
    signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(SECONDS)
    try:
        done = CliRunner().invoke(main, arguments, prog_name="dmlbench")
    except Hangs:
        return "hangs", ""
    finally:
        signal.alarm(0)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return "traceback", "".join(traceback.format_exception(done.exception))
    errors = [x for x in done.output.splitlines() if x.lower().startswith("error: ")]
    if done.exit_code in (0, 1):
        return ("fine" if done.output else "mute"), done.output
    return ("one line" if len(errors) == 1 else "mute"), done.output


def flipped(content: bytes, bit: int) -> bytes:
    """``content`` with one bit changed."""
    place = bit // 8
    return content[:place] + bytes([content[place] ^ 1 << bit % 8]) + content[place + 1 :]


def count_bits(samples: int) -> Counter[str]:
    """Flip each bit of four cells, and ``samples`` bits of the outcomes of each."""
    done = CliRunner().invoke(main, [*FEW, *(f"--attack={name}" for name in ("ca+", "es", "tma"))])
    assert done.exit_code == 0, done.output
    found: Counter[str] = Counter()
    source = Store(Path("results"))
    cells = source.read()[0][:4]
    for number, cell in enumerate(cells):
        store = Store(Path(f"flips{number}"))
        store.put(cell, source.outcomes(cell.id))
        (whole,), _ = store.read()
        rows, file = tidy([whole]), store.path(cell.id)
        content = file.read_bytes()
        for bit in range(8 * len(content)):
            file.write_bytes(flipped(content, bit))
            try:
                now, damaged = store.read()
                same = bool(now) and now[0] == whole and tidy(now) == rows
                found["found" if damaged else "no change" if same else "SILENT"] += 1
            except UserError:
                found["refused"] += 1
            except Exception:
                found["TRACEBACK"] += 1
        file.write_bytes(content)
        table = store.path(cell.id, "parquet")
        content, chance = table.read_bytes(), random.Random(number)
        for _ in range(samples):
            table.write_bytes(flipped(content, chance.randrange(8 * len(content))))
            seen = store.changed_outcomes([whole]) == [file]
            found["found in outcomes" if seen else "SILENT in outcomes"] += 1
    return found


FLAGS = (
    *("defense", "attack", "suite", "queries", "dataset", "model", "recipe", "seed", "resume"),
    *("workers", "shard", "executor", "ray-gpus", "cell-timeout", "results", "data-root", "device"),
    *("batch-size", "threads", "precision", "config"),
)
VERBS = {
    "run": [f"--{name}" for name in FLAGS],
    "attack": ["--checkpoint", "--label", "--model", "--attack", "--dataset", "--results"],
    "show": ["--where", "--pivot", "--results"],
    "compare": ["--dataset", "--results"],
    "leaderboard": ["--results", "--column", "--where", "--against", "--bad"],
    "list": ["--json"],
    "data list": ["--data-root"],
    "data verify": ["--data-root", "--cache"],
    "merge": ["--results"],
}


def command_line(chance: random.Random) -> list[str]:
    """A command that trains nothing: some flags and values that fit, others that do not."""
    verb = chance.choice(list(VERBS))
    words = [*verb.split(), *(["--dry-run"] if verb == "run" else [])]
    words += ["--defense=none", "--attack=ca+"] if verb == "run" and chance.random() < 0.7 else []
    words += ["--format=md"] if verb == "leaderboard" else []  # plots take half a minute
    words += [chance.choice(VALUES) for _ in range(chance.choice([0, 0, 0, 1, 2]))]
    for flag in chance.choices(VERBS[verb], k=chance.randrange(4)):
        words += [flag, chance.choice(VALUES)]
    return words


def lines(count: int) -> Iterator[list[str]]:
    """Commands in turn: with flags at random, with a config, with a CSV."""
    chance = random.Random(0)
    made = {kind: hostile.KINDS[kind](chance) for kind in ("yaml", "csv")}
    for number in range(count):
        if number % 3 == 0:
            yield command_line(chance)
        else:
            kind = "yaml" if number % 3 == 1 else "csv"
            yield command(kind, Path(f"line{number}"), *next(made[kind]))


def command(kind: str, folder: Path, ending: str, content: bytes) -> list[str]:
    """Lay a hostile file into ``folder``; the command that reads it."""
    (folder / "a").mkdir(parents=True)
    file = folder / ("manifest.json" if kind == "manifest" else f"x.{ending}")
    file.write_bytes(content)
    if kind == "csv":
        return ["leaderboard", f"--results={folder}", f"--leaderboards={folder}", "--format=csv",
                "--format=md", "--against=nothing"]  # fmt: skip
    if kind == "yaml":
        return ["run", f"--config={file}", "--dry-run"]
    if kind == "image":
        for name in "abcd":
            (folder / name).mkdir(exist_ok=True)
            for copy in ("1", "2"):
                (folder / name / f"{copy}{file.name}").write_bytes(content)
        file.unlink()
        dataset = [f"--dataset=folder:root={folder}", f"--cache={folder / 'cache'}"]
        return ["run", "--defense=none", "--attack=ca+", "--dry-run", *dataset]
    if kind == "manifest":
        (folder / "checkpoint.safetensors").write_bytes(hostile.WEIGHTS)
    weights = folder if kind == "manifest" else file
    return ["attack", "--attack=ca+", "--queries=2", f"--checkpoint={weights}"]


def unpacked(folder: Path, ending: str, content: bytes) -> tuple[str, str]:
    """Open a hostile archive, and say what became of it."""
    folder.mkdir()
    (folder / f"x.{ending}").write_bytes(content)
    try:
        _unpack(folder / f"x.{ending}", "set", folder)
    except UserError as error:
        return "one line", str(error)
    return "fine", ""


def count_hostile() -> dict[str, Counter[str]]:
    """Twenty hostile files of each kind."""
    Path("evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    found: dict[str, Counter[str]] = {}
    for kind, make in hostile.KINDS.items():
        counts = found.setdefault(kind, Counter())
        for number, (ending, content) in zip(range(EACH), make(random.Random(1)), strict=False):
            folder = Path(f"{kind}{number}")
            if kind == "archive":
                said, text = unpacked(folder, ending, content)
            else:
                said, text = outcome(command(kind, folder, ending, content))
            counts[said] += 1
            if said in BAD:
                click.echo(f"{kind} {number}: {said}: {text[-600:]}")
    for name in ("ran", "../out", "/out", Path(tempfile.gettempdir(), "out")):
        if Path(name).exists():
            found["CODE RAN OR A FILE IS OUTSIDE"] = Counter([str(name)])
    return found


@click.command()
@click.argument("what", type=click.Choice(["bits", "lines", "hostile"]))
@click.option("--count", default=500, help="Commands of lines, and flips of outcomes of a cell.")
def faults(what: str, count: int) -> None:
    """Make faults of one kind, and print how many ended how."""
    np.seterr(all="ignore")
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        os.chdir(folder)
        if what == "bits":
            click.echo(dict(count_bits(count)))
        elif what == "hostile":
            click.echo({kind: dict(counts) for kind, counts in count_hostile().items()})
        else:
            found: Counter[str] = Counter()
            for arguments in lines(count):
                said, text = outcome(arguments)
                found[said] += 1
                if said in BAD:
                    click.echo(f"{said}: {[a[:60] for a in arguments]}: {text[-900:]}")
            click.echo(dict(found))
        os.chdir("/")


if __name__ == "__main__":
    faults()
