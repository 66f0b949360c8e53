"""The config that is stored with a run: writing, reading, hashing and comparing it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vidlatent.config.defaults import get_defaults
from vidlatent.config.overrides import apply_overrides, to_tuples
from vidlatent.errors import VidlatentError

__all__ = ["config_hash", "differences", "read", "to_json", "write"]


def to_json(config: ConfigDict) -> str:
    """The resolved config as readable JSON (tuples become lists)."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True)


def config_hash(config: ConfigDict) -> str:
    """Hex SHA-256 of the resolved config."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()


def differences(old: str, new: str) -> list[str]:
    """Keys whose values differ between two resolved configs, ``'a.b: 1 -> 2'``."""
    before, after = _flatten(json.loads(old)), _flatten(json.loads(new))
    absent = "absent"
    return [
        f"{key}: {before.get(key, absent)} -> {after.get(key, absent)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, absent) != after.get(key, absent)
    ]


def write(config: ConfigDict, workdir: Path) -> list[str]:
    """Write ``config.json`` into the workdir; returns what changed since the one that was there."""
    path = workdir / "config.json"
    text = to_json(config)
    changed = differences(path.read_text(), text) if path.exists() else []
    path.write_text(text + "\n")
    return changed


def read(workdir: Path, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """The config that a workdir was trained with, with ``overrides`` applied, locked.

    Keys that did not exist when it was written have their default values.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise VidlatentError(f"--workdir={workdir} holds no run (no config.json): train first.")
    stored = _with_tuples(json.loads(path.read_text()))
    defaults = get_defaults(stored["name"], stored["preset"])
    config = ConfigDict(_merge(defaults.to_dict(), stored))
    config.lock()
    apply_overrides(config, overrides or {})
    return config


def _merge(defaults: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    result = {**defaults, **stored}
    for key, value in defaults.items():
        if isinstance(value, dict) and key in stored:
            result[key] = _merge(value, stored[key])
    return result


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(child) for key, child in value.items()}
    return to_tuples(value)
