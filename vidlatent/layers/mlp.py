"""Dense layers of transformers as published generators start them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["ACTIVATIONS", "Mlp", "dense"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "silu": nn.silu,
}
Init = Callable[..., jax.Array]
_xavier = nn.initializers.xavier_uniform()


def dense(features: int, dtype: Any, init: Init = _xavier, **fields: Any) -> nn.Dense:
    """A dense layer; with ``dtype`` float32 its products are not shortened on accelerators."""
    exact = jnp.dtype(dtype) == jnp.float32
    precision = lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT
    return nn.Dense(features, dtype=dtype, kernel_init=init, precision=precision, **fields)


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
