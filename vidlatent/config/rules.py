"""Kinds of rules that a config value can be held against.

A rule is called with the value and returns what to write instead, or '' if the value is right.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from vidlatent.registry import did_you_mean

__all__ = [
    "Choice",
    "Each",
    "Either",
    "Flag",
    "Many",
    "Number",
    "OrFollow",
    "Pattern",
    "Rule",
    "Text",
    "number",
    "whole",
]

Rule = Callable[[Any], str]


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number between ``low`` and ``high``, which may themselves be excluded."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # low is excluded
    below: bool = False  # high is excluded
    whole: bool = False

    def __call__(self, value: Any) -> str:
        # Types are compared exactly, since isinstance takes True for a whole number.
        kinds = (int,) if self.whole else (int, float)
        if type(value) in kinds and math.isfinite(value):
            low = value > self.low if self.above else value >= self.low
            high = value < self.high if self.below else value <= self.high
            if low and high:
                return ""
        return f"give {self}"

    def __str__(self) -> str:
        text = "a whole number" if self.whole else "a number"
        if self.low > -math.inf:
            text += f" above {self.low}" if self.above else f" of at least {self.low}"
        if self.high < math.inf:
            text += " and" if self.low > -math.inf else ""
            text += f" below {self.high}" if self.below else f" of at most {self.high}"
        return text


@dataclasses.dataclass(frozen=True)
class OrFollow:
    """What another rule allows, or -1 for a value that is found out when a run starts."""

    rule: Number
    source: str  # where the value is taken from

    def __call__(self, value: Any) -> str:
        return "" if type(value) is int and value == -1 or not self.rule(value) else f"give {self}"

    def __str__(self) -> str:
        return f"{self.rule}, or -1 to take it from {self.source}"


def whole(low: float = -math.inf, high: float = math.inf) -> Number:
    """A whole number from ``low`` to ``high``."""
    return Number(low, high, whole=True)


def number(low: float = -math.inf, high: float = math.inf) -> Number:
    """A number from ``low`` to ``high``."""
    return Number(low, high)


@dataclasses.dataclass(frozen=True)
class Flag:
    """True or false."""

    def __call__(self, value: Any) -> str:
        return "" if type(value) is bool else f"give {self}"

    def __str__(self) -> str:
        return "true or false"


@dataclasses.dataclass(frozen=True)
class Text:
    """Any text; with ``needed`` not the empty one."""

    needed: bool = False

    def __call__(self, value: Any) -> str:
        # Many texts are paths, and those cannot hold a null byte.
        right = type(value) is str and (value or not self.needed) and "\0" not in value
        return "" if right else f"give {self}"

    def __str__(self) -> str:
        return "a text"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some texts."""

    known: tuple[str, ...]

    def __call__(self, value: Any) -> str:
        if value in self.known:
            return ""
        hint = did_you_mean(str(value), self.known)
        near = f"; {hint}".rstrip(".") if hint.startswith("did you mean") else ""
        return f"give {self}{near}"

    def __str__(self) -> str:
        return f"one of {', '.join(name or repr('') for name in self.known)}"


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A regular expression."""

    def __call__(self, value: Any) -> str:
        if type(value) is not str:
            return f"give {self}"
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError) as error:
            return f"give {self} ({error})"
        return ""

    def __str__(self) -> str:
        return "a regular expression"


@dataclasses.dataclass(frozen=True)
class Many:
    """A tuple of any length whose elements follow one rule."""

    element: Any
    example: str = ""

    def __call__(self, value: Any) -> str:
        # Rules return '' for what is right, so any text is a complaint.
        wrong = not isinstance(value, tuple) or any(map(self.element, value))
        return f"give {self}" if wrong else ""

    def __str__(self) -> str:
        return f"a tuple, each element {self.element}" + _like(self.example)


@dataclasses.dataclass(frozen=True)
class Each:
    """A tuple with a rule for each of its elements; with ``optional`` it may be empty."""

    elements: Sequence[Any]
    example: str
    names: str = ""  # of the elements
    optional: bool = False

    def __call__(self, value: Any) -> str:
        if self.optional and value == ():
            return ""
        right = isinstance(value, tuple) and len(value) == len(self.elements)
        if right and not any(rule(x) for rule, x in zip(self.elements, value, strict=True)):
            return ""
        return f"give {self}"

    def __str__(self) -> str:
        several = len(set(map(str, self.elements))) > 1
        each = ", ".join(map(str, self.elements)) if several else f"each {self.elements[0]}"
        each = ", ".join(filter(None, (self.names, each)))
        text = f"a tuple of {len(self.elements)} ({each})"
        return text + _like(self.example) + (", or ()" if self.optional else "")


@dataclasses.dataclass(frozen=True)
class Either:
    """What one of two rules allows."""

    first: Any
    second: Any

    def __call__(self, value: Any) -> str:
        return f"give {self}" if self.first(value) and self.second(value) else ""

    def __str__(self) -> str:
        return f"{self.first}, or {self.second}"


def _like(example: str) -> str:
    return f", such as {example}" if example else ""
