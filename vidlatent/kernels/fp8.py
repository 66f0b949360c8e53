"""fp8 matrix products, for sampling on devices that run them faster than bfloat16.

Weights are stored as float8_e4m3 with one scale per matrix, half the bytes of bfloat16. Activations
are scaled by their largest absolute value at every call (dynamic per-tensor scaling). Both operands
are written as ``convert(value) * scale``, a pattern that XLA rewrites on GPUs into one cuBLASLt
call that takes the scales; elsewhere the same expression runs as it stands, with the same result.

On those other platforms the scales are multiplied in the product's dtype, bfloat16. A scale is
therefore rounded to bfloat16 before the values are divided by it: otherwise the whole product would
be off by a common factor of up to 0.4 %.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["DTYPE", "Fp8Matrix", "fp8_product", "quantise_fp8"]

DTYPE = jnp.float8_e4m3fn
_LARGEST = float(jnp.finfo(DTYPE).max)


class Fp8Matrix(NamedTuple):
    """``value * scale`` is the matrix.

    Attributes:
      value: fp8, the matrix's shape.
      scale: float32 that bfloat16 holds exactly; a scalar, or one for each entry of the leading
        axes (layers).
    """

    value: jax.Array
    scale: jax.Array


def quantise_fp8(x: jax.Array, axes: tuple[int, ...] | None = None) -> Fp8Matrix:
    """Round ``x`` (any shape) to fp8, with one scale over ``axes`` (None: all).

    The largest value becomes the largest fp8 number, so that nothing overflows.
    """
    h = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(h), axis=axes, keepdims=axes is not None)
    # A matrix of zeros keeps scale 1: 0 / 0 would fill it with NaN.
    scale = jnp.where(largest > 0, largest / _LARGEST, 1.0)
    # reduce_precision, because XLA may remove a cast to bfloat16 and back as excess precision.
    scale = lax.reduce_precision(scale, exponent_bits=8, mantissa_bits=7)
    # A scale that was rounded down can push the largest value out of range, and this fp8 has no
    # infinity: it would become NaN.
    value = jnp.clip(h / scale, -_LARGEST, _LARGEST).astype(DTYPE)
    return Fp8Matrix(value, scale if axes is None else jnp.squeeze(scale, axes))


def fp8_product(x: jax.Array, kernel: Fp8Matrix, dtype: jnp.dtype) -> jax.Array:
    """``x @ kernel`` with ``x`` ``[..., I]`` rounded to fp8 and a kernel ``[I, O]``.

    Returns:
      ``[..., O]`` in ``dtype``; sums are accumulated in higher precision. For sampling only: no
      gradient flows through the rounding.
    """
    rounded = quantise_fp8(lax.stop_gradient(x))
    # Keep this form: XLA finds the fp8 product by the pattern `convert(value) * scale`.
    left = rounded.value.astype(dtype) * rounded.scale.astype(dtype)
    right = kernel.value.astype(dtype) * kernel.scale.astype(dtype)
    return jnp.dot(left, right, preferred_element_type=dtype)
