"""The committed boards equal those rendered from the committed CSVs and the published rows."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest

from dmlbench.analysis.csv_files import read_folder
from dmlbench.report import drawing, page
from dmlbench.report.board import Board
from dmlbench.report.render import RENDERERS, boards

ROOT = Path(__file__).parent.parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def committed(*patterns: str) -> dict[str, bytes]:
    """Files of the repository as they are staged: runs of one's own write to the same folders."""
    listed = ["git", "ls-files", "-z", "--", *(f":(glob){one}" for one in patterns)]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return {
        name: subprocess.run(
            ["git", "show", f":{name}"], cwd=ROOT, capture_output=True, check=True
        ).stdout
        for name in names.split("\0")
        if name
    }


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> list[Board]:
    folder = tmp_path_factory.mktemp("results")
    for name, content in committed("results/*.csv").items():
        (folder / Path(name).name).write_bytes(content)
    return boards(read_folder(folder))


def test_the_committed_boards_are_rendered_from_the_committed_results(
    rendered: list[Board],
) -> None:
    """If it fails: dmlbench leaderboard."""
    stored = committed("leaderboards/*.md", "leaderboards/*.tex", "leaderboards/*.csv")
    contents = stored.pop("leaderboards/README.md").decode()
    expected = {
        f"leaderboards/{board.name}.{kind}": render(board).encode()
        for board in rendered
        for kind, render in RENDERERS.items()
    }
    assert stored == expected
    assert all(f"]({board.name}.md)" in contents for board in rendered)
    (found,) = committed("leaderboards/index.html").values()
    assert bare(found.decode()) == bare(page.render(rendered, {}))


def test_the_board_beside_the_rows_of_fashion_mini_is_rendered_from_them(tmp_path: Path) -> None:
    """If it fails, run its command, which results/README.md has."""
    stored = committed("results/fashion-mini/*")
    (tmp_path / "rows.csv").write_bytes(stored["results/fashion-mini/rows.csv"])
    (board,) = boards(read_folder(tmp_path), literature=False)
    for kind in ("md", "tex"):
        rendered = RENDERERS[kind](board).encode()
        assert stored[f"results/fashion-mini/fashion-mini.{kind}"] == rendered


@pytest.mark.slow
def test_the_committed_plots_are_drawn_from_the_committed_results(rendered: list[Board]) -> None:
    """If it fails: dmlbench leaderboard. Plots are compared if matplotlib is the same."""
    html = page.render(rendered, drawing.draw(rendered, Path("none"), ("svg",)).pictures)
    (found,) = committed("leaderboards/index.html").values()
    plots = committed("leaderboards/plots/*")
    drawn = set(re.findall(r'href="(plots/[^"]+)"', html))
    assert {f"leaderboards/{name}" for name in drawn} == plots.keys()
    version = re.search(rb"Matplotlib v([\d.]+)", next(v for k, v in plots.items() if "svg" in k))
    if version and version[1].decode() == matplotlib.__version__:
        assert found == html.encode()


def bare(html: str) -> str:
    """Return the page without its plots."""
    return re.sub(r"\s*<h3>Plots</h3>.*?(?=\s*</section>)", "", html, flags=re.S)


def test_a_page_of_some_data_sets_leads_to_files_that_are_there(
    dmlbench: Run, tmp_path: Path
) -> None:
    assert dmlbench("leaderboard", "sop", "--format", "html", "--format", "md").returncode == 0
    html = (tmp_path / "leaderboards" / "index.html").read_text()
    assert 'id="tab-cub"' in html
    led = set(re.findall(r'href="([^"#:]+)"', html))
    assert led == {"sop.md"}
    done = dmlbench("leaderboard", "sop", "--where", "model=c2f2")
    assert (done.returncode, done.stderr.splitlines()[-1].split(":")[0]) == (2, "error")
    assert "no results of 'sop' that meet model=c2f2 in results" in done.stderr


def test_the_command_renders_the_literature_and_says_that_nothing_is_measured(
    dmlbench: Run, tmp_path: Path
) -> None:
    done = dmlbench("leaderboard", "sop", "--format", "md")
    assert done.returncode == 0, done.stderr
    assert "no results in results" in done.stderr
    assert done.stdout.split() == ["leaderboards/sop.md"]
    (expected,) = committed("leaderboards/sop.md").values()
    assert (tmp_path / "leaderboards" / "sop.md").read_bytes() == expected
