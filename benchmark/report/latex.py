"""A board as LaTeX, for ``\\input`` in a paper that uses booktabs and graphicx."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dmlbench.report.board import Board, BoardCell, Line, Table
from dmlbench.report.columns import BoardColumn

PAGE = 45  # lines that fit on a page at the width of a page
_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\n": " ",
    "–": "--",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "−": "$-$",
    "γ": r"$\gamma$",
    "η": r"$\eta$",
    "λ": r"$\lambda$",
    "ξ": r"$\xi$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}
_MARKS = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", "failed": r"\emph{{{}}}"}
_GRADUAL = re.compile(r"g\\_(1/2|[A-Za-z0-9]+)")

PREAMBLE = r"""% Rendered by 'dmlbench leaderboard'. Needs \usepackage[T1]{fontenc} and
% \usepackage{booktabs,graphicx}. \interval sets what stands below a number that was measured:
% say \renewcommand{\interval}[1]{} to leave it out.
\providecommand{\interval}[1]{{\tiny #1}}
\providecommand{\measured}[2]{\begin{tabular}[t]{@{}r@{}}#1\\[-3pt]\interval{#2}\end{tabular}}
"""


def render(board: Board) -> str:
    """One ``table*`` for each table; a table that is longer than a page is split."""
    parts = [PREAMBLE]
    for table in board.tables:
        starts = range(0, len(table.lines), PAGE)
        for number, start in enumerate(starts, start=1):
            part = f" ({number} of {len(starts)})" if len(starts) > 1 else ""
            parts.append(_table(table, table.lines[start : start + PAGE], part))
    return "\n".join(parts)


def _table(table: Table, lines: Sequence[Line], part: str) -> str:
    sources = list(dict.fromkeys(line.cells[-1].text for line in lines if line.entry.paper))
    letters = {source: chr(ord("a") + place) for place, source in enumerate(sources)}
    notes = [*table.notes, *(f"({letters[source]}) {source}." for source in sources)]
    caption = f"{table.title}{part}. Best in bold, second best underlined. {' '.join(notes)}"
    label = re.sub(r"[^a-z0-9]+", "-", f"{table.title}{part}".lower()).strip("-")
    body = []
    for line in lines:
        cells = [
            _cell(cell, column) for cell, column in zip(line.cells, table.columns, strict=True)
        ]
        source = letters.get(line.cells[-1].text)
        cells[-1] = f"({source})" if source else cells[-1]
        body.append(" & ".join(cells) + r" \\")
    kinds = "".join("r" if column.better else "l" for column in table.columns)
    return "\n".join(
        [
            r"\begin{table*}[p]",
            r"\centering",
            r"\setlength{\belowcaptionskip}{6pt}",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{tab:{label}}}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            " & ".join(escape(column.label) for column in table.columns) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
            "",
        ]
    )


def _cell(cell: BoardCell, column: BoardColumn) -> str:
    text = escape(cell.text)
    if column.name == "Defense":
        text = _notation(text)
    marked = _MARKS.get(cell.mark, "{}").format(text)
    if cell.number is not None and cell.number.range:
        # braced: a bracket after \\ would be read as a length
        return rf"\measured{{{marked}}}{{{escape(cell.number.range)}}}"
    return f"{{{marked}}}" if marked.startswith("[") else marked


def _notation(text: str) -> str:
    """``g_LGA`` in a defense's name as a formula with a subscript."""
    return _GRADUAL.sub(r"$g_{\\mathrm{\1}}$", text)


def escape(text: str) -> str:
    """``text`` escaped for pdflatex; a character that its fonts lack becomes ``[U+4E2D]``."""
    return "".join(map(_character, text))


def _character(character: str) -> str:
    known = _SPECIAL.get(character)
    if known is not None:
        return known
    if ord(character) > 0xFF or not character.isprintable():
        return f"[U+{ord(character):04X}]"
    return character
