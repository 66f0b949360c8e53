"""What a tokenizer's step reconstructs: whole clips, or a random patch if frames are too large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.base import Tokenizer

__all__ = ["decode_random_patch", "make_reconstruct"]

# Loss terms that patches cannot serve.
_WHOLE_CLIPS = ("vf", "equivariance", "scale_equivariance")
# ``(params, video, rngs, key) -> ((reconstruction, posterior), target)``, where the target is the
# part of the video that is reconstructed.
Reconstruct = Callable[[Any, jax.Array, dict, jax.Array], tuple[Any, jax.Array]]


def make_reconstruct(config: ConfigDict, model: Tokenizer) -> Reconstruct:
    """``reconstruct(params, video, rngs, key) -> ((reconstruction, posterior), target)``.

    ``video`` is ``[B, T, H, W, 3]`` in [-1, 1]. Reconstruction and target cover all of it, or only
    a patch if ``config.train.patch_cells`` is set and frames have more pixels than
    ``config.train.patch_above``.

    Raises:
      VidlatentError: patches are requested of a model that cannot decode them exactly.
    """
    cells, above = config.train.patch_cells, config.train.patch_above
    if not cells:
        return _make_whole_clips(model)
    for name in _WHOLE_CLIPS:
        if name in config.loss:
            raise VidlatentError(
                f"config.loss.{name} looks at whole clips and their latents: set "
                f"config.train.patch_cells to 0, or leave {name} out."
            )
    if not model.patch_cell:
        raise VidlatentError(
            f"config.train.patch_cells is {cells}, but only fsae and dcae decode patches: set it "
            "to 0."
        )
    whole = _make_whole_clips(model)
    patch = _make_patches(model, cells, config.train.patch_latents, config.train.patch_encoder)

    def reconstruct(params, video, rngs, key):
        # Shapes are known when tracing, so each bucket compiles only the form that it needs.
        large = video.shape[2] * video.shape[3] > above
        return (patch if large else whole)(params, video, rngs, key)

    return reconstruct


def _make_whole_clips(model: Any) -> Reconstruct:
    def reconstruct(params, video, rngs, key):
        del key
        return model.apply({"params": params}, video, rngs=rngs), video

    return reconstruct


def _make_patches(model: Tokenizer, cells: int, latents: int, encoder: bool) -> Reconstruct:
    """Run the outer decoder stages on a random crop, and compare only the pixels it gets exactly.

    Pixels near the edge of a crop differ from those of a whole decoding, so they are left out. The
    gradient reaches the inner decoder stages through the crop, and the encoder if ``encoder``. In
    time a crop holds the first ``latents`` latent frames (0: all). A crop that starts later would
    have almost no exact frame, because a causal decoder looks back further than clips are long.
    """

    def reconstruct(params, video, rngs, key):
        def run(method):
            return model.apply({"params": params}, video, rngs=rngs, method=method)

        posterior = run("encode")[0]
        condition = run("make_condition")
        if not encoder:
            # Then nothing of the encoder is kept for the backward pass: at 1024 pixels a single
            # tensor of its first stage takes tens of GiB.
            posterior, condition = lax.stop_gradient((posterior, condition))
        region, window = decode_random_patch(
            model, params, posterior.mode(), condition, video, key, cells, latents, rngs
        )
        return (region, posterior), window

    return reconstruct


def decode_random_patch(
    model: Tokenizer,
    params: Any,
    latent: jax.Array,
    condition: Any,
    video: jax.Array,
    key: jax.Array,
    cells: int,
    latents: int = 0,
    rngs: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """A random patch of a latent's decoding, exact in all its pixels, and the same of the clip.

    Args:
      latent: ``[B, t, h, w, c]``; condition: what the decoder reads besides.
      video: the clip ``[B, T, H, W, 3]``.
      key: of the place.
      cells: side of the crop in cells of ``model.patch_cell`` pixels; edges lose a margin.
      latents: latent frames that are decoded, from the first on; 0: all.

    Returns:
      Two of ``[B, T', H', W', 3]``.
    """
    scale = model.patch_cell
    # In cells, so that the crop lies on the grid of the decoder stage where it is made.
    sides = [side // scale for side in video.shape[2:4]]
    size = tuple(min(cells, side) for side in sides)
    start = tuple(
        jax.random.randint(k, (), 0, side - wanted + 1)
        for k, side, wanted in zip(jax.random.split(key), sides, size, strict=True)
    )
    region = model.decode_patch(
        params, latent, start, size, frames=latents or None, condition=condition, rngs=rngs
    )
    # The same pixels of the original: [B, T', H', W', 3] at (top, left), from frame 0.
    window = lax.dynamic_slice(video, (0, 0, region.top, region.left, 0), region.video.shape)
    return region.video, window
