"""A board as Markdown, as code hosts show it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dmlbench.report.board import Board, BoardCell, Table

# an underscore inside a word is no markup, nor is an & that begins no entity
_MARKUP = re.compile(r"[\\|*`~]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|!(?=\[)|\](?=[(\[:])")
_HTML = str.maketrans({"<": "&lt;", ">": "&gt;", "$": "<span>$</span>", "\n": " "})
_MARKS = {"best": "**{}**", "second": "<ins>{}</ins>", "failed": "*{}*"}


def render(board: Board) -> str:
    """The tables of ``board``, the few columns first, and the meaning of marks and columns."""
    lines = [f"# {escape(board.name)}", "", *_sentence(board.summary)]
    for table in board.tables:
        lines += [f"## {escape(table.title)}", "", *_table(table, table.few), ""]
        lines += [*_list([_note(note) for note in table.notes]), ""]
        if len(table.few) < len(table.columns):
            every = range(len(table.columns))
            lines += ["<details><summary>All columns</summary>", "", *_table(table, every)]
            lines += ["", "</details>", ""]
    lines += _sentence(board.note)
    lines += ["Best in bold, second best underlined; arrows show the better direction.", ""]
    lines += ["<details><summary>What the columns mean</summary>", ""]
    columns = {column.label: column.help for table in board.tables for column in table.columns}
    lines += _list([f"**{escape(label)}** {escape(text)}" for label, text in columns.items()])
    return "\n".join([*lines, "", "</details>"]) + "\n"


def _table(table: Table, places: Sequence[int]) -> list[str]:
    """The table with the columns at ``places``."""
    columns = [table.columns[place] for place in places]
    rules = ["---:" if column.better else "---" for column in columns]
    body = [[_cell(line.cells[place]) for place in places] for line in table.lines]
    heads = [escape(column.label) for column in columns]
    return ["| " + " | ".join(cells) + " |" for cells in [heads, rules, *body]]


def _cell(cell: BoardCell) -> str:
    text = _MARKS.get(cell.mark, "{}").format(escape(cell.text))
    if cell.number is not None and cell.number.range:
        text += f" <sub>{cell.number.range}</sub>"
    return f"[{text}]({cell.link})" if cell.link else text


def escape(text: str) -> str:
    """``text`` escaped for Markdown, on one line: no markup, no formula, no link and no image."""
    return (
        _MARKUP.sub(r"\\\g<0>", text)
        .translate(_HTML)
        .replace("://", ":&#47;/")
        .replace("www.", "www&#46;")
    )


def _note(text: str) -> str:
    """A note, which may hold a name that anyone has chosen: no link but a plain address."""
    return escape(text).replace("[", "\\[")


def _sentence(text: str) -> list[str]:
    return [f"{escape(text)}.", ""] if text else []


def _list(items: Iterable[str]) -> list[str]:
    return [f"- {item}" for item in items]
