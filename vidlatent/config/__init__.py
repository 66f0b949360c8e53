"""Configs: Python files with ``get_config(arg)``, overridden from the command line, locked.

``--config=configs/fsae.py:paper,stage=2 --config.optim.lr=1e-4`` loads the file, hands it the part
after the colon, and sets single keys. A key that does not exist or a value of another type is one
sentence with the nearest name. Code reads ``config.a.b`` and nothing else: defaults live in
``configs/common.py``.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = [
    "apply_overrides",
    "config_hash",
    "differences",
    "load",
    "parse_arg",
    "read",
    "to_json",
    "write",
]


def shipped_configs() -> Path:
    """Folder of the configs that come with the package (a checkout's, or the installed copy)."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _find(path: str) -> Path:
    """``configs/fsae.py``, ``fsae.py`` or ``fsae``: as given, else among the shipped configs."""
    shipped = shipped_configs()
    for candidate in (Path(path), shipped / Path(path).name, shipped / f"{Path(path).name}.py"):
        if candidate.is_file():
            return candidate.resolve()
    names = [p.stem for p in shipped.glob("*.py") if p.stem not in ("__init__", "common")]
    hint = did_you_mean(Path(path).stem, names)
    raise VidlatentError(f"--config={path}: there is no such file; {hint}")


def load(spec: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Load ``path[:arg]``, apply ``overrides`` (``{'a.b': 'text'}``) and lock the result."""
    path, _, arg = spec.partition(":")
    file = _find(path)
    _make_importable()
    module_spec = importlib.util.spec_from_file_location(f"configs.{file.stem}", file)
    assert module_spec is not None and module_spec.loader is not None  # the file is there
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise VidlatentError(f"--config={path}: the file has no function get_config(arg).")
    config = module.get_config(arg)
    config.lock()
    apply_overrides(config, overrides or {})
    return config


def _make_importable() -> None:
    """Config files share their defaults by ``from configs import common``, wherever they lie."""
    if "configs" not in sys.modules:
        package = types.ModuleType("configs")
        package.__path__ = [str(shipped_configs())]
        sys.modules["configs"] = package


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
            result[key] = _coerce(f"config argument {key}", text, variants[key])
        else:
            known = [*presets, *(f"{name}={value}" for name, value in variants.items())]
            raise VidlatentError(
                f"config argument {part!r} is unknown: {did_you_mean(part, known)}"
            )
    return result


def apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    """Set ``config.a.b`` from text, checked against the type of the present value."""
    for dotted, text in overrides.items():
        *parents, leaf = dotted.split(".")
        node = config
        for depth, name in enumerate(parents):
            node = _child(node, name, ".".join(parents[:depth]))
            if not isinstance(node, ConfigDict):
                raise VidlatentError(
                    f"--config.{dotted}: {name!r} is a value, not a group of keys."
                )
        present = _child(node, leaf, ".".join(parents))
        if isinstance(present, ConfigDict):
            keys = ", ".join(sorted(present.keys()))
            raise VidlatentError(f"--config.{dotted} is a group of keys ({keys}): set one of them.")
        node[leaf] = _coerce(f"--config.{dotted}", text, present)


def _child(node: ConfigDict, name: str, where: str) -> Any:
    if name not in node:
        place = f"config.{where}" if where else "config"
        raise VidlatentError(f"{place} has no key {name!r}: {did_you_mean(name, node.keys())}")
    return node[name]


def _coerce(what: str, text: str, present: Any) -> Any:
    """``text`` as a value of the type of ``present``."""
    kind = type(present)
    if kind is str:
        return text
    if kind is bool:
        lowered = text.lower()
        if lowered in ("true", "false", "1", "0"):
            return lowered in ("true", "1")
        raise VidlatentError(f"{what}={text}: expected true or false.")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if kind is float and type(value) is int:
        value = float(value)
    if kind is tuple and isinstance(value, (list, tuple)):
        value = _tuples(value)
    if type(value) is not kind:
        raise VidlatentError(
            f"{what}={text}: expected {kind.__name__} as in {present!r}, "
            f"got {type(value).__name__}."
        )
    return value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _flat(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, Mapping)):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def to_json(config: ConfigDict) -> str:
    """The resolved config as readable JSON (tuples become lists)."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True)


def config_hash(config: ConfigDict) -> str:
    """Hex SHA-256 of the resolved config."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()


def differences(old: str, new: str) -> list[str]:
    """Keys whose values differ between two resolved configs, ``'a.b: 1 -> 2'``."""
    before, after = _flat(json.loads(old)), _flat(json.loads(new))
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
    _make_importable()
    defaults = importlib.import_module("configs.common").get_defaults(
        stored["name"], stored["preset"]
    )
    config = ConfigDict(_merged(defaults.to_dict(), stored))
    config.lock()
    apply_overrides(config, overrides or {})
    return config


def _merged(defaults: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    result = {**defaults, **stored}
    for key, value in defaults.items():
        if isinstance(value, dict) and key in stored:
            result[key] = _merged(value, stored[key])
    return result


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(child) for key, child in value.items()}
    return _tuples(value)
