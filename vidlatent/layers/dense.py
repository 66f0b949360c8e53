"""Dense layers of transformers as published generators start them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.kernels.fp8 import Quantised, fp8_product
from vidlatent.parallel.sharding import gathered

__all__ = ["ACTIVATIONS", "Linear", "Mlp", "dense"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "silu": nn.silu,
}
Init = Callable[..., jax.Array]
_xavier = nn.initializers.xavier_uniform()


class Linear(nn.Module):
    """``x W + b``.

    A kernel that comes with a ``kernel_scale`` beside it is in 8 bits (``kernels.fp8``), and the
    product then runs in 8 bits.

    Attributes:
      features: width of the result; or its axes, ``(K, d)``, in which kernel and bias are kept.
      init: of the kernel ``[I, O]``.
    """

    features: int | tuple[int, ...]
    init: Init = _xavier
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., I] -> [..., O]``."""
        axes = self.features if isinstance(self.features, tuple) else (self.features,)
        shape = (x.shape[-1], math.prod(axes))
        x = x.astype(self.dtype)
        kernel = self.param("kernel", lambda key: self.init(key, shape).reshape(shape[0], *axes))
        bias = self.param("bias", nn.initializers.zeros, axes)
        bias = bias.reshape(-1).astype(self.dtype)
        if self.has_variable("params", "kernel_scale"):
            scale = self.get_variable("params", "kernel_scale")
            return fp8_product(x, Quantised(kernel.reshape(shape), scale), self.dtype) + bias
        kernel = kernel.astype(self.dtype)
        if x.ndim > 2:  # tokens; an embedding of time is smaller than the kernel, and is moved
            kernel = gathered(kernel, "/".join((*self.path, "kernel")), x.shape[0])
        # In float32 products are not shortened on accelerators.
        exact = jnp.dtype(self.dtype) == jnp.float32
        precision = lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT
        return jnp.dot(x, kernel.reshape(shape), precision=precision) + bias


def dense(
    features: int | tuple[int, ...], dtype: Any, init: Init = _xavier, **fields: Any
) -> Linear:
    """A dense layer as published generators start it."""
    return Linear(features, init, dtype, **fields)


class Mlp(nn.Module):
    """``fc2(activation(fc1(x)))``.

    Attributes:
      hidden: width between the layers.
      features: width of the result.
      activation: ``'gelu'`` (exact), ``'gelu_tanh'`` or ``'silu'``.
      init: of both kernels.
    """

    hidden: int
    features: int
    activation: str = "gelu_tanh"
    init: Init = _xavier
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., C] -> [..., features]``."""
        h = ACTIVATIONS[self.activation](dense(self.hidden, self.dtype, self.init, name="fc1")(x))
        return dense(self.features, self.dtype, self.init, name="fc2")(h)
