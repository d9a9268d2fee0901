"""A board as LaTeX, for ``\\input`` in a two-column paper that uses booktabs and graphicx.

Each table of the board is a main table of the few columns and, for the appendix, one or more
tables of the others, at a size that can be read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from dmlbench.report.board import Board, BoardCell, Line, Table, base
from dmlbench.report.columns import BoardColumn

PAGE = 32  # lines that fit on a page, each with its intervals below
ACROSS = 9  # metrics beside the name of a defense that fit on a line
BESIDE = ("Model", "η", "Recipe", "Precision", "EoT")  # in every table
NAMING = ("Rank", "Defense", *BESIDE, "Source")
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
_GRADUAL = re.compile(r"(?<![A-Za-z0-9_])g\\_(1/2|[A-Za-z0-9]+)")

PREAMBLE = r"""% Rendered by 'dmlbench leaderboard'. Needs \usepackage[T1]{fontenc} and
% \usepackage{booktabs,graphicx}. \interval sets what stands below a number that was measured:
% say \renewcommand{\interval}[1]{} to leave it out. \fitted narrows a table that is wider than
% the page; \appendixtables holds those of all other columns, of every board that was \input so
% far: call it in the appendix.
\providecommand{\interval}[1]{{\tiny #1}}
\providecommand{\measured}[2]{\begin{tabular}[t]{@{}r@{}}#1\\[-3pt]\interval{#2}\end{tabular}}
\providecommand{\fitted}[1]{\sbox0{#1}\ifdim\wd0>\textwidth\resizebox{\textwidth}{!}{\usebox0}%
\else\usebox0\fi}
"""


def render(board: Board) -> str:
    """A main table of each table of the board's data set, then those for the appendix.

    Tables of a related data set are in the file of that one. A table that is longer than a page is
    split.
    """
    own = [table for table in board.tables if base(table.dataset) == board.name]
    shown = own or board.tables
    main = [part for table in shown for part in _parts(table, table.few, "")]
    more = [
        part
        for table in shown
        for number, places in enumerate(_others(table), start=1)
        for part in _parts(table, places, f", appendix {number}")
    ]
    if more:
        more = [r"\makeatletter\g@addto@macro\appendixtables{%", *more, r"}\makeatother"]
        more.insert(0, r"\providecommand{\appendixtables}{}")
    return "\n".join([PREAMBLE, *main, *more])


def _others(table: Table) -> list[list[int]]:
    """The places of the columns of each table for the appendix: names, and some other metrics."""
    names = [n for n, column in enumerate(table.columns) if column.name in NAMING]
    rest = [n for n in range(len(table.columns)) if n not in {*names, *table.few}]
    return [
        sorted([*names, *rest[start : start + ACROSS]]) for start in range(0, len(rest), ACROSS)
    ]


def _parts(table: Table, places: Sequence[int], what: str) -> list[str]:
    starts, told = range(0, len(table.lines), PAGE), _told_by_label(table)
    return [
        _table(
            table,
            places,
            table.lines[start : start + PAGE],
            what + (f" ({number} of {len(starts)})" if len(starts) > 1 else ""),
            told,
        )
        for number, start in enumerate(starts, start=1)
    ]


def _table(
    table: Table, places: Sequence[int], lines: Sequence[Line], part: str, told: set[int]
) -> str:
    """One ``table*``: the columns at ``places`` of some lines; ``part`` goes into its caption.

    Lines in ``told`` are known by their label, and need no spec.
    """
    sources = dict.fromkeys(line.cells[-1].text for line in table.lines)
    numbers = {source: f"({place})" for place, source in enumerate(sources, start=1)}
    caption = f"{table.title}{part}."
    if lines[0] is table.lines[0] and "appendix" not in part:
        notes = ["Best in bold, second best underlined.", *table.notes]
        notes += [f"{number} {source}." for source, number in numbers.items()]
        caption = f"{caption} {' '.join(notes)}"
    label = re.sub(r"[^a-z0-9]+", "-", f"{table.title}{part}".lower()).strip("-")
    columns = [table.columns[place] for place in places]
    body = []
    for line in lines:
        cells = [
            numbers[line.cells[place].text]
            if column.name == "Source"
            else _cell(_short(line, line.cells[place], told), column)
            for place, column in zip(places, columns, strict=True)
        ]
        body.append(" & ".join(cells) + r" \\")
    kinds = "".join("r" if column.better else "l" for column in columns)
    return "\n".join(
        [
            r"\begin{table*}[p]",
            r"\centering\footnotesize",
            r"\setlength{\tabcolsep}{3pt}",
            r"\setlength{\belowcaptionskip}{6pt}",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{tab:{label}}}",
            rf"\fitted{{\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            " & ".join(escape(column.label) for column in columns) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
            "",
        ]
    )


def _told_by_label(table: Table) -> set[int]:
    """Identity of each line that its label and the columns beside it tell from every other."""
    facts = {
        id(line): (line.entry.label, *(c.text for h, c in _named(table, line) if h in BESIDE))
        for line in table.lines
    }
    count = Counter(facts.values())
    return {key for key, fact in facts.items() if count[fact] == 1}


def _named(table: Table, line: Line) -> Iterator[tuple[str, BoardCell]]:
    """Heading and cell of a line."""
    return zip((column.name for column in table.columns), line.cells, strict=True)


def _short(line: Line, cell: BoardCell, told: set[int]) -> BoardCell:
    """The cell, without the spec behind a label that needs none."""
    spec = f" ({line.entry.defense})"
    return replace(cell, text=cell.text.replace(spec, "")) if id(line) in told else cell


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


class _Escapes(dict[int, str]):
    """Code point -> LaTeX, for ``str.translate``."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        known = _SPECIAL.get(character)
        if known is None:
            plain = code <= 0xFF and character.isprintable()
            known = character if plain else f"[U+{code:04X}]"
        self[code] = known
        return known


_ESCAPES = _Escapes()


def escape(text: str) -> str:
    """``text`` escaped for pdflatex; a character that its fonts lack becomes ``[U+4E2D]``."""
    return text.translate(_ESCAPES)
