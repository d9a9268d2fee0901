"""Boards in each format: escaped, complete, and the same bytes each time."""

from __future__ import annotations

import csv
import io
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from dmlbench.analysis.csv_files import read_folder, read_tidy
from dmlbench.analysis.records import tidy
from dmlbench.report import latex, markdown, page, spreadsheet
from dmlbench.report.board import tables
from dmlbench.report.entries import measured
from dmlbench.report.render import boards
from dmlbench.report.terminal import print_grid, print_tables
from tests.synthetic import failed, many, model, one_board, write

EVIL = '<script>alert("x")</script>|`*&_$%\\{}\n中 =HYPERLINK'


def test_text_of_a_plugin_is_escaped_everywhere(tmp_path: Path) -> None:
    cells = [*model(label=EVIL, model=EVIL), failed("SP-QA+", EVIL, label=EVIL, model=EVIL)]
    path = write(tmp_path / "results.csv", cells)
    (board,) = boards(read_tidy(path), literature=False)
    html = page.render([board])
    assert html.count("<script>") == 1  # the page's own
    assert "&lt;script&gt;alert" in html
    text = markdown.render(board)
    assert "<script" not in text
    for table in re.findall(r"(?:^\| .*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1  # no cell broke its table
    (record,) = csv.DictReader(io.StringIO(spreadsheet.render(board), newline=""))
    assert record["model"] == EVIL
    assert "[U+4E2D]" in latex.render(board)


@pytest.mark.parametrize(
    "text", ["__x__", "a _b_ c", "[_x_]", "HM[S,g_LGA]&ICS", "~~x~~", "$a$", "&copy; &#33;", EVIL]
)
def test_markdown_shows_text_of_a_plugin_as_it_is(text: str) -> None:
    escaped = markdown.escape(text)
    plain = escaped.replace("<span>$</span>", "S")
    assert "$" not in plain  # two in one piece of text are a formula on GitHub
    (line,) = MarkdownIt("commonmark").enable("strikethrough").parseInline(plain)
    assert {one.type for one in line.children or ()} == {"text"}
    shown = "".join(one.content for one in line.children or ())
    assert shown == text.replace("$", "S").replace("\n", " ")


def test_only_the_gradual_margins_have_a_subscript() -> None:
    board = one_board(*model(label="vgg_16"), *model(label="vit_g_14"), *model(label="HM[S,g_1/2]"))
    text = latex.render(board)
    assert r" vgg\_16 " in text
    assert r"HM[S,$g_{\mathrm{1/2}}$]" in text
    text = page.render([board])
    assert ">vgg_16<" in text
    assert ">vit_g_14<" in text
    assert "HM[S,g<sub>1/2</sub>]" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex to compile with")
def test_the_latex_compiles(tmp_path: Path) -> None:
    evil = [*model(label=EVIL, seed=1), failed("SP-QA+", EVIL, label=EVIL, seed=1)]
    shown = [*boards(tidy([*model(), *evil]))]
    body = "\n".join(latex.render(board) for board in shown)
    (tmp_path / "boards.tex").write_text(
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs,graphicx}\n"
        f"\\begin{{document}}\n{body}\n\\clearpage\\appendixtables\n\\end{{document}}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "boards.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "boards.pdf").read_bytes().startswith(b"%PDF")


def test_the_same_results_give_the_same_bytes_whatever_their_order(tmp_path: Path) -> None:
    cells = [c for seed in (0, 1) for c in [*model(seed=seed), *model(label="b", seed=seed)]]
    texts = set()
    for name in ("whole", "shuffled", "split"):
        random.Random(name).shuffle(cells)
        files = {"a.csv": cells} if name != "split" else {"a.csv": cells[:9], "b.csv": cells[5:]}
        for file, part in files.items():
            write(tmp_path / name / file, part)
        (board,) = boards(read_folder(tmp_path / name), literature=False)
        html = page.render([board])
        texts.add((markdown.render(board), latex.render(board), spreadsheet.render(board), html))
    assert len(texts) == 1


def test_a_csv_says_what_the_cells_say(tmp_path: Path) -> None:
    cells = [*model(), failed("SP-QA+", 'odd, "quoted"\nerror')]
    direct, read = one_board(*cells), boards(read_tidy(write(tmp_path / "r.csv", cells)), False)
    assert markdown.render(direct) == markdown.render(read[0])
    assert page.render([direct]) == page.render(read)


@pytest.mark.slow
def test_a_thousand_rows_are_all_rendered(tmp_path: Path) -> None:
    """Read, rank, and write four formats."""
    (board,) = boards(read_tidy(write(tmp_path / "results.csv", many(1000))), literature=False)
    texts = [render(board) for render in (markdown.render, latex.render, spreadsheet.render)]
    texts.append(page.render([board]))
    assert all(text.count("HM[S,") >= 1000 for text in texts)


def test_no_two_data_sets_have_the_same_ids_on_the_page() -> None:
    names = ["my_set", "my-set", "花", "鳥", "tiny"]
    html = page.render(boards(tidy([c for name in names for c in model(dataset=name)]), False))
    ids = re.findall(r' id="([^"]*)"', html)
    assert "board-tiny" in ids
    assert len(set(ids)) == len(ids)
    assert len([one for one in ids if one.startswith("board-")]) == len(names)


def test_a_table_shows_few_columns_first_and_all_of_those_that_are_asked_for() -> None:
    (table,) = one_board(*model()).tables
    heads = [table.columns[place].name for place in table.few]
    assert heads == ["Rank", "Defense", "Model", "η", "R@1", "CA+", "ES:R", "GTM", "ERS", "Source"]
    (chosen,) = tables(measured(tidy(model())), ["R@1", "QA+", "ERS"])
    assert len(chosen.few) == len(chosen.columns)
    text = markdown.render(one_board(*model()))
    first, folded = text.split("<details><summary>All columns</summary>")
    assert "QA+" not in first
    assert "| QA+ ↑ |" in folded


def test_the_latex_has_a_main_table_and_the_rest_for_the_appendix() -> None:
    text = latex.render(one_board(*model(), *model({"CA+": 20.0}, label="other")))
    # a paper has several boards: each adds its tables to those of the boards before it
    main, more = text.split("\\providecommand{\\appendixtables}{}\n")
    assert more.startswith("\\makeatletter\\g@addto@macro\\appendixtables{%\n\\begin{table*}")
    assert more.endswith("\\end{table*}\n\n}\\makeatother")
    assert r"\renewcommand{\appendixtables}" not in text
    assert r"CA+ $\uparrow$ &" in main
    assert "QA+" not in main
    assert r"QA+ $\uparrow$ &" in more
    assert more.count(r"\begin{table*}") == 1
    mini = boards(tidy(model(dataset="fashion-mini")))[0]
    assert [table.dataset for table in mini.tables] == ["fashion-mini", "fashion"]
    assert "RobRank" not in latex.render(mini)  # a data set a file


@pytest.mark.parametrize("width", [200, 80, 50])
def test_no_number_of_any_table_is_cut(width: int) -> None:
    """The tables of compare, verify and reproduce."""
    heads = ("attack", "metric", "A", "B", "B - A", "95% interval", "n", "better")
    numbers = ("63.123", "12.456", "-50.667", "[-51.111, -49.222]", "10000", "B")
    lines = [(f"ca+:w={w},eps=8/255,steps=100,restarts=5 (strict)", "CA+", *numbers) for w in "12"]
    file = io.StringIO()
    print_grid(heads, lines, ("attack", "metric"), Console(file=file, width=width))
    shown = file.getvalue()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    for number in numbers:
        assert shown.count(number) >= 2


def test_a_terminal_shows_as_many_models_at_a_time_as_fit_and_no_number_is_cut() -> None:
    cells = [c for n in range(7) for c in model(label=f"HM[S,{n}]", defense=f"hm:u=0.{n},ics=0")]
    wide, narrow = io.StringIO(), io.StringIO()
    print_tables(tidy(cells), Console(file=wide, width=2000))
    print_tables(tidy(cells), Console(file=narrow, width=80))
    lines = narrow.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    ranks = [line.split()[1:] for line in lines if line.startswith("  Rank")]
    assert ranks == [["1=", "1="], ["1=", "1="], ["1=", "1="], ["1="]]
    for shown in (wide.getvalue(), narrow.getvalue()):
        assert shown.count("38.0 [37.0, 39.0]") == 7  # QA-
        assert "…" not in shown
    for width, blocks in ((80, 1), (45, 2)):
        file = io.StringIO()
        print_tables(tidy([*model(label="A"), *model(label="B")]), Console(file=file, width=width))
        assert file.getvalue().count("Rank") == blocks


def test_a_table_of_failures_alone_fits_a_terminal() -> None:
    cells = [failed(name, "boom", label=f"DEF{n}[R]") for n in range(8) for name in ("CA+", "CA-")]
    file = io.StringIO()
    print_tables((one for one in tidy(cells)), Console(file=file, width=80))  # read once
    assert max(map(len, file.getvalue().splitlines())) <= 80
    assert file.getvalue().count("failed: CA+, CA- on DEF") == 8
    assert all(file.getvalue().count(f"DEF{n}[R]") == 2 for n in range(8))  # table and failure
