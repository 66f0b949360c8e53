"""Decoding a random crop exactly, for training on sizes whose whole decoding does not fit.

The inner stages run on the whole latent, so gradients still reach everything before them; the outer
stages run on the crop alone (``reach`` says how far its cut sides spoil it).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.base import Patch
from vidlatent.models.tokenizers.fsvideo.reach import compute_decoder_reach, find_outer_stage

if TYPE_CHECKING:
    from vidlatent.models.tokenizers.fsvideo.model import Autoencoder

__all__ = ["decode_patch", "find_valid_window"]


def find_valid_window(
    start: Any, size: int, whole: int, scale: int, margin: int
) -> tuple[Any, int]:
    """The exact part of a decoded crop along one side: its first pixel in the crop, and its length.

    The length is the same wherever the crop lies, so that ``start`` may be traced. A crop that
    touches the frame's border is exact up to it.

    Args:
      start: first cell of the crop.
      size: cells of the crop.
      whole: cells of the frame.
      scale: pixels per cell.
      margin: pixels spoilt at a cut side.
    """
    if size == whole:
        return 0, scale * size
    # Both sides lose the margin, even if one lies at the frame's border: where the crop starts is
    # traced, and a length must not depend on it.
    length = scale * size - 2 * margin
    if length <= 0:
        raise VidlatentError(
            f"a crop of {size} cells ({scale * size} pixels) has no right pixel: both sides spoil "
            f"{margin}; use more than {2 * margin // scale} cells."
        )
    # A crop at the far border is exact up to it, so the window moves there.
    at_end = jnp.where(start + size == whole, 2 * margin, margin)
    return jnp.where(start == 0, 0, at_end), length


def decode_patch(
    model: Autoencoder,
    params: Any,
    latent: jax.Array,
    start: tuple[Any, Any],
    size: tuple[int, int],
    *,
    frames: int | None = None,
    condition: Any = None,
    rngs: Any = None,
) -> Patch:
    """``Tokenizer.decode_patch`` of FSAE.

    ``frames`` counts from the first latent frame on, because a later start would spoil most of a
    causal decoder's clip.
    """
    stage = find_outer_stage(model)
    run = functools.partial(model.apply, {"params": params}, rngs=rngs)
    x, _ = run(latent, stage, condition, method="decode_inner")
    reach, scale = compute_decoder_reach(model, stage), 2**stage
    plans = [
        find_valid_window(place, cells, whole, scale, reach.space)
        for place, cells, whole in zip(start, size, x.shape[2:4], strict=True)
    ]
    cut = frames is not None and frames < x.shape[1]
    x = x[:, :frames]
    x = lax.dynamic_slice(x, (0, 0, *start, 0), (*x.shape[:2], *size, x.shape[-1]))
    video, _ = run(x, stage, condition, start, method="decode_outer")
    # The last frames of a cut clip were decoded without the later frames that they look at.
    kept = video.shape[1] - (reach.right if cut else 0)
    if kept <= 0:
        raise VidlatentError(
            f"the first {frames} latent frames decode to {video.shape[1]} frames, of which the "
            f"last {reach.right} would need later ones: take more."
        )
    (top, rows), (left, columns) = plans
    video = lax.dynamic_slice(
        video, (0, 0, top, left, 0), (video.shape[0], kept, rows, columns, video.shape[-1])
    )
    return Patch(video, scale * start[0] + top, scale * start[1] + left)
