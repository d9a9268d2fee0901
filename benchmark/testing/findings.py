"""Findings: the result of each check, and the error that lists those that failed."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dmlbench.common.errors import CellError, UserError
from dmlbench.common.text import message_of

PACKAGE = Path(__file__).resolve().parents[1]
S = TypeVar("S")


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: its name.
        passed: None if it was left out, because what it needs is not there.
        reason: what is wrong, why it matters and how to mend it; why it was left out; empty if it
            passed.
    """

    check: str
    passed: bool | None
    reason: str = ""

    @property
    def word(self) -> str:
        """``ok``, ``FAILED`` or ``left out``."""
        return {True: "ok", False: "FAILED", None: "left out"}[self.passed]

    @property
    def said(self) -> str:
        """The check, and the reason where there is one."""
        return f"{self.check}: {self.reason}" if self.reason else self.check

    def __str__(self) -> str:
        return f"{self.word:9}{self.said}"


class ConformanceError(AssertionError):
    """At least one check failed. ``findings`` holds the results of all."""

    def __init__(self, name: str, findings: list[Finding]) -> None:
        self.findings = findings
        failed = [finding for finding in findings if finding.passed is False]
        lines = [f"{name}: {len(failed)} of {len(findings)} checks failed", *map(str, failed)]
        super().__init__("\n  ".join(lines))


class FlawError(Exception):
    """A check found something wrong. The message says what, why it matters and how to mend it."""


class LeftOutError(Exception):
    """A check cannot be done. The message says why."""


def require(condition: object, flaw: str) -> None:
    """Raise ``FlawError`` unless ``condition`` holds."""
    if not condition:
        raise FlawError(flaw)


def findings(
    checks: Mapping[str, Callable[[S], None]], subject: S, needs: Mapping[str, str]
) -> list[Finding]:
    """The result of each check of ``subject``; an error that it raises is a failure too.

    Args:
        checks: name -> check, in the order in which they are done.
        subject: what they look at.
        needs: check -> an earlier one that must have passed; otherwise the check is left out, so
            that one mistake is told once.
    """
    found: list[Finding] = []
    for name, check in checks.items():
        passed = {finding.check for finding in found if finding.passed}
        try:
            if name in needs and needs[name] not in passed:
                raise LeftOutError(f"it needs {needs[name]!r}")
            check(subject)
        except LeftOutError as reason:
            found.append(Finding(name, None, str(reason)))
        except (FlawError, UserError, CellError) as flaw:  # they say what is wrong
            found.append(Finding(name, False, str(flaw)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever the component raises, SystemExit too
            found.append(Finding(name, False, _raised(error)))
        else:
            found.append(Finding(name, True))
    return found


def settled(name: str, found: Iterable[Finding]) -> list[Finding]:
    """``found``; ``ConformanceError`` is raised if one of them has failed."""
    listed = list(found)
    if any(finding.passed is False for finding in listed):
        raise ConformanceError(name, listed)
    return listed


def _raised(error: BaseException) -> str:
    """The error in one line, with the deepest line of code that is the component's own."""
    said = message_of(error, "no message")
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if PACKAGE not in Path(f.filename).resolve().parents] or frames
    last = next((f for f in reversed(own) if "site-packages" not in f.filename), own[-1])
    return f"it raised {type(error).__name__}: {said} ({Path(last.filename).name}:{last.lineno})"
