"""The registry: names, order, and the error for a name that is registered twice."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dmlbench.attacks.base import ATTACKS
from dmlbench.attacks.candidate import CandidateUp
from dmlbench.common.suggest import did_you_mean, unknown
from dmlbench.core.papers import Paper
from dmlbench.core.registry import Card, Component, Registry


@dataclass(frozen=True)
class Other(Component):
    card = Card("ca+", "another with the same name")


def test_a_duplicate_names_both_places() -> None:
    ATTACKS.names()
    with pytest.raises(
        ValueError, match=r"registered twice: in .*candidate\.py:\d+ and in .*test_"
    ):
        ATTACKS.register(Other)  # type: ignore[arg-type]
    assert ATTACKS.get("ca+") is CandidateUp
    assert ATTACKS.register(CandidateUp) is CandidateUp  # importing twice is no duplicate


def test_names_are_sorted_and_iteration_follows() -> None:
    registry: Registry[Component] = Registry("thing", "tests.no_such_group")
    registry._loaded = True
    registry.register(Other)
    assert registry.names() == ["ca+"]
    assert list(registry) == [Other]


def test_papers_cite_themselves() -> None:
    paper = Paper("k2020", "T", "Doe, Jane and Roe, Rick", "ECCV", 2020, "https://x")
    assert paper.short == "Doe et al., ECCV 2020"
    assert "author = {Doe, Jane and Roe, Rick}" in paper.bibtex


def test_close_names_are_suggested_and_all_are_listed() -> None:
    assert unknown("attack", "ca", ["ca+", "es", "ca-"]) == (
        "unknown attack 'ca': did you mean 'ca-' or 'ca+'? available: ca+, es, ca-"
    )
    assert unknown("key", "x", []) == "unknown key 'x': there are none"
    assert did_you_mean("zzz", {"ca+": 1}) == ""


class Stop(BaseException):
    """No Exception: what catches those lets it through."""


@pytest.mark.parametrize(
    ("raised", "said"),
    [(SystemExit(0), "SystemExit 0"), (Stop(), "Stop"), (ValueError("a\nb"), "a b")],
)
def test_a_plugin_that_raises_anything_is_named_and_left_out(
    raised: BaseException, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Entry:
        name, value = "theirs", "their.module:Attack"

        def load(self) -> None:
            raise raised

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Entry()])
    registry: Registry[Component] = Registry("attack", "dmlbench.attacks")
    with pytest.warns(UserWarning, match=rf"'theirs' \(their.module:Attack\) is left out: {said}$"):
        registry.names()
    monkeypatch.setattr(Entry, "load", lambda _: interrupt())
    with pytest.raises(KeyboardInterrupt):
        Registry("attack", "dmlbench.attacks").names()


def interrupt() -> None:
    raise KeyboardInterrupt
