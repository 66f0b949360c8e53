"""Config files: finding them, running them, and building on a shipped one."""

from __future__ import annotations

import contextlib
import importlib.util
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from vidlatent.config.arguments import run_config
from vidlatent.config.defaults import get_defaults
from vidlatent.config.imports import import_packages
from vidlatent.config.overrides import apply_overrides
from vidlatent.config.validate import check_complete, validate
from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = ["load", "load_base", "load_defaults", "shipped_configs"]


def shipped_configs() -> Path:
    """Folder of the configs that come with the package (a checkout's, or the installed copy)."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def load(
    spec: str, overrides: Mapping[str, str] | None = None, imports: Iterable[str] = ()
) -> ConfigDict:
    """The config of a file, with keys set from the command line, checked and locked.

    Args:
      spec: ``path[:arg]``; a shipped config's name alone will do as the path.
      overrides: ``{'a.b': 'text'}``.
      imports: modules to import before the file runs; they become part of ``config.imports``.
    """
    imports = import_packages(imports)
    config = load_base(spec)
    # Locked before keys are set: a misspelt one is refused instead of added.
    config.lock()
    apply_overrides(config, overrides or {})
    config.imports = import_packages((*imports, *config.imports), config.imports)
    validate(config)
    return config


def load_defaults(
    overrides: Mapping[str, str] | None = None, imports: Iterable[str] = ()
) -> ConfigDict:
    """The defaults of a tokenizer's config without a model, for a mode that needs no more.

    Arguments as of ``load``.
    """
    config = get_defaults("none", "none")
    config.lock()
    apply_overrides(config, overrides or {})
    config.imports = import_packages((*imports, *config.imports), config.imports)
    validate(config)
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
    with _explained(path, file):
        module_spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise VidlatentError(f"--config={path}: the file has no function get_config(arg).")
    with _explained(path, file):
        config = run_config(module.get_config, arg)
    if not isinstance(config, ConfigDict):
        raise VidlatentError(
            f"--config={path}: get_config returned {type(config).__name__}, not a config: let it "
            "end with 'return config'."
        )
    check_complete(config, path)
    return config


@contextlib.contextmanager
def _explained(path: str, file: Path) -> Iterator[None]:
    """Turns whatever a config file raises into one sentence with its line."""
    try:
        yield
    except VidlatentError:
        raise
    except Exception as error:
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)
        ]
        if isinstance(error, SyntaxError) and error.filename == str(file):
            lines = [error.lineno]
        # The innermost line of the config file itself, not of the package that it called.
        where = f", line {lines[-1]}" if lines else ""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise VidlatentError(f"--config={path}{where}: {reason}; correct the file.") from error


def _find(path: str) -> Path:
    """``configs/fsae.py``, ``fsae.py`` or ``fsae``: as given, else among the shipped configs."""
    shipped = shipped_configs()
    try:
        # A file of the user's own goes before a shipped one of the same name.
        for candidate in (Path(path), shipped / Path(path).name, shipped / f"{Path(path).name}.py"):
            if candidate.is_file():
                return candidate.resolve()
    except ValueError as error:  # a null byte
        raise VidlatentError(f"--config={path!r} is no path: {error}.") from error
    hint = did_you_mean(Path(path).stem, [file.stem for file in shipped.glob("*.py")])
    raise VidlatentError(f"--config={path}: there is no such file; {hint}")
