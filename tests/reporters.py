"""A reporter for tests."""

from __future__ import annotations

from dataclasses import dataclass, field

from dmlbench.common.progress import QuietReporter


@dataclass
class Silent(QuietReporter):
    """Shows nothing and keeps what it is told."""

    warnings: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Keep the warning."""
        self.warnings.append(message)

    def say(self, message: str) -> None:
        """Keep the line."""
        self.said.append(message)
