"""The config that is stored with a run: writing, reading, hashing and comparing it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from vidlatent.config.defaults import GENERATOR_SECTIONS, get_defaults, get_generator_defaults
from vidlatent.config.imports import import_packages
from vidlatent.config.overrides import apply_overrides, to_tuples
from vidlatent.config.upgrade import upgrade
from vidlatent.config.validate import validate
from vidlatent.errors import VidlatentError
from vidlatent.files import dump_json, parse_json, write_text
from vidlatent.nested import flatten
from vidlatent.paths import absolute

__all__ = [
    "config_hash",
    "describe_data",
    "differences",
    "find_other_data",
    "is_readable",
    "name_data",
    "read",
    "to_json",
    "write",
]


def to_json(config: ConfigDict) -> str:
    """The resolved config as readable JSON (tuples become lists)."""
    # Sorted, so that the hash does not depend on the order in which keys were set.
    return dump_json(config.to_dict(), indent=1, sort_keys=True)


def config_hash(config: ConfigDict) -> str:
    """Hex SHA-256 of the resolved config."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()


def differences(old: str, new: str) -> list[str]:
    """Keys whose values differ between two resolved configs, ``'a.b: 1 -> 2'``."""
    before, after = flatten(parse_json(old), "."), flatten(parse_json(new), ".")
    absent = "absent"
    return [
        f"{key}: {before.get(key, absent)} -> {after.get(key, absent)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, absent) != after.get(key, absent)
    ]


def write(config: ConfigDict, workdir: Path) -> list[str]:
    """Write ``config.json`` into the workdir.

    Returns what changed since the config that was there. One of an older version is compared under
    today's names and with today's defaults, so that it differs by choices alone.
    """
    path = workdir / "config.json"
    text = to_json(config)
    try:
        changed = differences(to_json(_stored(workdir)[0]), text) if path.exists() else []
    except VidlatentError as error:
        # It would stop every later mode; what this run goes by is known.
        logging.warning("%s It is written anew from this run's config.", error)
        changed = []
    write_text(path, text + "\n")
    return changed


def find_other_data(config: ConfigDict, workdir: Path) -> str:
    """The data that a workdir was trained on, in words, if ``config`` names other data.

    Source and path are compared. '' if they are the same, or if it is not known.
    """
    try:
        stored = _stored(workdir)[0].data
    except VidlatentError:
        return ""
    if (stored.source, _absolute(stored.path)) == (config.data.source, _absolute(config.data.path)):
        return ""
    return describe_data(stored)


def is_readable(workdir: Path) -> bool:
    """Whether a workdir has a config that can be read."""
    try:
        return bool(_stored(workdir))
    except VidlatentError:
        return False


def describe_data(data: ConfigDict) -> str:
    """``config.data`` in words: source and path."""
    return f"the source {data.source}" + (f" in {data.path}" if data.path else "")


def name_data(data: ConfigDict) -> str:
    """A short name for ``config.data`` that folders can have: that of its path, or its source."""
    name = os.path.basename(_absolute(data.path)) if data.path else data.source
    return re.sub(r"[^\w.-]+", "_", name) or data.source


def _absolute(path: str) -> str:
    return absolute(path) if path else ""


def read(
    workdir: Path, overrides: Mapping[str, str] | None = None, imports: Iterable[str] = ()
) -> ConfigDict:
    """The config that a workdir was trained with, with keys set from the command line, locked.

    The modules of its ``config.imports``, and ``imports`` beside them, are imported.
    Keys that were renamed since then have their new names (``config/upgrade.py``), and keys that
    did not exist have their default values. Sections of generators in the config of a tokenizer,
    which older versions wrote, are left out.

    Raises:
      VidlatentError: no run, or a config.json that holds no config.
    """
    config, left_out = _stored(workdir)
    for key, value in left_out.items():
        logging.warning(
            "config.%s=%r of %s is left out: a tokenizer has no such key.",
            key,
            value,
            workdir / "config.json",
        )
    config.lock()
    apply_overrides(config, overrides or {})
    config.imports = import_packages((*config.imports, *imports), config.imports)
    validate(config)
    return config


def _stored(workdir: Path) -> tuple[ConfigDict, dict[str, Any]]:
    """``(config, values left out)``: the stored config with today's keys."""
    path = workdir / "config.json"
    if not path.is_file():
        raise VidlatentError(f"--workdir={workdir} holds no run (no config.json): train first.")
    try:
        stored = _with_tuples(upgrade(parse_json(path.read_bytes())))
        # Every config has these two: a file without them is something else.
        name, preset = stored["name"], stored["preset"]
        return _complete(name, preset, stored)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise VidlatentError(
            f"{path} holds no config of a run ({type(error).__name__}: {error}): copy it from a "
            "backup, or give --config as when the run was started."
        ) from error


def _complete(name: str, preset: str, stored: dict[str, Any]) -> tuple[ConfigDict, dict[str, Any]]:
    imports = stored.get("imports", ())
    if not isinstance(imports, tuple) or not all(isinstance(name, str) for name in imports):
        raise ValueError("imports is no list of names")
    if stored.get("generator"):
        defaults, left_out = get_generator_defaults(name, preset), {}
    else:
        defaults = get_defaults(name, preset)
        left_out = _take_generator_sections(stored)
    return ConfigDict(_merge(defaults.to_dict(), stored)), left_out


def _take_generator_sections(stored: dict[str, Any]) -> dict[str, Any]:
    """Remove the sections of generators; returns the keys in them that had been set."""
    usual = flatten(get_generator_defaults("", "").to_dict(), ".")
    sections = {name: stored.pop(name) for name in GENERATOR_SECTIONS if name in stored}
    # Older versions stored all defaults of a generator: only a value that was set is worth telling.
    return {k: v for k, v in flatten(sections, ".").items() if usual.get(k) != v}


def _merge(defaults: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    # Keys without a default stay: config files add some of their own, for example to `loss`.
    result = {**defaults, **stored}
    for key, value in defaults.items():
        if isinstance(value, dict) and key in stored:
            if not isinstance(stored[key], dict):
                raise ValueError(f"{key} is no section")
            result[key] = _merge(value, stored[key])
    return result


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(child) for key, child in value.items()}
    return to_tuples(value)
