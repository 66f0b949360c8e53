"""Image networks over the frames of a clip, a few frames at a time."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.parallel.sharding import constrain

__all__ = ["map_frames"]

# No axis of an image is split: the sizes inside these networks do not divide.
_WHOLE = ("batch", "time", "width", "width", "channel")


def map_frames(
    network: Callable[..., jax.Array], *videos: jax.Array, at_once: int, remat: bool = True
) -> jax.Array:
    """``network`` on every frame, with the memory of ``at_once`` frames of each sample.

    Slices run one after another; the batch stays whole, so that it keeps its place on a mesh. Where
    the frames do not divide, the slices are made equal and the last frame is repeated.

    Args:
      network: images ``[N, H, W, C]``, one array for each video, to ``[N, ...]``.
      videos: ``[B, T, H, W, C]``.
      remat: compute a slice again for its gradient instead of keeping what happened inside.

    Returns:
      ``[B, T, ...]``; exactly ``network`` on each frame.
    """
    videos = tuple(constrain(video, _WHOLE) for video in videos)
    batch, frames = videos[0].shape[:2]
    slices = -(-frames // at_once)
    size = -(-frames // slices)

    def run(parts):
        images = [part.reshape(batch * size, *part.shape[2:]) for part in parts]
        y = network(*images)
        return y.reshape(batch, size, *y.shape[1:])

    run = jax.checkpoint(run) if remat else run
    if slices == 1:
        return run(videos)

    def cut(video):
        pads = [(0, 0), (0, slices * size - frames)] + [(0, 0)] * (video.ndim - 2)
        video = jnp.pad(video, pads, mode="edge")
        return jnp.moveaxis(video.reshape(batch, slices, size, *video.shape[2:]), 1, 0)

    y = jnp.moveaxis(lax.map(run, tuple(map(cut, videos))), 0, 1)
    return y.reshape(batch, slices * size, *y.shape[3:])[:, :frames]
