"""Packages of your own that a run needs: ``--import=my_package`` and ``config.imports``.

Such a package registers models, losses, samplers, sources or metrics when it is imported. It is
imported before the config is built; its name is stored with the run, and whatever reads the stored
config imports it again, so that every mode works from the workdir alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from vidlatent.errors import VidlatentError

__all__ = ["import_packages"]


def import_packages(names: Iterable[str], stored: Iterable[str] = ()) -> tuple[str, ...]:
    """Import modules by their dotted names; returns the names without repetitions.

    Args:
      names: of the modules.
      stored: those of them that ``config.imports`` names, not the command line; for messages.

    Raises:
      VidlatentError: one cannot be imported.
    """
    unique, of_config = tuple(dict.fromkeys(names)), frozenset(stored)
    for name in unique:
        try:
            importlib.import_module(name)
        # It says what is wrong better than the sentence below.
        except VidlatentError:
            raise
        except Exception as error:  # whatever the package does while it is imported
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            source = f"config.imports names {name!r}" if name in of_config else f"--import={name}"
            raise VidlatentError(
                f"{source}: the module cannot be imported ({reason}); install it, or add "
                "the folder that holds it to PYTHONPATH."
            ) from error
    return unique
