"""The documentation site: nothing is missing, no link is dead, numbers are those of the code."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import click
import pytest
import yaml

from dmlbench import __version__
from dmlbench.analysis.records import TIDY_COLUMNS
from dmlbench.attacks.base import ATTACKS
from dmlbench.cli.main import main
from dmlbench.cli.registries import registries
from dmlbench.metrics.names import BENIGN, ERS, EXTERNAL, WORST
from dmlbench.report.columns import DESCRIBING
from scripts import docs, reading

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT / "docs").as_posix(): docs.completed(path.read_text("utf-8"))
    for path in sorted((ROOT / "docs").rglob("*.md"))
}
COLUMNS = PAGES["columns.md"]


def test_the_worked_numbers_are_those_of_the_code() -> None:
    tests = doctest.DocTestParser().get_doctest(COLUMNS, {}, "columns.md", None, 0)
    assert len(tests.examples) > 50
    said: list[str] = []
    failed = doctest.DocTestRunner(verbose=False).run(tests, out=said.append).failed
    assert not failed, "".join(said)


def headings(page: str) -> set[str]:
    return set(re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE))


def test_every_column_is_explained() -> None:
    names = {*BENIGN, ERS, WORST, f"{EXTERNAL}:R@1", *DESCRIBING, *TIDY_COLUMNS}
    names |= {column.name for attack in ATTACKS for column in attack.headings()}
    explained = headings(COLUMNS) | set(re.findall(r"^\| `(.+?)` \|", COLUMNS, flags=re.MULTILINE))
    assert names - explained == set()


def test_every_command_and_option_is_in_the_reference() -> None:
    page = PAGES["reference/cli.md"]

    def commands(command: click.Command, path: str) -> list[str]:
        if isinstance(command, click.Group):
            return [
                p for name, c in command.commands.items() for p in commands(c, f"{path} {name}")
            ]
        for option in command.params:
            assert all(flag in page for flag in option.opts if flag.startswith("--")), option
        return [path]

    assert set(commands(main, "dmlbench")) <= headings(page)


def test_every_method_is_in_the_reference() -> None:
    named = {re.sub(r"\\", "", name) for name in headings(PAGES["reference/methods.md"])}
    for registry in registries().values():
        assert {cls.card.name for cls in registry} <= named


def slug(heading: str) -> str:
    """The anchor of a heading, as Python-Markdown makes it."""
    plain = re.sub(r"[`*\\]", "", heading)
    kept = re.sub(r"[^\w\s-]", "", plain.encode("ascii", "ignore").decode()).strip().lower()
    return re.sub(r"[-\s]+", "-", kept)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_a_page_and_a_heading(name: str) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", PAGES[name], flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://") or link.startswith("http://"):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / "docs" / name).parent / path).resolve() if path else ROOT / "docs" / name
        place = target.relative_to(ROOT / "docs").as_posix()
        assert place in PAGES or place in docs.FILES.values(), f"{name}: {link}"
        if anchor:
            assert anchor in {slug(h) for h in headings(PAGES[place])}, f"{name}: {link}"


def test_every_page_is_in_the_menu() -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!ENV", lambda loader, node: "")
    config = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)

    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        below = entry if isinstance(entry, list) else list(vars_of(entry))
        return [page for one in below for page in pages(one)]

    def vars_of(entry: object) -> list[object]:
        assert isinstance(entry, dict)
        return list(entry.values())

    results = (docs.place_in_site(source).as_posix() for source in reading.pages())
    assert sorted(pages(config["nav"])) == sorted([*PAGES, *results])


def test_the_citation_names_every_method() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["version"] == __version__
    papers = {
        cls.card.paper
        for kind in ("attacks", "defenses")
        for cls in registries()[kind]
        if cls.card.paper
    }
    urls = {reference["url"]: reference["title"] for reference in cited["references"]}
    assert urls == {paper.url: paper.title for paper in papers}


def test_the_changelog_has_this_version() -> None:
    assert f"## {__version__}," in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_what_the_site_takes_from_elsewhere_is_there() -> None:
    for source in docs.FILES:
        assert (ROOT / source).is_file(), source
