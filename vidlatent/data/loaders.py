"""The loaders of a run: clips are probed once, for a training and a validation stream."""

from __future__ import annotations

from pathlib import Path

import jax
from ml_collections import ConfigDict

from vidlatent.data.loader import Loader, make_index, make_loader
from vidlatent.errors import VidlatentError
from vidlatent.spec import LatentSpec

__all__ = ["Loaders", "check_buckets"]


class Loaders:
    """Loaders for ``config.data`` that share one index of the clips.

    What probing found is kept in the workdir, so that a resumed run does not probe again.
    """

    def __init__(self, config: ConfigDict, spec: LatentSpec, workdir: Path):
        check_buckets(config, spec)
        self._data = config.data.to_dict()
        if self._data["source"] == "folder" and not self._data["index_cache"]:
            self._data["index_cache"] = str(workdir / "clips.json")
        self._common = {
            "rule": spec.lengths,
            "spec": spec,
            "seed": config.seed,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "index": make_index(self._data, seed=config.seed),
        }

    def train(self, start_step: int) -> Loader:
        """The endless training stream from ``start_step`` on."""
        return make_loader(self._data, split="train", start_step=start_step, **self._common)

    def validation(self) -> Loader:
        """The validation windows, each once."""
        return make_loader(self._data, split="validation", **self._common)


def check_buckets(config: ConfigDict, spec: LatentSpec) -> None:
    """Raise unless ``config.data.buckets`` are sizes that the tokenizer takes."""
    if not config.data.buckets:
        raise VidlatentError(
            "config.data.buckets is empty: give ((frames, height, width, batch), ...)."
        )
    for bucket in config.data.buckets:
        try:
            spec.check_video(*bucket[:3])
        except VidlatentError as error:
            raise VidlatentError(f"config.data.buckets {tuple(bucket)}: {error}") from error
