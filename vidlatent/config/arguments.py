"""The argument of a config, the part of ``--config=file.py:preset,key=value`` after the colon."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vidlatent.config.overrides import coerce
from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = ["check_choice", "name_suffix", "parse_arg", "run_config"]


# The parts of the argument that say something else than the default, while a config file runs.
# With each, whether it may do no more than name the run.
_CHOSEN: contextvars.ContextVar[list[tuple[str, bool]] | None] = contextvars.ContextVar(
    "chosen", default=None
)


def parse_arg(
    arg: str,
    presets: Sequence[str],
    *,
    spelt_out: Mapping[str, Any] | None = None,
    labels: Sequence[str] = (),
    **variants: Any,
) -> ConfigDict:
    """Read a config's comma-separated argument.

    ``parse_arg('paper,width=1024', ('demo', 'paper'), width=2048)`` has ``preset='paper'`` and
    ``width=1024``; the first preset is the default.

    Args:
      arg: the text after the colon.
      presets: names of which one may stand alone.
      spelt_out: variant -> a value that means the same as its default.
      labels: variants that may do no more than name the run, such as after its data.
      variants: the other arguments with their defaults.
    """
    result = ConfigDict({"preset": presets[0], **variants})
    chosen = _CHOSEN.get()
    for part in filter(None, (part.strip() for part in arg.split(","))):
        key, equals, text = part.partition("=")
        if not equals and key in presets:
            result.preset = key
        elif equals and key in variants:
            result[key] = coerce(f"config argument {key}", text, variants[key])
            # A part that only spells out the default is allowed everywhere, so it is not recorded.
            usual = (variants[key], (spelt_out or {}).get(key, variants[key]))
            if chosen is not None and result[key] not in usual:
                chosen.append((part, key in labels))
        else:
            known = [*presets, *(f"{name}={value}" for name, value in variants.items())]
            raise VidlatentError(
                f"config argument {part!r} is unknown: {did_you_mean(part, known)}"
            )
    return result


def run_config(get_config: Callable[[str], Any], arg: str) -> Any:
    """``get_config(arg)``, where every part of ``arg`` must have an effect.

    Raises:
      VidlatentError: a part changes nothing but the preset's name. Whoever wrote it expects another
        model or training than they would get.
    """
    chosen: list[tuple[str, bool]] = []
    token = _CHOSEN.set(chosen)
    try:
        config = get_config(arg)
    finally:
        _CHOSEN.reset(token)
    parts = [part.strip() for part in arg.split(",")]
    for part, is_label in chosen:
        # A part has an effect if the config without it is another one.
        without = ",".join(other for other in parts if other != part)
        try:
            other = get_config(without)
        except Exception:  # the others do not go without this one
            continue
        if _essence(other, is_label) == _essence(config, is_label):
            raise VidlatentError(
                f"config argument {part} does nothing in {arg!r}: leave it out, or choose another "
                "preset or stage."
            )
    return config


def _essence(config: Any, with_names: bool) -> Any:
    """What a config does; ``with_names`` also what the run is called."""
    if not isinstance(config, ConfigDict):
        return config
    names = () if with_names else ("name", "preset")
    return {key: value for key, value in config.to_dict().items() if key not in names}


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
