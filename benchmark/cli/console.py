"""Listings for a terminal, or a pipe."""

from __future__ import annotations

from typing import Any

import click


def print_listing(described: dict[str, list[dict[str, Any]]]) -> None:
    """Every kind's entries with their parameters, those they share once at the end."""
    for name, entries in described.items():
        click.secho(name, bold=True)
        shared = _shared_parameters(entries)
        for entry in entries:
            _print_entry(entry, shared)
        if shared:
            click.echo(f"  {click.style('all of them', fg='cyan')}")
            for p in shared:
                _print_parameter(p)
        click.echo()


def _shared_parameters(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameters that every one of several entries has, to be shown once."""
    if len(entries) < 2:
        return []
    return [p for p in entries[0]["parameters"] if all(p in e["parameters"] for e in entries)]


def _print_entry(entry: dict[str, Any], shared: list[dict[str, Any]]) -> None:
    columns = ", ".join(
        f"{c['name']}{' in ' + c['unit'] if c['unit'] else ''} ({c['better']} is better)"
        for c in entry.get("columns", [])
    )
    click.echo(f"  {click.style(entry['name'], fg='cyan')}  {entry['summary']}")
    if columns:
        click.echo(f"      reports {columns}")
    if entry["paper"]:
        click.echo(f"      {entry['paper']['short']}  {entry['paper']['url']}")
    if "recipe" in entry:
        recipe = ", ".join(
            f"{key} {value:g}" if isinstance(value, int | float) else f"{key} {value}"
            for key, value in entry["recipe"].items()
        )
        threat = entry["threat"]
        click.echo(f"      trains {entry['model']}: {recipe}")
        click.echo(
            f"      attacked with eps {threat['eps'] * 255:g}/255, {threat['steps']} steps of "
            f"{threat['alpha'] * 255:g}/255, suite {threat['suite']}"
        )
    for p in entry["parameters"]:
        if p not in shared:
            _print_parameter(p)


def _print_parameter(p: dict[str, Any]) -> None:
    click.echo(f"      {p['name']}={p['default']}  {p['help']} ({p['domain']})")
