"""Every board in one HTML page that is self-contained: it loads nothing from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2
from markupsafe import Markup, escape

from dmlbench.report import style
from dmlbench.report.board import Board, Table
from dmlbench.report.columns import BoardColumn
from dmlbench.report.details import details, made_by
from dmlbench.report.drawing import Picture, file_stem, named
from dmlbench.report.entries import Entry

WIDE = 6  # inches; wider plots have several panels
_GRADUAL = re.compile(r"(?<![A-Za-z0-9_])g_(1/2|[A-Za-z0-9]+)")
_ID = re.compile(r'(\bid="|href="#|url\(#)')


@dataclass(frozen=True)
class Drawing:
    """A plot inside the page; ``name`` is the name of its files, without the ending."""

    name: str
    svg: Markup
    wide: bool


@dataclass(frozen=True)
class Sheet:
    """A table as the template reads it.

    Attributes:
        key: the id of its element.
        table: the table.
        order: the places of its columns in the order that the page shows them: those that stay in
            view first.
        pinned: how many stay in view when the table is scrolled to the right.
        folded: positions in ``order``, from 1, of the columns that are not shown at first.
        more: JSON of what is behind each row, a list of objects.
    """

    key: str
    table: Table
    order: tuple[int, ...]
    pinned: int
    folded: tuple[int, ...]
    more: Markup

    @property
    def columns(self) -> list[BoardColumn]:
        """The columns in their order on the page."""
        return [self.table.columns[place] for place in self.order]


@dataclass(frozen=True)
class Tab:
    """A board as the template ``page.html`` reads it."""

    key: str
    name: str
    summary: str
    note: str
    sheets: tuple[Sheet, ...]
    plots: tuple[Drawing, ...]


def render(
    boards: Sequence[Board],
    pictures: Mapping[str, Picture] = {},
    there: Callable[[str], bool] = lambda name: True,
) -> str:
    """The HTML of the page. Text from results and plugins is escaped.

    Args:
        boards: a tab each.
        pictures: their plots by name, which have an SVG.
        there: true for the files beside the page that it may lead to, e.g. ``plots/cub-ers.pdf``.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"named": _named, "origin": origin, "letters": _letters}
    template = environment.from_string(_read("page.html"))
    columns = {c.label: c for board in boards for table in board.tables for c in table.columns}
    return template.render(
        boards=[_tab(board, pictures) for board in boards],
        columns=list(columns.values()),
        there=there,
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
        lines += [made_by(record), record["device"], record["started"][:10]]
    return "\n".join(lines)


def _tab(board: Board, pictures: Mapping[str, Picture]) -> Tab:
    found = (pictures[name] for name, _, _ in named(board) if name in pictures)
    drawings = tuple(
        Drawing(
            one.name,
            _inline(one.files["svg"], one.name, f"{one.title}: {board.name}"),
            wide=one.width > WIDE,
        )
        for one in found
    )
    key = file_stem(board.name)
    sheets = tuple(_sheet(table, f"{key}-{n}") for n, table in enumerate(board.tables))
    return Tab(key, board.name, board.summary, board.note, sheets, drawings)


def _sheet(table: Table, key: str) -> Sheet:
    """The table with the name, the leading number and R@1 at the left."""
    names = [column.name for column in table.columns]
    wanted = dict.fromkeys(("Rank", "Defense", table.leading, "R@1"))
    first = [names.index(name) for name in wanted if name in names]
    order = (*first, *(place for place in range(len(names)) if place not in first))
    few = {*table.few, *first}
    folded = tuple(n for n, place in enumerate(order, start=1) if place not in few)
    more = json.dumps([details(line.entry) for line in table.lines], ensure_ascii=False)
    # no text can end the element that holds it
    return Sheet(key, table, order, len(first), folded, Markup(more.replace("<", "\\u003c")))


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


def _named(text: str, entry: Entry) -> Markup:
    """The name of a row as HTML: ``g_LGA`` with a subscript, its spec set apart from it."""
    spec = f" ({entry.defense})"
    name, found, rest = text.partition(spec)
    apart = Markup('<span class="spec">{}</span>').format(found)
    printed = _GRADUAL.sub(r"g<sub>\1</sub>", str(escape(name))).replace("&amp;", "<wbr>&amp;")
    return Markup(printed) + apart + rest


def _letters(tied: tuple[int, int]) -> str:
    """``a`` of the groups from 1 to 1, ``a–c`` of those from 1 to 3."""
    return "–".join(_letter(number) for number in dict.fromkeys(tied))


def _letter(number: int) -> str:
    """``a`` of 1, ``z`` of 26, ``aa`` of 27: the name of a group of tied rows."""
    rest, last = divmod(number - 1, 26)
    return (_letter(rest) if rest else "") + chr(ord("a") + last)


def _read(name: str) -> str:
    return (resources.files("dmlbench.report") / name).read_text(encoding="utf-8")
