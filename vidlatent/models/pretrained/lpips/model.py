"""LPIPS v0.1 (Zhang et al. 2018): weighted distance of two images' features, five layers deep."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.layers.dense import exact
from vidlatent.models.pretrained.layers import PlainConv, max_pool
from vidlatent.models.pretrained.registry import Definition
from vidlatent.spec import check_shape

__all__ = ["ALEX", "ALEX_SLICES", "TINY", "TINY_SLICES", "VGG", "VGG_SLICES", "Lpips", "Slice"]

# A convolution: its number among the published network's features, channels, kernel side, stride,
# padding. A slice: side of the 2-strided max pooling before it (0: none), and its convolutions,
# each followed by a ReLU; the last one's output is compared.
Layer = tuple[int, int, int, int, int]
Slice = tuple[int, tuple[Layer, ...]]


def _threes(channels: int, *numbers: int) -> tuple[Layer, ...]:
    return tuple((number, channels, 3, 1, 1) for number in numbers)


VGG_SLICES: tuple[Slice, ...] = (
    (0, _threes(64, 0, 2)),
    (2, _threes(128, 5, 7)),
    (2, _threes(256, 10, 12, 14)),
    (2, _threes(512, 17, 19, 21)),
    (2, _threes(512, 24, 26, 28)),
)
ALEX_SLICES: tuple[Slice, ...] = (
    (0, ((0, 64, 11, 4, 2),)),
    (3, ((3, 192, 5, 1, 2),)),
    (3, _threes(384, 6)),
    (0, _threes(256, 8)),
    (0, _threes(256, 10)),
)
TINY_SLICES: tuple[Slice, ...] = ((0, _threes(8, 0)), (2, _threes(12, 3)), (2, _threes(16, 6)))

# ImageNet's mean and standard deviation for pixels in [-1, 1] (LPIPS's ScalingLayer).
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPS = 1e-10  # as published


class Lpips(nn.Module):
    """LPIPS distance with a convolutional trunk and one non-negative weight per channel.

    Attributes:
      slices: the trunk, cut behind every layer that is compared.
      dtype: of the trunk; the comparison is float32.
    """

    slices: tuple[Slice, ...] = VGG_SLICES
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Distances ``[N]`` float32 of images ``[N, H, W, 3]`` in [-1, 1].

        Raises:
          VidlatentError: other shapes, or images too small for the trunk.
        """
        sizes = check_shape(x, "N H W C", C=3)
        check_shape(y, "N H W C", **sizes)
        # Two passes instead of one over the concatenated batch: concatenation would move samples
        # between devices, and the backward pass would compute gradients for both images.
        trunk = [self._slice(number) for number in range(len(self.slices))]
        pairs = zip(self._features(trunk, x), self._features(trunk, y), strict=True)
        return sum(_Head(name=f"lin{number}")(*pair) for number, pair in enumerate(pairs))

    @nn.nowrap
    def _slice(self, number: int) -> list[PlainConv]:
        return [
            PlainConv(
                channels,
                (1, side, side),
                (1, stride, stride),
                ((0, 0), (pad, pad), (pad, pad)),
                dtype=self.dtype,
                name=f"slice{number + 1}_{index}",
            )
            for index, channels, side, stride, pad in self.slices[number][1]
        ]

    @nn.nowrap
    def _features(self, trunk: list[list[PlainConv]], images: jax.Array) -> Iterator[jax.Array]:
        """Unit features after each slice."""
        h = (images.astype(jnp.float32) - jnp.array(_SHIFT)) / jnp.array(_SCALE)
        for number, ((pool, _), convs) in enumerate(zip(self.slices, trunk, strict=True)):
            if pool:
                h = max_pool(h, (pool, pool), (2, 2))
            for conv in convs:
                h = nn.relu(conv(h))
            if not h.size:
                raise VidlatentError(
                    f"images of {images.shape[1]}x{images.shape[2]} pixels are too small for "
                    f"LPIPS: nothing is left of them at layer {number + 1} of {len(trunk)}."
                )
            yield _unit(h)


class _Head(nn.Module):
    """Weighted squared differences, averaged over positions: ``[N, h, w, C]`` twice to ``[N]``."""

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        # The published weights are non-negative by training, so random ones are, too.
        init = functools.partial(nn.initializers.uniform, 2.0 / x.shape[-1])()
        kernel = self.param("kernel", init, (x.shape[-1], 1), jnp.float32)
        apart = jnp.mean(jnp.square(x - y), axis=(1, 2))
        return jnp.matmul(apart, kernel, precision=exact(jnp.float32))[:, 0]


def _unit(h: jax.Array) -> jax.Array:
    """Features ``[N, h, w, C]`` scaled to length 1 at each position; zeros stay zeros.

    The double ``where`` keeps the gradient finite there: the root has an infinite slope at 0.
    """
    h = h.astype(jnp.float32)
    square = jnp.sum(jnp.square(h), axis=-1, keepdims=True)
    empty = square == 0
    return h / jnp.where(empty, 1.0, jnp.sqrt(jnp.where(empty, 1.0, square)) + _EPS)


_HEADS = "github.com/richzhang/PerceptualSimilarity, lpips/weights/v0.1"
VGG = Definition(
    module=functools.partial(Lpips, VGG_SLICES),
    inputs=((1, 16, 16, 3),) * 2,
    tables=("lpips", "lpips_vgg_torchvision"),
    files=("vgg16-397923af.pth", "vgg.pth"),
    source=f"download.pytorch.org/models and {_HEADS}",
)
ALEX = Definition(
    module=functools.partial(Lpips, ALEX_SLICES),
    inputs=((1, 64, 64, 3),) * 2,
    tables=("lpips", "lpips_alex_torchvision"),
    files=("alexnet-owt-7be5be79.pth", "alex.pth"),
    source=f"download.pytorch.org/models and {_HEADS}",
)
TINY = Definition(
    module=functools.partial(Lpips, TINY_SLICES),
    inputs=((1, 8, 8, 3),) * 2,
    tables=("lpips",),
)
