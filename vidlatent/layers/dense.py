"""Dense layers: of transformers' tokens, and of the positions of a convolutional map.

``Linear`` fetches its whole kernel before the product (parameters are split over devices, tokens
over batch and sequence) and multiplies float32 exactly. ``Pointwise`` is a convolution by name and
nature: maps are split by rows, the partitioner places the product, and float32 has the precision
of the convolutions around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.kernels.fp8 import Fp8Matrix, fp8_product
from vidlatent.parallel.sharding import gathered

__all__ = [
    "ACTIVATIONS",
    "GroupedPointwise",
    "Kernel",
    "Linear",
    "Mlp",
    "Pointwise",
    "exact",
    "fan_in",
]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "silu": nn.silu,
}
Init = Callable[..., jax.Array]
_xavier = nn.initializers.xavier_uniform()
fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def exact(dtype: Any) -> lax.Precision:
    """Full products in float32 (accelerators would shorten them), the fast ones in others."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else lax.Precision.DEFAULT


class Linear(nn.Module):
    """``x W + b`` on tokens, as published transformers start it.

    A kernel that comes with a ``kernel_scale`` beside it is stored as fp8 (``kernels.fp8``), and
    the product then runs in fp8. One that comes with a ``lora`` has adapters that are not merged
    into it, since they see their inputs through a dropout (``weights.lora.merge_adapters``).

    Attributes:
      features: width of the result; or its axes, ``(K, d)``, in which kernel and bias are stored.
      init: of the kernel ``[I, O]``.
    """

    features: int | tuple[int, ...]
    dtype: Any = jnp.float32
    init: Init = _xavier
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., I] -> [..., O]``."""
        axes = self.features if isinstance(self.features, tuple) else (self.features,)
        shape = (x.shape[-1], math.prod(axes))
        x = x.astype(self.dtype)
        # Drawn as a matrix, then cut by axes: the split into heads must not change the fans.
        kernel = self.param("kernel", lambda key: self.init(key, shape).reshape(shape[0], *axes))
        if self.has_variable("params", "kernel_scale"):
            scale = self.get_variable("params", "kernel_scale")
            y = fp8_product(x, Fp8Matrix(kernel.reshape(shape), scale), self.dtype)
        else:
            kernel = kernel.astype(self.dtype)
            # A time embedding [B, I] is smaller than the kernel, so there XLA moves it instead.
            if x.ndim > 2:
                kernel = gathered(kernel, "/".join((*self.path, "kernel")), x.shape[0])
            y = jnp.dot(x, kernel.reshape(shape), precision=exact(self.dtype))
        if self.has_variable("params", "lora"):
            y = y + _apply_adapters(x, self.get_variable("params", "lora"))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, axes)
            y = y + bias.reshape(-1).astype(self.dtype)
        return y


def _apply_adapters(x: jax.Array, own: dict[str, jax.Array]) -> jax.Array:
    """``dropout(x) A B``: each value of ``x [..., I]`` is left out by itself, as in PEFT."""
    kept = jax.random.bernoulli(jax.random.wrap_key_data(own["key"]), own["keep"], x.shape)
    x = jnp.where(kept, x / own["keep"].astype(x.dtype), jnp.zeros((), x.dtype))
    a, b = (own[name].astype(x.dtype) for name in ("a", "b"))
    h = jnp.dot(x, a, precision=exact(x.dtype))
    return jnp.dot(h, b.reshape(len(b), -1), precision=exact(x.dtype))


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
        h = ACTIVATIONS[self.activation](Linear(self.hidden, self.dtype, self.init, name="fc1")(x))
        return Linear(self.features, self.dtype, self.init, name="fc2")(h)


class Pointwise(nn.Module):
    """A 1x1x1 convolution: the same matrix at every position; kernel ``[I, O]``."""

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Init = fan_in
    bias_init: Init = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., I] -> [..., features]``."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = jnp.einsum("...i,io->...o", x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


class GroupedPointwise(nn.Module):
    """A grouped 1x1x1 convolution without bias, as one batched product; kernel ``[G, I, I]``.

    Grouped convolutions are slow in every backend at this shape (32 channels a group).
    """

    group: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[..., G I] -> [..., G I]``."""
        groups = x.shape[-1] // self.group
        # Groups count as a batch: the fan of an output is its own group, not all channels.
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=(0,))
        kernel = self.param("kernel", init, (groups, self.group, self.group), jnp.float32)
        parts = x.astype(self.dtype).reshape(*x.shape[:-1], groups, self.group)
        y = jnp.einsum("...gi,gio->...go", parts, kernel.astype(self.dtype))
        return y.reshape(x.shape)


class Kernel(nn.Module):
    """A bare matrix ``[I, O]`` under its own name, for products that join several of them."""

    shape: tuple[int, int]

    @nn.compact
    def __call__(self) -> jax.Array:
        """The matrix, ``[I, O]`` float32."""
        return self.param("kernel", fan_in, self.shape, jnp.float32)
