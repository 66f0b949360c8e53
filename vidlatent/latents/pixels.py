"""Conversion between stored pixels (uint8) and the range that models use ([-1, 1])."""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["from_pixels", "to_pixels"]


def from_pixels(pixels: jax.Array) -> jax.Array:
    """uint8 of any shape -> float32 in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(video: jax.Array) -> jax.Array:
    """Floats in [-1, 1] of any shape -> uint8, clipped and rounded to the nearest level."""
    return jnp.round(jnp.clip((video.astype(jnp.float32) + 1.0) * 127.5, 0.0, 255.0)).astype(
        jnp.uint8
    )
