"""Prepare the documentation for its builder: ``python -m scripts.docs && zensical build --strict``.

Copies ``docs/`` to ``build/docs/``. There a line ``<!-- generated: NAME -->`` is replaced by what
``PAGES[NAME]`` returns, and files from outside ``docs/`` are added. So a command, a key or a method
that is new is documented by its own docstring and help. Text right below that line is replaced too:
it says to those who read the file in the repository where they find what the site has there.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from scripts.reading import pages

ROOT = Path(__file__).parent.parent
BUILT = ROOT / "build" / "docs"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)]*)?\)")
MARK = re.compile(r"<!-- generated: (\w+) -->(?:\n.+)*")
FILES = {  # file of the repository that pages of docs/ link to -> place in the site
    "leaderboards/index.html": "board/index.html",
    "leaderboards/plots/fashion-strict-terms.png": "assets/fashion-strict-terms.png",
}
KINDS = {
    "attacks": "Attacks",
    "defenses": "Defenses",
    "datasets": "Data sets",
    "models": "Networks",
}


@click.command()
def main() -> None:
    """Write ``build/docs/`` anew."""
    write()


def write() -> None:
    """Write the pages of the site, and the files that they link to."""
    shutil.rmtree(BUILT, ignore_errors=True)
    shutil.copytree(ROOT / "docs", BUILT)
    for path in BUILT.rglob("*.md"):
        path.write_text(completed(path.read_text(encoding="utf-8")), encoding="utf-8")
    for source in pages():
        place = BUILT / place_in_site(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(relinked(source), encoding="utf-8")
    for file, name in FILES.items():
        (BUILT / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, BUILT / name)


def completed(markdown: str) -> str:
    """A page of docs/ with its generated parts; its links lead to the copies of ``FILES``.

    Those to CONTRIBUTING.md lead to the page that has its text.
    """
    page = MARK.sub(lambda match: PAGES[match[1]](), markdown)
    page = page.replace("../CONTRIBUTING.md", "contributing.md")
    for source, place in FILES.items():
        page = page.replace(f"](../{source})", f"]({place})")
    return page


def relinked(source: Path) -> str:
    """A page of results/ for the site: links lead to pages of the site, other files are named.

    Its pictures are copied to the place that they have in the repository.
    """
    place, known = place_in_site(source), pages()

    def link(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.groups(default="")
        if "://" in target or not target:
            return match[0]
        file = (source.parent / target).resolve()
        if picture:
            copied = file.relative_to(ROOT)
            (BUILT / copied).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, BUILT / copied)
            return f"![{text}]({os.path.relpath(copied, place.parent)})"
        if file not in known and ROOT / "docs" not in file.parents:
            return text
        there = os.path.relpath(place_in_site(file), place.parent)
        return f"[{text}]({there}{anchor})"

    return LINK.sub(link, source.read_text(encoding="utf-8"))


def place_in_site(source: Path) -> Path:
    """The place in the site of a page of results/ or docs/."""
    if ROOT / "docs" in source.parents:
        return source.relative_to(ROOT / "docs")
    if source.parent == ROOT / "results":
        return Path("results", "index.md")
    named = source.parent if source.name == "README.md" else source
    return Path("results", f"{named.stem}.md")


def cli() -> str:
    """Every command with its options, from click."""
    from dmlbench.cli.main import main

    context = click.Context(main, info_name="dmlbench")
    return "\n\n".join(_commands(main, context))


def _commands(command: click.Command, context: click.Context) -> Iterator[str]:
    if not isinstance(command, click.Group):
        yield _command(command, context)
        return
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        yield from _commands(below, click.Context(below, info_name=name, parent=context))


def _command(command: click.Command, context: click.Context) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [f"## {context.command_path}", _prose(command.help or ""), f"```text\n{usage}\n```"]
    rows = [_option(p, context) for p in command.get_params(context) if isinstance(p, click.Option)]
    lines.append("\n".join(["| option | meaning |", "| --- | --- |", *rows]))
    if command.epilog:
        lines.append(f"```text\n{command.epilog.replace(chr(8), '').strip()}\n```")
    return "\n\n".join(lines)


def _option(option: click.Option, context: click.Context) -> str:
    flags, text = option.get_help_record(context) or ("", "")
    words = " ".join(_escaped(text).split())
    return f"| `{' '.join(flags.split())}` | {words} |"


def methods() -> str:
    """Every registered attack, defense, data set and network with its keys and its paper."""
    from dmlbench.cli.list import describe
    from dmlbench.cli.registries import registries

    parts = []
    for kind, registry in registries().items():
        parts.append(f"## {KINDS[kind]}")
        parts += [_method(describe(cls)) for cls in registry]
    return "\n\n".join(parts)


def _method(entry: dict[str, Any]) -> str:
    from dmlbench.cli.list import protocol

    summary = _escaped(entry["summary"])
    lines = [f"### {_escaped(entry['name'])}", f"{summary[:1].upper()}{summary[1:]}."]
    if paper := entry["paper"]:
        lines.append(f"Source: [{_escaped(paper['title'])}]({paper['url']}), {paper['short']}.")
    if columns := entry.get("columns"):
        named = ", ".join(f"`{c['name']}` ({c['better']} is better)" for c in columns)
        lines.append(f"It reports {named}.")
    if "recipe" in entry:
        lines.append("\n".join(f"- {_escaped(line)}" for line in protocol(entry)))
    if entry.get("auto"):
        lines.append(f"`auto`: {_escaped(entry['auto'])}.")
    rows = [
        f"| `{p['name']}={p['default']}` | {_escaped(p['help'])} | {_escaped(p['domain'])} |"
        for p in entry["parameters"]
    ]
    if rows:
        lines.append(
            "\n".join(["| key=default | meaning | values |", "| --- | --- | --- |", *rows])
        )
    return "\n\n".join(lines)


def _prose(text: str) -> str:
    return "\n\n".join(" ".join(_escaped(part).split()) for part in text.split("\n\n"))


def _escaped(text: str) -> str:
    """``text`` as Markdown shows it letter by letter."""
    return re.sub(r"([|*_\[\]`])", r"\\\1", text).replace("<", "&lt;").replace(">", "&gt;")


def contributing() -> str:
    """CONTRIBUTING.md, without its title."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("\n")[2]
    return text.replace("](docs/", "](")


def changelog() -> str:
    """CHANGELOG.md, without its title."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2]


def scale() -> str:
    """Seconds and memory against the size of the gallery, as ``scripts.scale`` measured them."""
    with (ROOT / "results" / "speed" / "scale.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sizes = list(dict.fromkeys(row["gallery"] for row in rows))
    heads = [f"{int(size):,}" for size in sizes]
    lines = [
        " | ".join(["", "", *(f"s, {n}" for n in heads), *(f"MiB, {n}" for n in heads), ""]),
        "| --- |" + " ---: |" * 2 * len(sizes),
    ]
    for what in dict.fromkeys(row["what"] for row in rows):
        found = {row["gallery"]: row for row in rows if row["what"] == what}
        seconds = [_seconds(found[size]) for size in sizes]
        memory = [found[size]["MiB"] for size in sizes]
        lines.append(" | ".join(["", f"`{what}`", *seconds, *memory, ""]))
    return "\n".join(line.strip() for line in lines)


def _seconds(row: dict[str, str]) -> str:
    """Set-up and step, ``0.2 + 0.01``; one number where there is no set-up."""
    parts = (f"{float(row[part]):.3g}" for part in ("set-up s", "step s") if row[part])
    return " + ".join(part for part in parts if part != "0") or "0"


PAGES: dict[str, Callable[[], str]] = {
    "cli": cli,
    "methods": methods,
    "contributing": contributing,
    "changelog": changelog,
    "scale": scale,
}

if __name__ == "__main__":
    main()
