"""Long videos in chunks of the training length, blended where they overlap (ProMAG, appendix D).

The models are trained on 17 frames and get worse beyond. Chunks are coded independently, each with
its own first-frame latent. Neighbours may share frames, over which they are cross-faded.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.spec import check_shape

__all__ = [
    "ChunkPlan",
    "cut_chunks",
    "encode_chunks",
    "compute_fade",
    "fade_in",
    "map_chunks",
    "plan_chunks",
    "stream_chunks",
]


@dataclasses.dataclass(frozen=True)
class ChunkPlan:
    """Where the chunks of a video lie.

    Attributes:
      frames: length of the video.
      starts: first frame of each chunk.
      chunk: frames of a chunk.
      overlap: frames shared by neighbours.
    """

    frames: int
    starts: tuple[int, ...]
    chunk: int
    overlap: int

    @property
    def padded(self) -> int:
        """Length after repeating the last frame until the last chunk is full."""
        return self.starts[-1] + self.chunk

    def latents(self, factor: int) -> int:
        """Latent frames of all chunks together for a temporal compression ``factor``."""
        return len(self.starts) * (1 + (self.chunk - 1) // factor)


def plan_chunks(frames: int, overlap: int = 0, chunk: int = 17) -> ChunkPlan:
    """Chunks for a video of ``frames`` frames.

    One frame is an image and stays one frame: a plan with a single chunk of length 1.

    Raises:
      VidlatentError: no frame, or an overlap of more than half a chunk (three would share a frame).
    """
    if frames < 1:
        raise VidlatentError("there is no frame to cut into chunks.")
    _check_overlap(overlap, chunk)
    if frames == 1:
        return ChunkPlan(1, (0,), 1, 0)
    step = chunk - overlap
    count = 1 + -(-max(frames - chunk, 0) // step)
    return ChunkPlan(frames, tuple(i * step for i in range(count)), chunk, overlap)


def _check_overlap(overlap: int, chunk: int) -> None:
    if not 0 <= overlap <= chunk // 2:
        raise VidlatentError(
            f"chunks of {chunk} frames cannot overlap by {overlap} frames: use 0 to {chunk // 2}."
        )


def stream_chunks(
    frames: Iterable[Any], overlap: int = 0, chunk: int = 17
) -> Iterator[tuple[list[Any], int]]:
    """Cut a stream of unknown length into the chunks of ``plan_chunks``.

    Yields:
      The frames of a chunk, and how many of them are new, not shared with the chunk before. The
      last chunk may be shorter: repeat its last frame to fill it.
    """
    _check_overlap(overlap, chunk)
    stream = iter(frames)
    held: list[Any] = []
    # Stops when nothing is new: shared frames alone make no chunk.
    while new := list(itertools.islice(stream, chunk - len(held))):
        held += new
        yield held, len(new)
        held = held[chunk - overlap :]


def compute_fade(overlap: int) -> np.ndarray:
    """Weight of the later chunk at each shared frame: ``(j + 1) / (overlap + 1)``."""
    # Neither 0 nor 1 occurs, so both chunks count at every shared frame.
    return (np.arange(overlap) + 1.0) / (overlap + 1)


def cut_chunks(video: jax.Array, plan: ChunkPlan) -> jax.Array:
    """``[B, T, H, W, C] -> [B, n, chunk, H, W, C]``, padded with the last frame."""
    check_shape(video, "B T H W C", T=plan.frames)
    # Frame numbers [n, chunk]; those beyond the end become the last frame's.
    index = np.asarray(plan.starts)[:, None] + np.arange(plan.chunk)
    return video[:, np.minimum(index, plan.frames - 1)]


def fade_in(chunk: jax.Array, tail: jax.Array | None, overlap: int) -> tuple[jax.Array, jax.Array]:
    """Join decoded chunks one at a time, each faded into the one before.

    Args:
      chunk: ``[B, T, H, W, C]`` of at least twice ``overlap`` frames.
      tail: what the chunk before left; None for the first.
      overlap: frames shared by neighbours.

    Returns:
      ``[B, T - overlap, H, W, C]``, the frames that no later chunk touches; the tail
      ``[B, overlap, H, W, C]``, which ends the video if no chunk follows.
    """
    end = chunk.shape[1] - overlap
    if tail is None:
        return chunk[:, :end], chunk[:, end:]
    weight = jnp.asarray(compute_fade(overlap), chunk.dtype)[:, None, None, None]
    start = chunk[:, :overlap] * weight + tail * (1 - weight)
    return jnp.concatenate([start, chunk[:, overlap:end]], axis=1), chunk[:, end:]


def map_chunks(function: Callable[[jax.Array], Any], chunks: jax.Array) -> Any:
    """Apply ``function`` (``encode`` or ``decode`` of a batch) to every chunk, one at a time.

    Each array that it returns becomes ``[B, n, t', ...]``. One loop, so the memory of one chunk.
    """
    # Chunks first, for the loop: [n, B, chunk, H, W, C].
    found = jax.lax.map(function, jnp.moveaxis(chunks, 1, 0))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), found)


def encode_chunks(
    encode: Callable[[jax.Array], Any], video: jax.Array, chunks: tuple[int, int] | None
) -> Any:
    """Latents of the chunks of clips, one after the other in time.

    Args:
      encode: ``[B, T, H, W, C]`` to latents ``[B, t, ...]``, such as a posterior.
      video: ``[B, T, H, W, C]``; single frames are pictures, coded as they are.
      chunks: ``(frames, overlap_frames)``; None: clips are coded whole.
    """
    if chunks is None or video.shape[1] == 1:
        return encode(video)
    plan = plan_chunks(video.shape[1], overlap=chunks[1], chunk=chunks[0])
    coded = map_chunks(encode, cut_chunks(video, plan))
    # [B, n, t', ...] -> [B, n t', ...]
    return jax.tree.map(lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), coded)
