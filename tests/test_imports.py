"""Every import inside the package points down or stays in its folder, and none goes in a circle.

The test reads the source, so an import inside a function counts as well. One under
``TYPE_CHECKING`` does not: it is never executed.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"
# Low to high. Storage lies below the models, which read weights from files, and the analysis
# below the sweep, which exports CSVs when it has finished. "dmlbench" is the Python interface.
LEVELS = (
    *("common", "core", "metrics", "compute", "storage", "datasets.files", "zoo", "datasets"),
    "models",
    *("attacks.engine", "attacks.base", "attacks", "defenses", "training", "evaluation"),
    *("analysis", "sweep", "submission", "report", "api", "testing", "dmlbench", "cli", "__main__"),
)


def source_files(folder: Path, package: str) -> Iterator[tuple[str, Path]]:
    """(module, file) of a package and everything below it; links to folders are followed."""
    for path in sorted(folder.iterdir()):
        if path.name == "__init__.py":
            yield package, path
        elif path.suffix == ".py":
            yield f"{package}.{path.stem}", path
        elif (path / "__init__.py").is_file():  # no data folder
            yield from source_files(path, f"{package}.{path.name}")


def imported(node: ast.AST) -> Iterator[str]:
    """Dotted names that the code under ``node`` imports, at its top or in a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from (name for branch in child.orelse for name in imported(branch))
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.Import):
            # every module runs dmlbench/__init__.py first: naming it alone adds nothing
            yield from (alias.name for alias in child.names if alias.name != "dmlbench")
        else:
            yield from imported(child)


def level(module: str) -> int:
    """Position in LEVELS of the longest entry that ``module`` lies in."""
    name = module.removeprefix("dmlbench.")
    while name not in LEVELS:
        name = name.rpartition(".")[0]
        assert name, f"{module} lies in no folder of LEVELS: add it at its level"
    return LEVELS.index(name)


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """The modules of the package that each of its modules imports."""
    modules = dict(source_files(SOURCE / "dmlbench", "dmlbench"))
    found: dict[str, set[str]] = {module: set() for module in modules}
    for module, path in modules.items():
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            while name and name not in modules:  # a function or class: the module that defines it
                name = name.rpartition(".")[0]
            found[module] |= {name} - {"", module}
    return found


def test_every_import_points_down_or_stays_in_its_folder(imports: dict[str, set[str]]) -> None:
    up = {(a, b) for a, found in imports.items() for b in found if level(b) > level(a)}
    assert sorted(up) == []


def test_no_modules_import_each_other_in_a_circle(imports: dict[str, set[str]]) -> None:
    TopologicalSorter(imports).prepare()  # CycleError names the circle


def test_importing_the_command_line_imports_no_torch(imports: dict[str, set[str]]) -> None:
    """Not by way of another module either: ``dmlbench --help`` would take seconds."""
    modules = [module for module in imports if module.startswith("dmlbench.cli")]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
