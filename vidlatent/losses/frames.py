"""Image networks over the frames of a clip, a few frames at a time."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.parallel.sharding import constrain

__all__ = ["map_frames"]

# Height and width stay whole on each device: the sizes inside these networks do not divide evenly.
_WHOLE = ("batch", "time", "width", "width", "channel")


def map_frames(
    network: Callable[..., jax.Array], *videos: jax.Array, at_once: int, remat: bool = True
) -> jax.Array:
    """``network`` on every frame, with the memory that ``at_once`` frames of each sample take.

    Slices of frames run one after another. The batch is not sliced, so that it stays sharded. Where
    frames do not divide evenly, slices are made equal and padded with the last frame.

    Args:
      network: images ``[N, H, W, C]``, one array for each video, to ``[N, ...]``.
      videos: ``[B, T, H, W, C]``.
      remat: recompute a slice in the backward pass instead of saving its activations.

    Returns:
      ``[B, T, ...]``; exactly ``network`` on each frame.
    """
    videos = tuple(constrain(video, _WHOLE) for video in videos)
    batch, frames = videos[0].shape[:2]
    # Rounded up twice, so that slices are equal: 9 frames, 4 at once, make 3 slices of 3.
    slices = -(-frames // at_once)
    size = -(-frames // slices)

    def run(parts):
        # [B, size, H, W, C] -> [B size, H, W, C]
        images = [part.reshape(batch * size, *part.shape[2:]) for part in parts]
        y = network(*images)
        return y.reshape(batch, size, *y.shape[1:])

    run = jax.checkpoint(run) if remat else run
    if slices == 1:
        return run(videos)

    def cut(video):
        # [B, T, ...] -> [slices, B, size, ...]
        pads = [(0, 0), (0, slices * size - frames)] + [(0, 0)] * (video.ndim - 2)
        video = jnp.pad(video, pads, mode="edge")
        return jnp.moveaxis(video.reshape(batch, slices, size, *video.shape[2:]), 1, 0)

    # [slices, B, size, ...] -> [B, slices, size, ...]
    y = jnp.moveaxis(lax.map(run, tuple(map(cut, videos))), 0, 1)
    return y.reshape(batch, slices * size, *y.shape[3:])[:, :frames]
