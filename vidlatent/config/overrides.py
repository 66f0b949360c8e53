"""Keys set on the command line, checked against the type of the value that stands there."""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vidlatent.config.defaults import GENERATOR_SECTIONS
from vidlatent.config.upgrade import renamed_key
from vidlatent.errors import VidlatentError
from vidlatent.nested import flatten
from vidlatent.registry import did_you_mean

__all__ = ["apply_overrides", "coerce", "split_overrides", "to_tuples"]

# Keys that are looked for in the wrong section, and groups whose keys a config file chooses.
_ELSEWHERE = {
    ("model", "dtype"): "the compute dtype of every model is config.precision.compute.",
    ("generator", "dtype"): "the compute dtype of every model is config.precision.compute.",
}
# What other frameworks call these, and where the key is here.
_CALLED = {
    "learning_rate": "optim.lr",
    "max_steps": "train.steps",
    "num_train_steps": "train.steps",
    "epochs": "train.steps",
    "batch": "data.buckets",
    "batch_size": "data.buckets",
    "resolution": "data.buckets",
    "num_frames": "data.buckets",
    "image_size": "data.buckets",
    "dir": "data.path",
    "data_dir": "data.path",
    "folder": "data.path",
    "dtype": "precision.compute",
    "workers": "data.num_workers",
    "save_every": "checkpoint.every",
    "ema": "optim.ema_decay",
}
_ADDED_IN_FILES = {
    "loss": "a new loss term is added in a config file (vidlatent.config.load_base), since the "
    "command line only changes keys that exist.",
}


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take ``--config.a.b=value`` (or ``--config.a.b value``) out of a command line."""
    # absl only takes flags that are defined, and the keys of a config are not known to it.
    rest, overrides = [], {}
    words = iter(argv)
    for word in words:
        if not word.lstrip("-").startswith("config.") or not word.startswith("-"):
            rest.append(word)
            continue
        key, equals, value = word.lstrip("-").removeprefix("config.").partition("=")
        if not equals:
            found = next(words, None)
            if found is None:
                raise VidlatentError(f"{word} needs a value: {word}=...")
            value = found
        overrides[key] = value
    return rest, overrides


def apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    """Set ``config.a.b`` from text, checked against the type of the present value."""
    for dotted, text in overrides.items():
        if (today := renamed_key(dotted)) != dotted:
            raise VidlatentError(f"config.{dotted} is now called config.{today}: use that name.")
        *parents, leaf = dotted.split(".")
        node = config
        for depth, name in enumerate(parents):
            node = _child(config, node, name, ".".join(parents[:depth]))
            if not isinstance(node, ConfigDict):
                raise VidlatentError(
                    f"--config.{dotted}: {name!r} is a value, not a group of keys."
                )
        present = _child(config, node, leaf, ".".join(parents))
        if isinstance(present, ConfigDict):
            keys = ", ".join(sorted(present.keys()))
            raise VidlatentError(f"--config.{dotted} is a group of keys ({keys}): set one of them.")
        node[leaf] = coerce(f"--config.{dotted}", text, present)


def _child(config: ConfigDict, node: ConfigDict, name: str, where: str) -> Any:
    if name not in node and not where and name in GENERATOR_SECTIONS:
        raise VidlatentError(f"config.{name} belongs to generators, and this trains a tokenizer.")
    if name not in node:
        place = f"config.{where}" if where else "config"
        if where == "model" and not len(node) and name in config.get("generator", {}):
            raise VidlatentError(
                f"config.model is a tokenizer's, and this trains a generator: set "
                f"config.generator.{name}."
            )
        if not len(node):
            raise VidlatentError(
                f"{place} is empty in this config, so {name!r} cannot be set: fill it in a config "
                "file that builds on this one (vidlatent.config.load_base)."
            )
        # New names are possible in some sections: those of others are far from what was meant.
        find = _find_nearest if where not in _ADDED_IN_FILES else _find_here
        hint = _ELSEWHERE.get((where, name)) or find(config, node, name)
        if more := _ADDED_IN_FILES.get(where):
            hint = f"{hint.rstrip('.')}; {more}"
        raise VidlatentError(f"{place} has no key {name!r}: {hint}")
    return node[name]


def _find_here(config: ConfigDict, node: ConfigDict, name: str) -> str:
    del config
    return did_you_mean(name, node.keys())


def _find_nearest(config: ConfigDict, node: ConfigDict, name: str) -> str:
    """What may have been meant by a key that this section has not."""
    if difflib.get_close_matches(name, map(str, node.keys()), n=1):
        return did_you_mean(name, node.keys())
    keys = [str(key) for key in flatten(config.to_dict(), ".", keep_empty=True)]
    # The right name in the wrong place, its name elsewhere, then one that is spelt like it.
    found = [key for key in keys if key.rpartition(".")[2] == name]
    if not found and _CALLED.get(name) in keys:
        found = [_CALLED[name]]
    if not found:
        leaves = {key.rpartition(".")[2]: key for key in keys}
        found = [leaves[near] for near in difflib.get_close_matches(name, leaves, n=1, cutoff=0.8)]
    if found:
        # Such as the optimizers of several networks: that of the model comes first.
        best = min(found, key=lambda key: (key.count("."), _order(key)))
        return f"did you mean config.{best}?"
    return did_you_mean(name, node.keys())


def _order(key: str) -> int:
    """Sections that people mean most often go first."""
    first = ("train", "data", "optim", "sampler", "sample", "eval", "checkpoint")
    section = key.partition(".")[0]
    return first.index(section) if section in first else len(first)


def coerce(what: str, text: str, present: Any) -> Any:
    """``text`` as a value of the type of ``present``; ``what`` names it in the error."""
    kind = type(present)
    if kind is str:
        return text
    if kind is bool:
        lowered = text.lower()
        if lowered in ("true", "false", "1", "0"):
            return lowered in ("true", "1")
        raise VidlatentError(f"{what}={text}: expected true or false.")
    try:
        # What is no Python value stays text, and is refused below where no text belongs.
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    # Where a float stands, 1 is as good as 1.0.
    if kind is float and (type(value) is int or text.strip("+-").lower() in ("nan", "inf")):
        try:
            value = float(text)
        # A whole number too large for a float.
        except OverflowError:
            value = math.inf
    # The text may say nan or inf, which are floats but no settings.
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise VidlatentError(f"{what}={text}: give a finite number.")
    if kind is tuple and isinstance(value, (list, tuple)):
        value = to_tuples(value)
    # Not isinstance: True would pass for a whole number.
    if type(value) is not kind:
        raise VidlatentError(
            f"{what}={text}: expected {kind.__name__} as in {present!r}, "
            f"got {type(value).__name__}."
        )
    return value


def to_tuples(value: Any) -> Any:
    """Lists, and lists in them, as tuples: JSON has lists, configs have tuples."""
    return tuple(map(to_tuples, value)) if isinstance(value, (list, tuple)) else value
