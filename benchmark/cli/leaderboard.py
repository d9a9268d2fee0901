"""``dmlbench leaderboard``: render boards from a results folder and published rows."""

from __future__ import annotations

from pathlib import Path

import click

from dmlbench.cli.options import options
from dmlbench.cli.shared import export_folder
from dmlbench.common.errors import UserError

FORMATS = ("md", "tex", "csv", "html", "plots")


@click.command(
    epilog="\b\nExamples:\n"
    "  dmlbench leaderboard\n"
    "  dmlbench leaderboard cub --format tex --where 'defense=HM*' --leaderboards paper\n"
    "  dmlbench leaderboard --column R@1 --column ERS --leaderboards paper\n",
)
@click.argument("datasets", nargs=-1, metavar="[DATASET]...")
@options("results", "leaderboards")
@click.option(
    "--against",
    type=click.Choice(["published", "nothing"]),
    default="published",
    show_default=True,
    help="Rows to show beside those measured here: published ones (marked as such), or none.",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(FORMATS),
    default=FORMATS,
    help="Format to write: Markdown, LaTeX, CSV, the page index.html, or plots. May be repeated. "
    "Default: all.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="NAME",
    help="Column to show, by its heading, e.g. R@1 or ERS. May be repeated. Default: the columns "
    "of the papers' tables.",
)
@click.option(
    "--where",
    multiple=True,
    metavar="KEY=TEXT",
    help="Show only lines whose suite, model, loss, defense, eta, recipe, queries, precision, eot "
    "or source (here or published) is TEXT; * stands for anything, | for or. May be repeated.",
)
def leaderboard(
    datasets: tuple[str, ...],
    results: Path,
    leaderboards: Path,
    against: str,
    formats: tuple[str, ...],
    columns: tuple[str, ...],
    where: tuple[str, ...],
) -> None:
    """Render boards: ranked tables and plots of each DATASET (default: all), and a page of all.

    They depend only on the CSVs in the results folder and on the published rows. Files that would
    be the same are left alone, and plots are drawn only where their numbers have changed.
    """
    from dmlbench.analysis.csv_files import read_folder
    from dmlbench.common.files import check_writable, write_if_changed
    from dmlbench.report import drawing, page, render, style
    from dmlbench.storage.store import no_results

    export_folder(results)
    records = read_folder(results)
    if not records:
        message = no_results(results)
        if against == "nothing":
            raise UserError(message)
        click.echo(f"{message}; these are the published rows alone", err=True)
    every = render.boards(records, against == "published", columns, where)
    known = [board.name for board in every]
    for name in datasets:
        if name not in known:
            meeting = f" that meet {' and '.join(where)}" if where else ""
            raise UserError(
                f"no results of {name!r}{meeting} in {results}: there are {', '.join(known)}"
            )
    check_writable(leaderboards, "--leaderboards")
    chosen = [board for board in every if not datasets or board.name in datasets]
    written, kept = [], 0
    for board in chosen:
        for path, new in render.write_tables(board, leaderboards, formats).items():
            written += [path] * new
            kept += not new
    if "plots" in formats:
        made = drawing.draw(chosen, leaderboards, style.FORMATS)
        files = drawing.write(made, leaderboards)
        kept += sum(len(one.files) for one in made.pictures.values()) - len(files)
        written += files
    if "html" in formats:
        pictures = drawing.draw(every, leaderboards, ("svg",)).pictures
        path = leaderboards / "index.html"
        html = page.render(every, pictures, lambda name: (leaderboards / name).is_file())
        written += [path] * write_if_changed(path, html.encode())
        kept += path not in written
    for path in written:
        click.echo(path)
    click.echo(f"{len(written)} files written, {kept} unchanged", err=True)
