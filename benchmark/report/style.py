"""The look of every plot: readable in black and white and by colour-blind people.

The same figure is always saved as the same bytes.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmlbench.report.entries import Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#1f2328", "#c9ced4"  # page.py replaces both by colours of the page
FORMATS = ("svg", "pdf", "png")  # in this order: saving settles the layout, and moves the next
SIDES = tuple(
    (ha, sign * dx, dy)
    for dx, dys in ((5, (4, -9)), (7, (-2, 12, -17)), (14, (20, -25, 28, -33)), (30, (20, -25)))
    for ha, sign in (("left", 1), ("right", -1))
    for dy in dys
)
"""Places of a name beside its point, in order of preference: alignment, and points aside and up."""
BESIDE = 9  # a name that is further up or down than so many points has a line to its point
NAME_SIZE = 6.5  # of the letters of a name
LINE = 8.0  # from one name to the next below it, in points
LEADER = {"arrowstyle": "-", "lw": 0.4, "color": INK, "shrinkA": 0, "shrinkB": 3}
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
LETTERS = 19  # of a caption in one inch
RC = {
    "font.family": "DejaVu Sans",  # matplotlib brings it
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "text.parse_math": False,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.linewidth": 1.2,
    "lines.markersize": 5.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "dmlbench",
    "figure.dpi": 100,
    "savefig.dpi": 200,
}
_NO_DATE: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {},
}


@dataclass(frozen=True)
class Family:
    """A family of defenses with a colour (of Okabe and Ito's palette) and a marker of its own."""

    name: str
    color: str
    marker: str


UNDEFENDED = Family("undefended", INK, "o")  # not black, whose fill an SVG leaves out
EST = Family("EST", "#e69f00", "^")
ACT = Family("ACT", "#0072b2", "s")
HM = Family("HM", "#d55e00", "D")
HM_ICS = Family("HM & ICS", "#009e73", "P")
FAST = Family("FAST, FREE", "#56b4e9", "v")
OTHER = Family("other", "#cc79a7", "X")
FAMILIES = (UNDEFENDED, EST, ACT, HM, HM_ICS, FAST, OTHER)


def family(entry: Entry) -> Family:
    """The family of an entry's defense, recognised by its name in the papers' notation."""
    label = entry.label
    if label.startswith("HM["):
        return HM_ICS if "ICS" in label else HM
    known = {"N/A": UNDEFENDED, "EST": EST, "ACT": ACT, "FAST": FAST, "FREE": FAST}
    return known.get(label.partition("[")[0], OTHER)


def families(entries: Sequence[Entry]) -> dict[int, Family]:
    """Identity of each entry -> the family whose colour and marker it is drawn with.

    Where none is of a known family, as networks without a defense are, each looks like another one.
    """
    found = {id(entry): family(entry) for entry in entries}
    if set(found.values()) != {OTHER}:
        return found
    looks = (OTHER, *FAMILIES[1:-1], UNDEFENDED)
    return {id(entry): looks[i % len(looks)] for i, entry in enumerate(entries)}


def best_of_families(entries: Sequence[Entry]) -> list[Entry]:
    """The best entry of each family, in the order of ``FAMILIES``; ``entries`` come best first.

    Where none is of a known family these are the seven best, as there are seven looks.
    """
    entries = [entry for entry in entries if not entry.collapsed]
    kinds = families(entries)
    first: dict[Family, Entry] = {}
    for entry in entries:
        first.setdefault(kinds[id(entry)], entry)
    return sorted(first.values(), key=lambda entry: FAMILIES.index(family(entry)))


def dashes(entries: Sequence[Entry], first: int = 0) -> dict[int, Any]:
    """Identity of each entry -> the dashes of its line, which tell those of one family apart.

    ``first`` is the place in ``DASHES`` that each family begins at.
    """
    seen: Counter[Family] = Counter()
    found = {}
    for entry in entries:
        kind = family(entry)
        found[id(entry)] = DASHES[(first + seen[kind]) % len(DASHES)]
        seen[kind] += 1
    return found


def marker(entry: Entry, kind: Family | None = None) -> dict[str, Any]:
    """Marker options for matplotlib: filled if measured here, hollow if published.

    Colour and marker are those of ``kind``, which is the family of the entry if it is not given.
    """
    kind = kind or family(entry)
    return {
        "marker": kind.marker,
        "color": kind.color,
        "markerfacecolor": "none" if entry.paper else kind.color,
        "markeredgecolor": kind.color,
    }


@contextmanager
def _styled() -> Iterator[None]:
    from matplotlib import style

    with style.context(["default", RC]), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing"
        )  # a name in letters that the font lacks
        yield


@contextmanager
def figure(width: float, height: float) -> Iterator[Figure]:
    """A new figure, ``width`` x ``height`` inches, in this style."""
    from matplotlib.figure import Figure

    with _styled():
        yield Figure(figsize=(width, height), layout="constrained")


def say(fig: Figure, title: str, protocol: str, axes: Sequence[Axes] = ()) -> None:
    """Write the title above the plot, and ``protocol`` and the legend of ``axes`` below it."""
    fig.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    found = [pair for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in found}
    protocol = _wrapped(protocol, int(fig.get_figwidth() * LETTERS))
    if not handles:
        fig.supxlabel(protocol, x=0.01, ha="left", fontsize=6.5)
        return
    legend = fig.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower left",
        ncols=max(1, int(fig.get_figwidth() / (0.4 + 0.07 * max(map(len, handles))))),
        title=protocol,
        title_fontsize=6.5,
    )
    legend.set_alignment("left")


def _wrapped(text: str, width: int) -> str:
    """``text`` in lines of ``width`` letters, broken between its ``; ``."""
    whole = text.replace(" ", "\u00a0").replace(";\u00a0", "; ")
    return textwrap.fill(whole, width, break_long_words=False).replace("\u00a0", " ")


def name_points(axis: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each name beside its point, where it lies within the axes and overlaps no other name.

    Of these places it gets the one that covers the fewest markers and lines. A name that fits
    nowhere is left out: those that matter most come first.
    """
    texts: list[Any] = []
    for _ in range(2):  # names move the axes, so their places are final only the second time
        axis.figure.draw_without_rendering()  # type: ignore[union-attr]
        for text in texts:
            text.remove()
        texts, taken = [], Occupied([], _markers(axis), _lines(axis))
        for x, y, name in points:
            found = _best_place(axis, (x, y), name, taken)
            if found is not None:
                ha, dx, dy = found
                looks: dict[str, Any] = {"ha": ha, "fontsize": NAME_SIZE}
                looks["arrowprops"] = LEADER if abs(dy) > BESIDE else None
                text = axis.annotate(name, (x, y), (dx, dy), textcoords="offset points", **looks)
                texts.append(text)


@dataclass
class Occupied:
    """The places in pixels that are taken: by names, which no other may cover, and by marks.

    Attributes:
        names: boxes of the names that have their place.
        markers: boxes of markers.
        lines: paths of lines, also of those from names to their points.
    """

    names: list[Any]
    markers: list[Any]
    lines: list[Any]


def _best_place(axis: Axes, point: tuple[float, float], name: str, taken: Occupied) -> Any:
    """The best of ``SIDES`` for a name, which is added to ``taken``; None if it fits nowhere."""
    import numpy as np
    from matplotlib.path import Path

    inside, scale = axis.get_window_extent(), axis.figure.dpi / 72
    text = axis.annotate(name, point, (0, 0), textcoords="offset points", fontsize=NAME_SIZE)
    there, box = axis.transData.transform(point), text.get_window_extent()
    text.remove()
    found: list[Any] = []
    for side in SIDES:
        ha, dx, dy = side
        left = dx * scale - (box.width if ha == "right" else 0)
        moved = box.translated(left, dy * scale)
        if not (inside.x0 <= moved.x0 and moved.x1 <= inside.x1):
            continue
        if any(moved.overlaps(other) for other in taken.names):
            continue
        middle = (moved.x0 + moved.width / 2, moved.y0 + moved.height / 2)
        leader = [Path(np.array([there, middle]))] if abs(dy) > BESIDE else []
        covered = 4 * sum(moved.overlaps(other) for other in taken.markers)
        covered += sum(line.intersects_bbox(moved, filled=False) for line in taken.lines)
        for line in leader:
            covered += 2 * sum(line.intersects_bbox(other) for other in taken.names)
        found.append((covered, side, moved, leader))
    if not found:
        return None
    _, side, moved, leader = min(found, key=lambda place: place[0])  # the first of equals
    taken.names.append(moved)
    taken.lines += leader
    return side


def _markers(axis: Axes) -> list[Any]:
    """The boxes that the markers of ``axis`` cover, in pixels."""
    from matplotlib.transforms import Bbox

    found = []
    for line in axis.lines:
        if line.get_marker() not in ("", "None", None):
            half = line.get_markersize() / 2 * axis.figure.dpi / 72
            for x, y in axis.transData.transform(line.get_xydata()):
                found.append(Bbox.from_extents(x - half, y - half, x + half, y + half))
    return found


def _lines(axis: Axes) -> list[Any]:
    """The paths of the lines of ``axis``, in pixels."""
    import numpy as np
    from matplotlib.cbook import STEP_LOOKUP_MAP
    from matplotlib.path import Path

    found = []
    for line in axis.lines:
        if line.get_linestyle() != "None":
            corners = STEP_LOOKUP_MAP[line.get_drawstyle()](*np.asarray(line.get_xydata()).T)
            found.append(Path(axis.transData.transform(np.column_stack(corners))))
    return found


def name_ends(axis: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each name to the right of its point.

    Names that would overlap are moved up and down, as little as can be, in the order of their
    points; one that is moved has a line to its point. None is below the axes.
    """
    axis.figure.draw_without_rendering()  # type: ignore[union-attr]  # settles the layout
    scale, bottom = axis.figure.dpi / 72, axis.get_window_extent().y0
    names, boxes = [], []
    for x, y, name in sorted(points, key=lambda point: point[1]):
        text = axis.annotate(name, (x, y), (7, 0), textcoords="offset points", fontsize=NAME_SIZE)
        boxes.append(text.get_window_extent())
        text.remove()
        names.append((x, y, name, (axis.transData.transform((x, y))[1] - bottom) / scale))
    for group in _side_by_side(boxes):
        places = moved_apart([names[i][3] for i in group])
        for i, place in zip(group, places, strict=True):
            x, y, name, height = names[i]
            up = place - height
            looks: dict[str, Any] = {"va": "center", "fontsize": NAME_SIZE}
            moved = abs(up) > NAME_SIZE / 2
            looks["arrowprops"] = LEADER | {"relpos": (0, 0.5)} if moved else None  # to its left
            axis.annotate(name, (x, y), (11, up), textcoords="offset points", **looks)


def moved_apart(heights: Sequence[float]) -> list[float]:
    """Heights in points, ``LINE`` apart at least and not below zero, nearest to the given ones.

    Nearest by the sum of squares. ``heights`` rise, and so do those that are returned.
    """
    import numpy as np
    from scipy.optimize import isotonic_regression

    apart = LINE * np.arange(len(heights))
    found = isotonic_regression(np.asarray(heights) - apart).x
    return list(np.maximum(found, LINE / 2) + apart)


def _side_by_side(boxes: Sequence[Any]) -> list[list[int]]:
    """The places of the boxes in groups, none of which has a box above or below one of another."""
    groups: list[tuple[float, list[int]]] = []  # right end, places
    for i in sorted(range(len(boxes)), key=lambda i: boxes[i].x0):
        if groups and boxes[i].x0 < groups[-1][0]:
            right, group = groups.pop()
            groups.append((max(right, boxes[i].x1), [*group, i]))
        else:
            groups.append((boxes[i].x1, [i]))
    return [sorted(group) for _, group in groups]


def save(fig: Figure, kind: str) -> bytes:
    """The bytes of the figure as ``pdf``, ``svg`` or ``png``."""
    buffer = io.BytesIO()
    with _styled():
        fig.savefig(buffer, format=kind, metadata=_NO_DATE[kind])
    return buffer.getvalue()
