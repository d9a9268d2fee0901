"""``dmlbench merge``: bring several results folders together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dmlbench.cli.options import PATH, options

if TYPE_CHECKING:
    from dmlbench.storage.store import Store


@click.command(
    epilog="\b\nExample:\n  dmlbench merge /mnt/a/results /mnt/b/results --results results"
)
@click.argument("sources", nargs=-1, required=True, type=PATH)
@options("results")
def merge(sources: tuple[Path, ...], results: Path) -> None:
    """Copy the results and models of other results folders into --results, and update its CSVs.

    A result that is there already is kept, unless it had failed and the other succeeded, or the
    other has more columns (--recalls). CSVs that a user put beside them are named, not copied.
    """
    from dmlbench.analysis.csv_files import export
    from dmlbench.common.errors import UserError
    from dmlbench.common.files import check_writable
    from dmlbench.storage.merge import check_models
    from dmlbench.storage.merge import merge as merge_into
    from dmlbench.storage.store import Store
    from dmlbench.sweep.external_rows import join

    target = Store(results)

    def warn(text: str) -> None:
        click.echo(f"warning: {text}", err=True)

    csvs = {source: _added(Store(source)) for source in sources}
    for source, names in csvs.items():
        found = Store(source)
        if not found.ids() and not found.model_folders():
            alone = f"CSVs alone ({names}): copy them into {results}" if names else "no results"
            raise UserError(f"{source} holds {alone}")
        check_models(found)
    check_models(target)
    check_writable(results, "--results")
    for source, names in csvs.items():
        merged = merge_into(Store(source), target, warn)
        click.echo(f"{source}: {merged.cells} cells and {merged.models} models")
        if names:
            warn(f"CSVs in {source} are left behind ({names}): to take them, copy into {results}")
    join(target)
    tidy, wide = export(target)
    click.echo(f"CSV:   {tidy} (one row per metric), {wide} (one row per model)")


def _added(store: Store) -> str:
    """The names of the CSVs in a results folder that are no export of its cells."""
    from dmlbench.analysis.csv_files import has_foreign, tidy_files

    if not store.root.is_dir():
        return ""
    own = not has_foreign(store)
    found = tidy_files(store.root)
    return ", ".join(path.name for path in found if path.name != "results.csv" or not own)
