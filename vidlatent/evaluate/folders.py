"""Where reports go by default: those of other data than a run's own beside its own."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from vidlatent import config as configs

__all__ = ["default_folder"]


def default_folder(config: ConfigDict, workdir: Path, step: int) -> Path:
    """``<workdir>/eval/step_<n>``, with the data's name if the run was trained on other data."""
    other = configs.find_other_data(config, workdir)
    ending = f"_{configs.name_data(config.data)}" if other else ""
    return workdir / "eval" / f"step_{step}{ending}"
