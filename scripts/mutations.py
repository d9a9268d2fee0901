"""Do the tests notice wrong code? ``python -m scripts.mutations --count 100 --jobs 2``.

One small change at a time (``<`` to ``<=``, ``+`` to ``-``, a constant, a condition turned round, a
call left out) is made in a copy of the repository, and the tests that run the changed line are run
there (of a line that is run at import: the tests that run any line of its file). The change is
killed if a test fails or the tests do not end in time. The changes are drawn at random from the
files of ``GROUPS`` with ``--seed``, as many from each group; before them come the changes of
``NAMED``, which once survived. Survivors are printed as a diff: each is a test that is missing, or
a change that makes no difference.

Which test runs which line is measured first: the suite runs once under coverage.py (some ten
minutes). ``--coverage`` keeps that measurement for the next run, ``--csv`` keeps what was found: a
run that was stopped goes on from there. Survivors are tried again, and so is a change whose file
differs by now.
"""

from __future__ import annotations

import ast
import csv
import difflib
import hashlib
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Queue

import click
import coverage

ROOT = Path(__file__).parent.parent
TIMEOUT = 900  # seconds of the tests of one change
MOST_TESTS = 100  # of one change: those that run the fewest lines in all
PRELOADED = ["faiss", "matplotlib.figure", "pandas", "pytest", "pytorch_metric_learning",
             "scipy.stats", "torch", "torchvision"]  # fmt: skip
SERVER = multiprocessing.get_context("forkserver")  # its processes begin with PyTorch imported
SERVER.set_forkserver_preload(PRELOADED)
GROUPS: dict[str, tuple[str, ...]] = {
    "attacks": ("attacks/*.py", "attacks/engine/*.py"),
    "defenses": ("defenses/*.py",),
    "metrics": ("benchmark/metrics/*.py",),
    "storage": (
        "benchmark/storage/*.py",
        "benchmark/common/files.py",
        "benchmark/analysis/csv_files.py",
    ),
    "plan": (
        "benchmark/sweep/plan.py",
        "benchmark/sweep/weights.py",
        "benchmark/analysis/compare.py",
    ),
    "status": ("benchmark/sweep/status.py",),
    "scheduler": ("benchmark/sweep/scheduler.py", "benchmark/sweep/worker.py"),
    "evaluation": (
        "benchmark/evaluation/*.py",
        "benchmark/core/flags.py",
        "benchmark/compute/model_checks.py",
    ),
    "training": ("benchmark/training/trainer.py",),
}
"""Group -> patterns of its files."""

NAMED: tuple[tuple[str, str, str], ...] = (
    ("attacks/candidate.py", "right=self.up)", "right=not self.up)"),
    ("attacks/engine/targets.py", 'f"start {restart}"', '"start"'),
    ("attacks/engine/optimizer.py", "        self.verify(clean, result)\n", ""),
    (
        "attacks/query.py",
        "draw(index, self.m, seed,",
        "draw(index, self.m, 0,",
    ),
    ("benchmark/training/trainer.py", '"epoch", number)', '"epoch")'),
    (
        "benchmark/storage/store.py",
        "if cell is None or not cell.ok:",
        "if cell is None:",
    ),
    (
        "benchmark/storage/store.py",
        "            write_atomically(beside, table)\n",
        "",
    ),
    (
        "benchmark/analysis/csv_files.py",
        "            stack.enter_context(FileLock(store.root / LOCK, timeout=LOCK_SECONDS))\n",
        "            pass\n",
    ),
    ("benchmark/metrics/clustering.py", "KMEANS_SEED + number", "KMEANS_SEED"),
    ("benchmark/common/files.py", "        temporary.chmod(0o666 & ~_umask())\n", ""),
    ("benchmark/common/files.py", "        _sync_folder(path.parent)\n", ""),
    ("benchmark/sweep/status.py", '("checkpoint", "measure_version", ', '("checkpoint", '),
    ("benchmark/sweep/plan.py", '**one.facts, "seed": weights.seed}', "**one.facts}"),
    ("benchmark/sweep/plan.py", '"queries": queries})', "})"),
    ("benchmark/sweep/plan.py", '"attack_version": attack.version,', ""),
    ("benchmark/sweep/plan.py", ', "precision": precision}', "}"),
    ("benchmark/metrics/ers.py", "np.minimum.reduce([values for", "np.mean([values for"),
    ("benchmark/analysis/compare.py", "low <= 0 <= high", "low < 0 < high"),
)
"""(file, old text, new text): changes that survived an earlier version of the tests."""

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or,
    ast.Or: ast.And, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}  # fmt: skip
RENAMED = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum",
           "maximum": "minimum", "argmin": "argmax", "argmax": "argmin"}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A change of one file: the numbers of its lines, its text afterwards, and what differs."""

    file: str
    lines: range
    text: str
    difference: str

    @property
    def key(self) -> str:
        """The digest of its text."""
        return hashlib.sha256(f"{self.file}\n{self.text}".encode()).hexdigest()[:16]


def changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    """Every change of one node, as an attribute and its new value."""
    match node:
        case ast.Compare(ops=[op]) | ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPPED:
            new = SWAPPED[type(op)]()
            yield ("ops", [new]) if isinstance(node, ast.Compare) else ("op", new)
        case ast.Constant(value=bool(value)):
            yield "value", not value
        case ast.Constant(value=int(value)):
            yield "value", value + 1
        case ast.Constant(value=float(value)):
            yield "value", 2 * value + 1e-3
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield "test", ast.UnaryOp(ast.Not(), test)
        case ast.Attribute(attr=name) if name in RENAMED:
            yield "attr", RENAMED[name]
        case ast.Name(id=name) if name in RENAMED:
            yield "id", RENAMED[name]
        case ast.Expr(value=ast.Call()):
            yield "value", ast.Constant(None)


def code(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that decide what happens: no annotations, messages, docstrings or decorators."""
    for name, field in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "exc", "keywords_of_card"):
            continue
        for node in field if isinstance(field, list) else [field]:
            if not isinstance(node, ast.AST):
                continue
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                continue
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Card", "Column", "Paper"):
                continue
            yield node
            yield from code(node)


def mutants(file: str) -> list[Mutant]:
    """Every mutant of a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    before = ast.unparse(tree)
    found = []
    for node in code(tree):
        for name, value in changes(node):
            kept = getattr(node, name)
            setattr(node, name, value)
            after = ast.unparse(ast.fix_missing_locations(tree))
            setattr(node, name, kept)
            if after != before:
                found.append(Mutant(file, lines_of(node, tree), after, difference(before, after)))
    return found


def lines_of(node: ast.AST, tree: ast.AST) -> range:
    """The lines of the statement around a node; of an if, a loop or a function: its head."""
    assert isinstance(node, ast.expr | ast.stmt)
    statements = [one for one in ast.walk(tree) if isinstance(one, ast.stmt)]
    inner = max(
        (one for one in statements if one.lineno <= node.lineno <= (one.end_lineno or one.lineno)),
        key=lambda one: one.lineno,
    )
    body = getattr(inner, "body", None)
    end = max(body[0].lineno, inner.lineno + 1) if body else (inner.end_lineno or inner.lineno) + 1
    return range(inner.lineno, end)


def difference(before: str, after: str) -> str:
    """The lines that differ."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


def named() -> list[Mutant]:
    """The mutants of ``NAMED``."""
    found = []
    for file, old, new in NAMED:
        text = (ROOT / file).read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise click.ClickException(f"{file} has {text.count(old)} times {old!r}: mend NAMED")
        first = text[: text.index(old)].count("\n") + 1
        lines = range(first, first + len(old.rstrip("\n").split("\n")))
        found.append(Mutant(file, lines, text.replace(old, new), f"-{old}\n+{new}"))
    return found


def drawn(count: int, seed: int, only: str) -> list[Mutant]:
    """``count`` mutants, as many from each group as there are."""
    generator = random.Random(seed)
    piles = []
    for patterns in GROUPS.values():
        files = sorted({path for pattern in patterns for path in ROOT.glob(pattern)})
        names = [path.relative_to(ROOT).as_posix() for path in files]
        pile = [one for name in names if only in name for one in mutants(name)]
        generator.shuffle(pile)
        piles.append(pile)
    found: list[Mutant] = []
    while len(found) < count and any(piles):
        found += [pile.pop() for pile in piles if pile][: count - len(found)]
    return found


class Coverage:
    """The tests that run a line, from a data file of coverage.py whose contexts are tests."""

    def __init__(self, path: Path) -> None:
        data = coverage.CoverageData(str(path))
        data.read()
        self.tests: dict[str, dict[int, set[str]]] = {}
        self.size: Counter[str] = Counter()  # of a test: the lines it runs
        for measured in data.measured_files():  # in a copy, which may have gone
            parts = Path(measured).parts
            ends = ("/".join(parts[first:]) for first in range(1, len(parts)))
            by_line = self.tests.setdefault(next(e for e in ends if (ROOT / e).is_file()), {})
            for line, contexts in data.contexts_by_lineno(measured).items():
                tests = {context.split("|")[0] for context in contexts if context}
                by_line.setdefault(line, set()).update(tests)
                self.size.update(tests)

    def of(self, mutant: Mutant) -> list[str]:
        """The tests of a change, at most ``MOST_TESTS``, those of one file together."""
        lines = self.tests.get(mutant.file, {})
        tests = set().union(*(lines.get(line, set()) for line in mutant.lines))
        tests = tests or set().union(*lines.values())
        chosen = sorted(tests, key=lambda test: (self.size[test], test))[:MOST_TESTS]
        files = list(dict.fromkeys(test.split("::")[0] for test in chosen))
        return sorted(chosen, key=lambda test: files.index(test.split("::")[0]))


def code_of(copy: Path, arguments: list[str]) -> int | None:
    """The exit code of pytest in a copy of the repository, None if it did not end in time."""
    receiver, sender = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=run_tests, args=(copy, arguments, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(TIMEOUT) else None
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


def run_tests(copy: Path, arguments: list[str], result: Connection) -> None:
    """Run pytest in this process, which has imported PyTorch already, and send its exit code."""
    import pytest

    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy / "src")
    sys.path[:0] = [str(copy), str(copy / "src")]
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    result.send(int(pytest.main(["-q", "-p", "no:cacheprovider", *arguments])))


def measured(copy: Path, path: Path) -> Coverage:
    """Run the suite under coverage.py, unless a data file of the same code and tests is there.

    The file's name has a digest of them. The suite runs without ``test_package.py``, which installs
    the package and finds this copy instead.
    """
    path = path.with_name(f"{path.name}-{digest(copy)}")
    if not path.exists():
        environment = os.environ | {
            "PYTHONPATH": str(copy / "src"),
            "COVERAGE_FILE": str(path.absolute()),
        }
        run = [sys.executable, "-m", "pytest", "-q", "--cov=dmlbench", "--cov-context=test"]
        run += ["--cov-report=", "-p", "no:cacheprovider", "--ignore=tests/test_package.py"]
        if subprocess.run(
            run, cwd=copy, env=environment, stdout=sys.stderr, check=False
        ).returncode:
            path.unlink(missing_ok=True)
            raise click.ClickException("the tests fail without a change")
    return Coverage(path)


def digest(copy: Path) -> str:
    """A digest of all Python files that git tracks."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=copy, capture_output=True, check=True)
    found = hashlib.sha256()
    for name in listed.stdout.decode().split("\n"):
        if name:
            found.update(name.encode() + (copy / name).read_bytes())
    return found.hexdigest()[:12]


def copied(folder: Path) -> Path:
    """A clone of the repository, with the files that git tracks as they are here."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        (folder / name).unlink(missing_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


class Record:
    """The CSV of what was found: key of the mutant, file, killed, difference."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.killed: dict[str, bool] = {}
        if path and path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.killed = {row[0]: row[2] == "True" for row in csv.reader(file)}

    def add(self, mutant: Mutant, killed: bool) -> None:
        """Append a line."""
        if self.path:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow([mutant.key, mutant.file, killed, mutant.difference])


@click.command()
@click.option("--count", default=100, show_default=True, help="Mutants to draw.")
@click.option("--seed", default=0, show_default=True)
@click.option("--jobs", default=1, show_default=True, help="Copies in which tests run at once.")
@click.option("--only", default="", help="Draw only from files whose path contains this.")
@click.option("--csv", "path", type=click.Path(path_type=Path), help="Keep what was found here.")
@click.option(
    "--coverage", "lines", type=click.Path(path_type=Path), help="Keep which test runs which line."
)
def main(
    count: int, seed: int, jobs: int, only: str, path: Path | None, lines: Path | None
) -> None:
    """Change the code in a copy, and count how often the tests notice."""
    os.environ["OMP_NUM_THREADS"] = "1"
    chosen = [one for one in named() if only in one.file] + drawn(count, seed, only)
    record, copies = Record(path), Queue[Path]()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        for number in range(jobs):
            copies.put(copied(Path(folder) / str(number)))
        copy = copies.get()
        tests = measured(copy, lines or Path(folder) / "coverage")
        if code_of(copy, ["-n0", "tests/test_pgd.py"]) != 0:
            raise click.ClickException("the tests fail without a change, one file at a time")
        copies.put(copy)

        def killed(mutant: Mutant) -> bool:
            if record.killed.get(mutant.key):
                return True
            copy = copies.get()
            try:
                (copy / mutant.file).write_text(mutant.text, encoding="utf-8")
                run = tests.of(mutant)
                noticed = bool(run) and code_of(copy, ["-x", "-n0", *run]) != 0
            finally:
                shutil.copy2(ROOT / mutant.file, copy / mutant.file)
                copies.put(copy)
            record.add(mutant, noticed)
            return noticed

        survivors = 0
        for done, (mutant, noticed) in enumerate(zip(chosen, pool.map(killed, chosen)), 1):  # noqa: B905
            survivors += not noticed
            if not noticed:
                click.echo(f"survived: {mutant.file}\n{mutant.difference}\n")
            click.echo(f"{done} of {len(chosen)}, {survivors} survived", err=True)
    click.echo(f"killed {len(chosen) - survivors} of {len(chosen)}")


if __name__ == "__main__":
    main()
