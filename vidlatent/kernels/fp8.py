"""Products of matrices in 8-bit floating point, for sampling on devices that multiply it faster.

Weights rest as float8_e4m3 with one scale a matrix, half the bytes of bfloat16; activations are
scaled by their own largest value at every call. Both enter the product as ``convert * scale``,
which XLA rewrites on GPUs into one cuBLASLt call with the scales inside; elsewhere the same numbers
come out, slower. There the scales are in the type of the product, so they are rounded to bfloat16
before anything is divided by them: else the product would come out too large or small by up to
0.4 %, all of it alike.
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
    """``value * scale`` is the matrix; ``scale`` float32 with the matrix's leading axes kept.

    A scale has the 8 bits of a bfloat16.
    """

    value: jax.Array
    scale: jax.Array


def quantise_fp8(x: jax.Array, axes: tuple[int, ...] | None = None) -> Fp8Matrix:
    """Round to 8 bits with one scale over ``axes`` (None: all), such that nothing overflows."""
    h = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(h), axis=axes, keepdims=axes is not None)
    scale = jnp.where(largest > 0, largest / _LARGEST, 1.0)
    # Not by two casts, which XLA may take out of a program as excess precision.
    scale = lax.reduce_precision(scale, exponent_bits=8, mantissa_bits=7)
    value = jnp.clip(h / scale, -_LARGEST, _LARGEST).astype(DTYPE)
    return Fp8Matrix(value, scale if axes is None else jnp.squeeze(scale, axes))


def fp8_product(x: jax.Array, kernel: Fp8Matrix, dtype: jnp.dtype) -> jax.Array:
    """``x @ kernel`` with ``x`` ``[..., I]`` rounded to 8 bits, kernel ``[I, O]``.

    Returns:
      ``[..., O]`` in ``dtype``, from sums that the hardware keeps longer than 8 bits. There is no
      gradient to speak of: for sampling only.
    """
    mine = quantise_fp8(lax.stop_gradient(x))
    left = mine.value.astype(dtype) * mine.scale.astype(dtype)
    right = kernel.value.astype(dtype) * kernel.scale.astype(dtype)
    return jnp.dot(left, right, preferred_element_type=dtype)
