"""Config files: finding them, running them, and building on a shipped one."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from vidlatent.config.overrides import apply_overrides
from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = ["load", "load_base", "shipped_configs"]


def shipped_configs() -> Path:
    """Folder of the configs that come with the package (a checkout's, or the installed copy)."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def load(spec: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Load ``path[:arg]``, apply ``overrides`` (``{'a.b': 'text'}``) and lock the result."""
    config = load_base(spec)
    config.lock()
    apply_overrides(config, overrides or {})
    return config


def load_base(spec: str) -> ConfigDict:
    """The config of ``path[:arg]``, unlocked: for a config file that builds on another one.

    ``load_base("fsae:demo")`` is the demo of the shipped ``configs/fsae.py``.
    """
    path, _, arg = spec.partition(":")
    file = _find(path)
    # The module is not entered into sys.modules: a config file may be called like any package.
    module_spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    if module_spec is None or module_spec.loader is None:
        raise VidlatentError(f"--config={path}: a config is a Python file, whose name ends in .py.")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise VidlatentError(f"--config={path}: the file has no function get_config(arg).")
    return module.get_config(arg)


def _find(path: str) -> Path:
    """``configs/fsae.py``, ``fsae.py`` or ``fsae``: as given, else among the shipped configs."""
    shipped = shipped_configs()
    for candidate in (Path(path), shipped / Path(path).name, shipped / f"{Path(path).name}.py"):
        if candidate.is_file():
            return candidate.resolve()
    hint = did_you_mean(Path(path).stem, [file.stem for file in shipped.glob("*.py")])
    raise VidlatentError(f"--config={path}: there is no such file; {hint}")
