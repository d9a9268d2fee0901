"""Every board in one HTML page that is self-contained: it loads nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from dmlbench.common.files import write_atomically
from dmlbench.report import style
from dmlbench.report.board import Board, Table
from dmlbench.report.entries import Entry
from dmlbench.report.render import figures

WIDE = 6  # inches; wider plots have several panels
_GRADUAL = re.compile(r"g_(1/2|[A-Za-z0-9]+)")
_ID = re.compile(r'(\bid="|href="#|url\(#)')


@dataclass(frozen=True)
class Drawing:
    """A plot inside the page; ``name`` is the name of its files, without the ending."""

    name: str
    svg: Markup
    wide: bool


@dataclass(frozen=True)
class Tab:
    """A board as the template ``page.html`` reads it."""

    key: str
    name: str
    summary: str
    note: str
    tables: tuple[Table, ...]
    plots: tuple[Drawing, ...]


def write_page(boards: Sequence[Board], folder: Path) -> Path:
    """Write ``index.html`` into ``folder``; returns its path."""
    path = folder / "index.html"
    write_atomically(path, render(boards).encode())
    return path


def render(boards: Sequence[Board]) -> str:
    """The HTML of the page. Text from results and plugins is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"notation": _notation, "origin": origin}
    template = environment.from_string(_read("page.html"))
    columns = {c.label: c for board in boards for table in board.tables for c in table.columns}
    return template.render(
        boards=[_tab(board) for board in boards],
        columns=list(columns.values()),
        zip=zip,
        css=Markup(_read("page.css")),
        js=Markup(_read("page.js")),
    )


def origin(entry: Entry) -> str:
    """The origin of an entry's numbers, in a few lines of text."""
    if entry.paper:
        return f"Published: {entry.place}\n{entry.paper.short}"
    lines = [f"Measured {entry.source}"]
    record = next((found[0] for found in entry.records.values()), None)
    if record is not None:
        made = [f"dmlbench {record['dmlbench']}", record["git"][:12], record["torch"] and "torch "]
        made[-1] += record["torch"]
        lines += [", ".join(filter(None, made)), record["device"], record["started"][:10]]
    return "\n".join(lines)


def _tab(board: Board) -> Tab:
    drawings = tuple(
        Drawing(
            name,
            _inline(style.save(fig, "svg"), name, f"{fig.get_suptitle()}: {board.name}"),
            wide=fig.get_figwidth() > WIDE,
        )
        for name, fig in figures(board)
    )
    key = re.sub(r"[^A-Za-z0-9]+", "-", board.name)
    return Tab(key, board.name, board.summary, board.note, board.tables, drawings)


def _inline(svg: bytes, name: str, title: str) -> Markup:
    """A plot in the colours of the page, with ids that no other plot of the page has."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = _ID.sub(rf"\g<1>{name}-", text)
    for color, own in (
        (style.INK, "currentColor"),
        ("#000000", "currentColor"),
        (style.FAINT, "var(--line)"),
    ):
        text = text.replace(color, own)
    text = text.replace("fill: #ffffff", "fill: none")
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1))


def _notation(text: str) -> Markup:
    """``g_LGA`` in a defense's name as HTML with a subscript."""
    return Markup(_GRADUAL.sub(r"g<sub>\1</sub>", str(escape(text))))


def _read(name: str) -> str:
    return (resources.files("dmlbench.report") / name).read_text(encoding="utf-8")
