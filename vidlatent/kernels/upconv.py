"""Nearest doubling followed by a 3x3 convolution, without the doubled tensor.

After nearest-neighbour doubling, the three taps of an output pixel read only two different input
pixels. So each of the two phases of an axis is a two-tap convolution of the small input: an even
pixel 2i reads (i-1, i) with (w0, w1 + w2), an odd one reads (i, i+1) with (w0 + w1, w2). In space
that is 12 products instead of 27 for a 3x3x3 kernel, and the doubled tensor never exists.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

__all__ = ["EVEN", "ODD", "fold_taps", "interleave", "subpixel_conv"]

# Two-tap kernels from three-tap ones, as [two, three] matrices.
EVEN = ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0))
ODD = ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def fold_taps(kernel: jax.Array, phase: tuple[tuple[float, ...], ...], axis: int) -> jax.Array:
    """Sum the three taps ``[..., 3, ...]`` along ``axis`` into the two of ``EVEN`` or ``ODD``."""
    matrix = jnp.asarray(phase, kernel.dtype)
    # tensordot puts the new axis of two taps first.
    return jnp.moveaxis(jnp.tensordot(matrix, kernel, axes=(1, axis)), 0, axis)


def interleave(even: jax.Array, odd: jax.Array, axis: int) -> jax.Array:
    """Alternate two arrays of one shape along ``axis``: even, odd, even, ..."""
    # [..., n, 2, ...]: the new axis stands right after the old one, so it varies faster.
    y = jnp.stack([even, odd], axis=axis + 1)
    shape = list(even.shape)
    shape[axis] *= 2
    return y.reshape(shape)


def subpixel_conv(
    conv: Callable[[jax.Array, tuple[tuple[int, int], tuple[int, int]]], jax.Array],
    kernel: jax.Array,
) -> jax.Array:
    """Double H and W by nearest repetition and convolve with ``kernel``, phase by phase.

    Args:
      conv: ``conv(kernel, ((top, bottom), (left, right)))`` convolves the small input with a
        two-tap kernel and zero padding, stride 1.
      kernel: ``[kt, 3, 3, I, O]``.

    Returns:
      ``[B, T, 2H, 2W, O]``.
    """
    rows = []
    # An even pixel reads one neighbour before it, an odd one after it: zeros on that side only.
    for phase_h, pad_h in ((EVEN, (1, 0)), (ODD, (0, 1))):
        part = fold_taps(kernel, phase_h, 1)
        pixels = [
            conv(fold_taps(part, phase_w, 2), (pad_h, pad_w))
            for phase_w, pad_w in ((EVEN, (1, 0)), (ODD, (0, 1)))
        ]
        rows.append(interleave(*pixels, axis=3))
    return interleave(*rows, axis=2)
