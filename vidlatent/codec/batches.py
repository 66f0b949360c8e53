"""Batches of clips to latents, by the codec's own programs: what ``--mode=encode`` runs.

A clip of a batch passes through the pieces, tiles and chunks that ``Codec.encode`` would cut it
into. Clips are spread over the devices of a mesh, and as many are coded by a call as fit into
memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vidlatent.codec.auto import count_clips
from vidlatent.codec.options import CodecOptions, plan_codec
from vidlatent.codec.pieces import Piece, Pieces
from vidlatent.models.tokenizers.base import Tokenizer
from vidlatent.parallel.sharding import batch_sharding

__all__ = ["BatchEncoder"]


class BatchEncoder:
    """Clips of one length -> their latents.

    Args:
      model: the tokenizer.
      params: its parameters, on ``mesh``.
      mesh: its devices divide the batch.
      options: how clips are cut, see ``CodecOptions.for_latents``.

    Attributes:
      cut: as of ``FrameCoder``: names the way of cutting frames where it changes the latents.
    """

    def __init__(self, model: Tokenizer, params: Any, mesh: Mesh, options: CodecOptions):
        self._params, self._options = params, options
        # The mesh spreads clips, not rows: each device codes clips of its own.
        self._devices = mesh.size
        self._plan = plan_codec(options, model)
        self._programs = self._plan.programs
        self.cut = self._plan.cut
        plan = self._plan
        if plan.whole_latents and plan.chunks:  # chunks are its only way, and not asked for
            plan = dataclasses.replace(plan, chunks=None, groups=1 << 30, scan_groups=1)
        self._pieces = Pieces(plan, model.latent_spec)
        self._rows = batch_sharding(mesh)
        # Pieces of a run come before the batch.
        self._runs = NamedSharding(mesh, P(None, *self._rows.spec))
        self._clips: dict[tuple[int, ...], int] = {}

    def describe(self) -> dict[str, Any]:
        """What decides the latents beside the parameters, for the header of a set."""
        chunks = self._pieces.chunks
        return {
            "time": f"chunks of {chunks[0]} frames sharing {chunks[1]}" if chunks else "whole",
            "space": self.cut or "whole",
        }

    def cuts(self, sizes: Sequence[tuple[int, int]]) -> bool:
        """Whether frames of one of these heights and widths are cut so that latents change."""
        coder = self._programs.coder
        return bool(self.cut) and any(coder.cut_into_tiles(*size) for size in sizes)

    def __call__(self, video: np.ndarray, keys: jax.Array | None = None) -> jax.Array:
        """uint8 ``[B, T, H, W, 3]`` -> ``[B, n, t, h, w, c]``, still computing.

        Args:
          video: clips of a legal length and size; B divides among the devices.
          keys: ``[B, n]``, for n draws from each clip's posterior. The noise of a draw depends only
            on its key and the place of each latent frame. None: the posterior's mode, n = 1.
        """
        count = self._count(video.shape)
        latents = []
        for begin in range(0, len(video), count):
            some = slice(begin, begin + count)
            latents.append(self._encode(video[some], None if keys is None else keys[some]))
        latent = jnp.concatenate(latents) if len(latents) > 1 else latents[0]
        return latent[:, None] if keys is None else latent

    def _encode(self, video: np.ndarray, keys: jax.Array | None) -> jax.Array:
        cache, start, found = None, 0, []
        if keys is not None:
            keys = jax.device_put(keys, self._rows)
        for run in self._pieces.group_runs(self._pieces.cut(range(video.shape[1]))):
            places = [_list_places(piece) for piece in run]
            if len(run) == 1:
                encode = self._programs.encode
                pixels = jax.device_put(video[:, places[0]], self._rows)
            else:
                encode = self._programs.encode_run
                pixels = jax.device_put(np.stack([video[:, p] for p in places]), self._runs)
            latent, cache = encode(self._params, pixels, cache, keys, start)
            kept = self._pieces.count_kept(run, start == 0 or self._pieces.chunks is not None)
            found.append(latent[..., :kept, :, :, :])
            start += kept
            # Each chunk begins anew, with a latent of its own for its first frame.
            cache = None if self._pieces.chunks else cache
        return jnp.concatenate(found, axis=-4) if len(found) > 1 else found[0]

    def _count(self, shape: tuple[int, ...]) -> int:
        """Clips that a call codes, of a batch of this shape; told once in the log."""
        batch, frames, *sides, _ = shape
        if shape not in self._clips:
            runs = list(self._pieces.group_runs(self._pieces.cut(range(frames))))
            longest = max(piece.length for run in runs for piece in run)
            programs = self._programs.choose("encode", self._params, (longest, *sides))
            count = count_clips(
                programs,
                self._params,
                (longest, *sides),
                (batch, self._devices),
                self._options.memory_gb,
            )
            self._clips[shape] = count
            tiles = programs.coder.cut_into_tiles(*sides)
            logging.info(
                "windows of %dx%dx%d are encoded in %s of %d frames, %s, %d at a time",
                *(frames, *sides, "chunks" if self._pieces.chunks else "pieces", longest),
                *(f"{tiles[0]} tiles" if tiles else "without tiles of their own", count),
            )
        return self._clips[shape]


def _list_places(piece: Piece) -> list[int]:
    """Numbers of the frames of a piece of ``range(T)``, the last one repeated to its length."""
    return piece.frames + [piece.frames[-1]] * (piece.length - len(piece.frames))
