"""``dmlbench merge``: bring several results folders together."""

from __future__ import annotations

from pathlib import Path

import click

from dmlbench.cli.options import PATH, options


@click.command(
    epilog="\b\nExample:\n  dmlbench merge /mnt/a/results /mnt/b/results --results results"
)
@click.argument("sources", nargs=-1, required=True, type=PATH)
@options("results")
def merge(sources: tuple[Path, ...], results: Path) -> None:
    """Copy the results and models of other results folders into --results, and update its CSVs.

    A result that is there already is kept, unless it had failed and the other succeeded.
    """
    from dmlbench.analysis.csv_files import export
    from dmlbench.common.files import check_writable
    from dmlbench.storage.merge import merge as merge_into
    from dmlbench.storage.store import Store
    from dmlbench.sweep.external_rows import join

    check_writable(results, "--results")
    target = Store(results)
    for source in sources:
        merged = merge_into(
            Store(source), target, lambda text: click.echo(f"warning: {text}", err=True)
        )
        click.echo(f"{source}: {merged.cells} cells and {merged.models} models")
    join(target)
    tidy, wide = export(target)
    click.echo(f"CSV:   {tidy} (one row per metric), {wide} (one row per model)")
