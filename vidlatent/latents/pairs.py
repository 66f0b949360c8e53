"""A clip at full and at half size, in one latent space (FSVideo 2.4.1).

The upsampler learns to go from one to the other, the refiner is given both. Sets store the pair,
training from videos makes it, and the cascade makes it of a picture: all by this one function.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.latents.pixels import from_pixels, to_pixels
from vidlatent.spec import LatentSpec

__all__ = ["LOW", "check_halves", "halve_pixels"]

# Name of the small latent in records and batches, beside 'latent'.
LOW = "latent_low"


@jax.jit
def halve_pixels(video: Any) -> jax.Array:
    """uint8 ``[B, T, H, W, 3] -> [B, T, H / 2, W / 2, 3]``, bicubic with antialiasing.

    Rounded to uint8, as a small clip that is read from a file would be.
    """
    batch, frames, height, width, channels = video.shape
    half = (batch, frames, height // 2, width // 2, channels)
    return to_pixels(jax.image.resize(from_pixels(jnp.asarray(video)), half, "cubic"))


def check_halves(spec: LatentSpec, sizes: Iterable[tuple[int, int, int]], key: str) -> None:
    """Raise ``VidlatentError`` if half of a size (frames, height, width) is not the tokenizer's.

    ``key`` is the config key that asks for pairs, for the error.
    """
    for frames, height, width in sizes:
        if height % (2 * spec.h) or width % (2 * spec.w):
            near = [
                max(1, round(side / (2 * part))) * 2 * part
                for side, part in ((height, spec.h), (width, spec.w))
            ]
            raise VidlatentError(
                f"{key} asks for clips at half their size, but {frames}x{height}x{width} of "
                f"config.data.buckets halves to {height / 2:g}x{width / 2:g}, which {spec.name} "
                f"({spec.h}x{spec.w} pixels a latent) cannot code: use "
                f"{frames}x{near[0]}x{near[1]}."
            )
