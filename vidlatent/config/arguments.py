"""The argument of a config, the part of ``--config=file.py:preset,key=value`` after the colon."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict

from vidlatent.config.overrides import coerce
from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = ["check_choice", "name_suffix", "parse_arg"]


def parse_arg(arg: str, presets: Sequence[str], **variants: Any) -> ConfigDict:
    """Read a config's comma-separated argument.

    ``parse_arg('paper,width=1024', ('demo', 'paper'), width=2048)`` has ``preset='paper'`` and
    ``width=1024``; the first preset is the default.
    """
    result = ConfigDict({"preset": presets[0], **variants})
    for part in filter(None, (part.strip() for part in arg.split(","))):
        key, equals, text = part.partition("=")
        if not equals and key in presets:
            result.preset = key
        elif equals and key in variants:
            result[key] = coerce(f"config argument {key}", text, variants[key])
        else:
            known = [*presets, *(f"{name}={value}" for name, value in variants.items())]
            raise VidlatentError(
                f"config argument {part!r} is unknown: {did_you_mean(part, known)}"
            )
    return result


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Refuse a value of a config's argument that is not among the ``known`` ones."""
    if value not in known:
        raise VidlatentError(
            f"config argument {name}={value} is unknown: {did_you_mean(value, known)}"
        )


def name_suffix(arg: ConfigDict, **usual: Any) -> str:
    """Names the arguments that differ from ``usual``, as ``-content_first-discriminator``.

    Each variant so has a preset name, and a default workdir, of its own.
    """
    return "".join(
        f"-{name}" if arg[name] is True else f"-{name}_{arg[name]}"
        for name, value in usual.items()
        if arg[name] != value
    )
