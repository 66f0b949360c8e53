"""The inputs of a generator's step: latents and conditions, made from a batch of the loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vidlatent.data.latent_set import HEADER, NULL_TEXT, read_header
from vidlatent.errors import VidlatentError
from vidlatent.latents.pixels import from_pixels
from vidlatent.latents.reader import LatentReader
from vidlatent.latents.space import Latents
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.parallel.multihost import place_as
from vidlatent.paths import as_path
from vidlatent.registry import did_you_mean

__all__ = [
    "CONTENTS",
    "NULL_TEXTS",
    "Inputs",
    "missing_condition_masks",
    "pool_content",
    "check_null_text",
    "find_pooled_side",
    "has_pictures",
    "make_text_states",
]

CONTENTS = ("latents", "pooled")
NULL_TEXTS = ("empty", "zeros")
# For each condition, the arrays of a batch that it is made from.
_ARRAYS = {
    "label": ("label",),
    "text": ("text", "text_length"),
    "image": ("image",),
    # Cut from the latent itself.
    "first": (),
    "content": ("content_latent",),
}


def has_pictures(config: ConfigDict) -> bool:
    """Whether the data of a run show anything: prompts alone (``data.sources.prompts``) do not."""
    data = config.data
    if data.source == "latents" and as_path(data.path, HEADER).is_file():
        return read_header(data.path).source.get("data", {}).get("source") != "prompts"
    return data.source != "prompts"


class Inputs:
    """``(batch, frozen, key) -> (standardised latent [B, t, h, w, c], conditions)``.

    Args:
      config: config of the run.
      model: the generator; ``model.reads`` are the names of its conditions.
      latents: facts about the latents.

    Attributes:
      reads: names of the conditions.
      reader: reads or makes the latents.
      arrays: names of the arrays of a batch that are needed; the first is the latents or videos.
    """

    def __init__(self, config: ConfigDict, model: Any, latents: Latents):
        reads = model.reads
        unknown = [name for name in reads if name not in _ARRAYS]
        if unknown:
            raise ValueError(f"conditions {unknown} have no arrays in a batch")
        self.reads, self._latents = reads, latents
        self._text_length = model.text_length if "text" in reads else 0
        self._null_text = "text" in reads and check_null_text(config) == "empty"
        self._pooled = find_pooled_side(config, model, latents)
        self.reader = LatentReader(config, latents)
        self._from_videos = self.reader.tokenizer is not None
        self._config = config
        own = [array for name in reads for array in self._list_arrays(name)]
        self.arrays = (*self.reader.arrays, *own)

    def _list_arrays(self, name: str) -> tuple[str, ...]:
        if name == "content" and self._pooled:
            # Pooled from pixels: of the video, which is there, or of the frames that a set stores.
            return () if self._from_videos else ("content",)
        return _ARRAYS[name]

    @property
    def frozen(self) -> dict[str, FrozenNetwork]:
        """The tokenizer, if the step encodes videos; else the states of the empty text, if used.

        Raises:
          VidlatentError: the data set has no states of the empty text.
        """
        if self._from_videos:
            return self.reader.frozen
        return {"null_text": self._describe_null_text()} if self._null_text else {}

    def _describe_null_text(self) -> FrozenNetwork:
        states = self._read_null_text()
        return FrozenNetwork(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), states),
            lambda abstract: place_as(states, abstract),
        )

    def _read_null_text(self) -> dict[str, np.ndarray]:
        file = as_path(self._config.data.path, NULL_TEXT)
        if not file.is_file():
            raise VidlatentError(
                f"config.conditions.null_text is 'empty', but there is no {file}: run the set's "
                "--mode=encode once more, which adds it, or set config.conditions.null_text=zeros."
            )
        return make_text_states(np.load(file)[: self._text_length])

    def __call__(
        self, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any], key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        missing = [name for name in self.arrays if name not in batch]
        if missing:
            raise VidlatentError(
                f"the generator reads {', '.join(self.reads)}, but the data has no "
                f"{' and no '.join(missing)}: encode a set that has, or choose a generator that "
                "reads less."
            )
        latent = self.reader(batch, frozen, key)
        conditions = {name: self._make_condition(name, batch, latent) for name in self.reads}
        if "null_text" in frozen:
            conditions["null_text"] = frozen["null_text"]
        return latent, conditions

    def _make_condition(self, name: str, batch: Mapping[str, jax.Array], latent: jax.Array) -> Any:
        if name == "first":
            # Causal tokenizers code frame 0 by itself, so its latent needs no second encoding.
            return latent[:, :1]
        if name == "text":
            states = batch["text"][:, : self._text_length]  # longer texts are cut
            return {
                "states": states,
                "length": jnp.minimum(batch["text_length"], states.shape[1]),
            }
        if name == "content" and self._pooled:
            return pool_content(self._pick_content_frame(batch), self._pooled)
        return batch[_ARRAYS[name][0]]

    def _pick_content_frame(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        if not self._from_videos:
            return batch["content"][:, 0]
        model = self.reader.tokenizer
        if model is None or model.condition_kind != "content":
            raise VidlatentError(
                f"this generator reads a content frame, and {self._latents.spec.name} has none: "
                "use a tokenizer with one, such as configs/reducio_vae.py."
            )
        # It only picks frames, one a clip, and so needs no parameters.
        return model.apply({}, batch["video"], method="pick_content_frames").reshape(
            batch["video"].shape[0], *batch["video"].shape[2:]
        )


def missing_condition_masks(
    conditions: Mapping[str, Any], reads: Sequence[str], frames: int
) -> dict[str, jax.Array]:
    """Which samples lack a condition that others in their batch have: name -> bool ``[B]``.

    A label below 0 and a text of length 0 mean that there is none. For single frames, the first
    frame and the semantic tokens of it count as missing too, because they would show the generator
    the very frame that it must generate. Training, evaluation and sampling all ask here, so that a
    generator is never sampled with what it was not trained with.

    Args:
      conditions: by name, ``[B, ...]`` each, or None if the whole batch has none.
      reads: names of the generator's conditions.
      frames: number of latent frames of each sample.
    """
    given = {name: value for name, value in conditions.items() if value is not None}
    found = {}
    if "label" in given:
        found["label"] = given["label"] < 0
    if "text" in given:
        found["text"] = given["text"]["length"] <= 0
    if frames == 1 and "first" in reads:
        for name in ("first", "image"):
            if name in given:
                found[name] = jnp.ones((given[name].shape[0],), bool)
    return found


def check_null_text(config: ConfigDict) -> str:
    """``config.conditions.null_text``; raises ``VidlatentError`` if it is not in ``NULL_TEXTS``."""
    found = config.conditions.null_text
    if found not in NULL_TEXTS:
        hint = did_you_mean(found, NULL_TEXTS)
        raise VidlatentError(f"config.conditions.null_text {found!r} is unknown: {hint}")
    return found


def make_text_states(states: np.ndarray) -> dict[str, np.ndarray]:
    """The condition for one text from its states ``[n, D]``: states ``[1, n, D]``, length ``[1]``.

    A text without tokens gets one token of zeros.
    """
    if not len(states):
        # Attention needs at least one key.
        states = np.zeros((1, *states.shape[1:]), np.float32)
    length = np.asarray([len(states)], np.int32)
    return {"states": np.asarray(states, np.float32)[None], "length": length}


def find_pooled_side(config: ConfigDict, model: Any, latents: Latents) -> int:
    """Side in pixels of the squares that ``pool_content`` averages; 0 if it is not used.

    Raises:
      VidlatentError: unknown ``config.conditions.content``.
    """
    content = config.conditions.content
    if content not in CONTENTS:
        hint = did_you_mean(content, CONTENTS)
        raise VidlatentError(f"config.conditions.content {content!r} is unknown: {hint}")
    if content != "pooled" or "content" not in model.reads:
        return 0
    return latents.spec.h // model.content_factor


def pool_content(frames: Any, side: int) -> jax.Array:
    """Mean RGB and brightness of squares: ``[B, H / side, W / side, 4]`` in [-1, 1].

    In small runs without an image autoencoder it replaces that autoencoder's latent, and has the
    same shape.

    Args:
      frames: uint8 ``[B, H, W, 3]``, NumPy or JAX.
      side: side of a square in pixels; must divide H and W.
    """
    batch, height, width, _ = frames.shape
    # [B, H, W, 3] -> [B, H / side, side, W / side, side, 3], averaged over each square
    pixels = from_pixels(frames).reshape(batch, height // side, side, width // side, side, 3)
    mean = pixels.mean(axis=(2, 4))
    return jnp.concatenate([mean, mean.mean(axis=-1, keepdims=True)], axis=-1)
