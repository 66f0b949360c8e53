"""What a check reports: numbers beside those that theory says, each with its tolerance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

__all__ = ["CHECKS", "Check", "Row", "Skipped", "register", "run_check"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      name: of the check and what it compares, such as ``guidance/scale 1``.
      measured: what this machine found; NaN if it found nothing.
      expected: what it must be, from theory or from a second computation.
      tolerance: largest difference that passes.
      note: why there is no number, or what was compared.
      skipped: nothing to compare here, such as several devices where there is one.
    """

    name: str
    measured: float
    expected: float
    tolerance: float
    note: str = ""
    skipped: bool = False

    @property
    def passed(self) -> bool:
        """Whether it is within the tolerance, or was skipped; NaN is not."""
        return self.skipped or abs(self.measured - self.expected) <= self.tolerance

    @property
    def verdict(self) -> str:
        return "skipped" if self.skipped else "pass" if self.passed else "FAIL"


class Skipped(Exception):
    """Raised by a check that has nothing to compare on this machine; its text says why."""


# A check yields ``(what, measured, expected, tolerance)``.
Check = Callable[[], Iterator[tuple[str, float, float, float]]]
CHECKS: dict[str, Check] = {}


def register(name: str) -> Callable[[Check], Check]:
    """Adds a check under ``name``; they run in the order in which they are registered."""

    def add(check: Check) -> Check:
        CHECKS[name] = check
        return check

    return add


def run_check(name: str) -> list[Row]:
    """The rows of a check. An error ends it with a row that fails and says why."""
    rows: list[Row] = []
    try:
        for what, measured, expected, tolerance in CHECKS[name]():
            rows.append(Row(f"{name}/{what}", float(measured), float(expected), tolerance))
    except Skipped as reason:
        rows.append(Row(name, math.nan, math.nan, math.nan, str(reason), skipped=True))
    except Exception as error:  # whatever goes wrong here is what the user wants to know
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        rows.append(Row(name, math.nan, math.nan, math.nan, text))
    if not rows:
        rows.append(Row(name, math.nan, math.nan, math.nan, "it compared nothing"))
    return rows
