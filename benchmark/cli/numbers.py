"""Types of flags that take numbers: finite, and no larger than a machine can use."""

from __future__ import annotations

import math
from typing import Any

import click

from dmlbench.common.numbers import LARGEST


class Whole(click.IntRange):
    """A whole number from ``min`` to ``max``."""

    def __init__(self, min: int = 0, max: int = LARGEST) -> None:
        super().__init__(min, max)

    def _describe_range(self) -> str:
        """The range in the help, without the upper end if that is the largest number."""
        return super()._describe_range() if self.max != LARGEST else f"x>={self.min}"

    def convert(self, value: Any, param: Any, context: Any) -> int:
        """The number."""
        number: int = click.INT.convert(value, param, context)
        if self.max == LARGEST < number:
            self.fail(f"{value} is above {LARGEST}, the largest number.", param, context)
        return super().convert(value, param, context)


class Real(click.FloatRange):
    """A finite number from ``min`` to ``max``."""

    def __init__(self, min: float = 0, max: float = 1e9, min_open: bool = False) -> None:
        super().__init__(min, max, min_open=min_open)

    def convert(self, value: Any, param: Any, context: Any) -> float:
        """The number; ``nan`` is refused, which every comparison would let through."""
        number: float = super().convert(value, param, context)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, context)
        return number
