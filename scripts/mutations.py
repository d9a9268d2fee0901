"""Do the tests notice wrong code? ``python -m scripts.mutations --count 100 --jobs 2``.

One small change at a time (``<`` to ``<=``, ``+`` to ``-``, a constant, a condition turned round, a
call left out) is made in a copy of the repository, and the tests of that file are run there. The
change is killed if a test fails or the tests do not end in time. The changes are drawn at random
from the files of ``TESTS`` with ``--seed``, as many from each group of files; before them come the
changes of ``NAMED``, which once survived. Survivors are printed as a diff: each is a test that is
missing, or a change that makes no difference.

``--csv`` keeps what was found; a run that was stopped goes on from there. Survivors are tried
again, and so is a change whose file differs by now.
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import click

ROOT = Path(__file__).parent.parent
TIMEOUT = 900  # seconds of the tests of one change
SERVER = multiprocessing.get_context("forkserver")  # its processes begin with PyTorch imported
SERVER.set_forkserver_preload(["faiss", "matplotlib.figure", "pandas", "torch", "torchvision"])
TESTS: dict[str, dict[str, str]] = {
    "attacks": {
        "attacks/base.py": "attacks registry spec evaluator",
        "attacks/black_box.py": "black_box",
        "attacks/candidate.py": "candidate attacks",
        "attacks/embedding_shift.py": "attacks",
        "attacks/furthest_negative.py": "reid_attacks",
        "attacks/misranking.py": "attacks",
        "attacks/moved_query.py": "attacks top1 black_box",
        "attacks/nes.py": "black_box",
        "attacks/opposite_direction.py": "reid_attacks",
        "attacks/order.py": "order",
        "attacks/order_list.py": "lists",
        "attacks/qair.py": "lists",
        "attacks/query.py": "attacks",
        "attacks/radius.py": "radius",
        "attacks/returned_list.py": "lists",
        "attacks/square.py": "black_box",
        "attacks/stack.py": "top1 black_box",
        "attacks/top1.py": "top1",
        "attacks/transfer.py": "transfer black_box",
        "attacks/uap.py": "uap",
        "attacks/engine/apgd.py": "apgd optimizers",
        "attacks/engine/black_box.py": "black_box",
        "attacks/engine/classes.py": "top1",
        "attacks/engine/gallery.py": "attacks candidate",
        "attacks/engine/nes.py": "black_box",
        "attacks/engine/optimizer.py": "pgd apgd optimizers bits",
        "attacks/engine/outcomes.py": "attacks flags",
        "attacks/engine/pgd.py": "pgd",
        "attacks/engine/pso.py": "lists",
        "attacks/engine/query_loss.py": "attacks autograd",
        "attacks/engine/random_search.py": "lists",
        "attacks/engine/ranked_list.py": "black_box attacks",
        "attacks/engine/square.py": "black_box",
        "attacks/engine/targets.py": "attacks pgd",
    },
    "defenses": {
        "defenses/acap.py": "robrank_defenses",
        "defenses/act.py": "defenses",
        "defenses/amd.py": "robrank_defenses",
        "defenses/base.py": "defenses",
        "defenses/est.py": "defenses robrank_defenses",
        "defenses/hm.py": "defenses",
        "defenses/losses.py": "defenses robrank_defenses",
        "defenses/none.py": "defenses",
        "defenses/perturbed_triplets.py": "robrank_defenses defenses",
        "defenses/rest.py": "robrank_defenses",
        "defenses/samplers.py": "samplers defenses",
        "defenses/ses.py": "robrank_defenses",
        "defenses/shift.py": "robrank_defenses defenses",
        "defenses/tbc.py": "robrank_defenses",
    },
    "metrics": {
        "benchmark/metrics/bootstrap.py": "retrieval radius plots",
        "benchmark/metrics/clustering.py": "retrieval",
        "benchmark/metrics/collapse.py": "retrieval",
        "benchmark/metrics/distance.py": "retrieval attacks",
        "benchmark/metrics/ers.py": "ers",
        "benchmark/metrics/ranks.py": "retrieval attacks",
        "benchmark/metrics/retrieval.py": "retrieval",
    },
    "storage": {
        "benchmark/storage/cell.py": "store untrusted",
        "benchmark/storage/store.py": "store",
        "benchmark/common/files.py": "store cache",
        "benchmark/analysis/csv_files.py": "store boards",
    },
    "plan": {
        "benchmark/sweep/plan.py": "plan identities",
        "benchmark/sweep/weights.py": "plan identities",
        "benchmark/analysis/compare.py": "compare",
    },
    "status": {"benchmark/sweep/status.py": "plan worker"},
    "scheduler": {
        "benchmark/sweep/scheduler.py": "plan harness",
        "benchmark/sweep/worker.py": "worker evaluator",
    },
    "evaluation": {
        "benchmark/evaluation/attacked_queries.py": "evaluator worker",
        "benchmark/evaluation/collected.py": "evaluator worker",
        "benchmark/evaluation/evaluator.py": "evaluator worker",
        "benchmark/evaluation/measurement.py": "evaluator worker",
        "benchmark/evaluation/self_checks.py": "flags",
        "benchmark/core/flags.py": "flags",
        "benchmark/compute/model_checks.py": "flags evaluator",
    },
    "training": {"benchmark/training/trainer.py": "training"},
}
"""Group -> file -> names of its test files, without ``test_``."""

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
        "whole = cell is not None and cell.ok",
        "whole = cell is not None",
    ),
    (
        "benchmark/storage/store.py",
        '            write_atomically(self.path(cell.id, "parquet"), table)\n',
        "",
    ),
    (
        "benchmark/analysis/csv_files.py",
        "while (now := store.state()) != seen:",
        "for now in [store.state()]:",
    ),
    ("benchmark/metrics/clustering.py", "KMEANS_SEED + number", "KMEANS_SEED"),
    ("benchmark/common/files.py", "        temporary.chmod(0o666 & ~_umask())\n", ""),
    ("benchmark/common/files.py", "        _sync_folder(path.parent)\n", ""),
    ("benchmark/sweep/status.py", '("checkpoint", "measure_version", ', '("checkpoint", '),
    ("benchmark/sweep/plan.py", '**one.facts, "seed": weights.seed}', "**one.facts}"),
    ("benchmark/sweep/plan.py", '"queries": queries})', "})"),
    ("benchmark/sweep/plan.py", '"attack_version": attack.card.version,', ""),
    ("benchmark/sweep/plan.py", ', "precision": precision}', "}"),
    ("benchmark/sweep/worker.py", "np.minimum.reduce([x for", "np.mean([x for"),
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
    """A change of one file: its text afterwards, and what differs."""

    file: str
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
                found.append(Mutant(file, after, difference(before, after)))
    return found


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
        found.append(Mutant(file, text.replace(old, new), f"-{old}\n+{new}"))
    return found


def drawn(count: int, seed: int, only: str) -> list[Mutant]:
    """``count`` mutants, as many from each group as there are."""
    generator = random.Random(seed)
    piles = []
    for group in TESTS.values():
        pile = [one for file in group if only in file for one in mutants(file)]
        generator.shuffle(pile)
        piles.append(pile)
    found: list[Mutant] = []
    while len(found) < count and any(piles):
        found += [pile.pop() for pile in piles if pile][: count - len(found)]
    return found


def tests_of(file: str) -> list[str]:
    """The test files of a file."""
    (names,) = (group[file] for group in TESTS.values() if file in group)
    return [f"tests/test_{name}.py" for name in names.split()]


def passes(copy: Path, tests: list[str], seconds: float = TIMEOUT) -> bool:
    """True if the tests succeed in a copy of the repository."""
    process = SERVER.Process(target=run_tests, args=(copy, tests))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode == 0


def run_tests(copy: Path, tests: list[str]) -> None:
    """Run the tests in this process, which has imported PyTorch already, and exit with the result.

    Raises:
        SystemExit: always.
    """
    import pytest

    os.chdir(copy)
    os.environ |= {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(copy), str(copy / "src")]
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    sys.exit(pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", *tests]))


def copied(folder: Path) -> Path:
    """A copy of all files that git tracks, links as links."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
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
def main(count: int, seed: int, jobs: int, only: str, path: Path | None) -> None:
    """Change the code in a copy, and count how often the tests notice."""
    os.environ["OMP_NUM_THREADS"] = "1"
    chosen = [one for one in named() if only in one.file] + drawn(count, seed, only)
    record, copies = Record(path), Queue[Path]()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        for number in range(jobs):
            copies.put(copied(Path(folder) / str(number)))
        sound = {file for group in TESTS.values() for file in group if only in file}
        copy = copies.get()
        every = sorted({test for file in sound for test in tests_of(file)})
        if not passes(copy, every, 4 * TIMEOUT):
            raise click.ClickException("the tests fail without a change")
        copies.put(copy)

        def killed(mutant: Mutant) -> bool:
            if record.killed.get(mutant.key):
                return True
            copy = copies.get()
            try:
                (copy / mutant.file).write_text(mutant.text, encoding="utf-8")
                noticed = not passes(copy, tests_of(mutant.file))
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
