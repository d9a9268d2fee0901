"""``Report``: measured numbers, as text, as a data frame, as a plot and in a notebook."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dmlbench.analysis.records import ROW, TIDY_COLUMNS, Record, rows, tidy
from dmlbench.common.errors import UserError
from dmlbench.core.flags import Flag
from dmlbench.metrics.bootstrap import Estimate
from dmlbench.storage.cell import Cell
from dmlbench.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from rich.console import Console

ORIGIN = ("data", "checkpoint_sha256")  # tell rows apart that agree in all else
WIDTH = 100  # of a summary in characters; wider tables are turned on their side


@dataclass(frozen=True)
class Report:
    """Numbers of one model or several, with their intervals and what produced them.

    Attributes:
        records: a dictionary for each number, with the columns of ``results.csv``.
        outcomes: identity of a cell -> what became of each query: one row per image of the test
            split, one column per metric; NaN where a query was not attacked. Of stored results it
            is empty: ``dmlbench.run`` and ``dmlbench.evaluate`` fill it.
    """

    records: tuple[Record, ...]
    outcomes: Mapping[str, pd.DataFrame] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, cells: Iterable[Cell], store: Store) -> Report:
        """The report of ``cells`` that lie in ``store``, with their outcomes."""
        cells = list(cells)
        done = [cell.id for cell in cells if cell.ok]
        return cls(tuple(tidy(cells)), {one: store.outcomes(one) for one in done})

    def __getitem__(self, name: str) -> Estimate:
        """A number by its heading: ``report["CA+"]``, ``report["CA+ (w=5)"]``, ``report["ERS"]``.

        Returns:
            ``value``, ``low`` and ``high`` of its 95% interval over queries, and ``n`` queries.

        Raises:
            KeyError: there is no such number; the message names those there are.
            UserError: several models or suites have it: choose in ``to_frame()``.
        """
        found = [row.estimates for row in rows(self.records)]
        estimates = {id(one[name]): one[name] for one in found if name in one}
        different = set(estimates.values())
        if len(different) > 1:
            raise UserError(
                f"{name} was measured of several models or suites: choose one in to_frame()"
            )
        if not different:
            known = ", ".join(self) or "no numbers"
            wrong = "".join(f"; {attack} failed: {error}" for attack, error in self.failed.items())
            raise KeyError(f"{name!r} was not measured; there are {known}{wrong}")
        return different.pop()

    def __iter__(self) -> Iterator[str]:
        """The headings of all numbers."""
        found = [row.estimates for row in rows(self.records)]
        return iter(dict.fromkeys(heading for one in found for heading in one))

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    @property
    def failed(self) -> dict[str, str]:
        """Attack -> error, of the cells that failed; empty if every one succeeded.

        Where an attack failed more than once, what tells the cells apart stands behind its name:
        ``es (label=HM[R], seed=1)``.
        """
        cells = {one["cell"]: one for one in self.records if one["status"] != "ok"}
        named: dict[str, list[Record]] = {}
        for one in cells.values():
            named.setdefault(one["attack"] or one["metric"] or "training", []).append(one)
        found = {}
        for name, alike in named.items():
            keys = [k for k in (*ROW, *ORIGIN) if len({str(one[k]) for one in alike}) > 1]
            for one in alike:
                behind = ", ".join(f"{key}={one[key]}" for key in keys)
                found[f"{name} ({behind})" if behind else name] = one["error"]
        return found

    @property
    def flags(self) -> dict[str, tuple[Flag, ...]]:
        """Heading -> the reasons not to trust its number; empty if there are none."""
        found: dict[str, tuple[Flag, ...]] = {}
        for row in rows(self.records):
            for name, flags in row.flags.items():
                found[name] = tuple(dict.fromkeys((*found.get(name, ()), *flags)))
        return found

    def to_frame(self) -> pd.DataFrame:
        """A row for each number, with the columns of ``results.csv``."""
        import pandas as pd

        from dmlbench.analysis.csv_files import series_text

        rows = [
            {k: series_text(v) if isinstance(v, tuple) else v for k, v in record.items()}
            for record in self.records
        ]
        return pd.DataFrame(rows, columns=list(TIDY_COLUMNS))

    def summary(self) -> str:
        """The tables that the command line prints."""
        from rich.console import Console

        return self._printed(Console(file=io.StringIO(), width=WIDTH, record=True)).export_text()

    def plot(self, kind: str | None = None) -> Figure:
        """A plot of the first table.

        Args:
            kind: ``intervals``, ``terms``, ``tradeoff``, ``cost``, ``eta``, ``ranks``, ``curves``,
                ``eps`` or ``steps``; None: the first of these that the numbers are enough for.

        Raises:
            UserError: an unknown kind, or numbers that are not enough for it.
        """
        from dmlbench.report.plots import PLOTS
        from dmlbench.report.terminal import all_tables

        order = dict.fromkeys(("intervals", "terms", *PLOTS))
        if kind is not None and kind not in order:
            raise UserError(f"kind must be one of {', '.join(order)}, got {kind!r}")
        for table in all_tables(self.records):
            for name in order if kind is None else [kind]:
                figure = PLOTS[name](table)
                if figure is not None:
                    return figure
        raise UserError("the numbers are not enough for this plot: measure more attacks or models")

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        labels = dict.fromkeys(record["label"] for record in self.records)
        return f"<Report of {', '.join(labels) or 'nothing'}: {', '.join(self)}>"

    def _repr_html_(self) -> str:
        """The tables in a notebook."""
        from rich.console import Console

        console = self._printed(Console(file=io.StringIO(), width=WIDTH, record=True))
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")

    def _printed(self, console: Console) -> Console:
        from dmlbench.report.terminal import print_tables

        print_tables(self.records, console)
        return console
