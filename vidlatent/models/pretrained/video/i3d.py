"""I3D (Carreira & Zisserman 2017): Inception-v1 over space and time, trained on Kinetics-400.

The features of the original Fréchet video distance.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.layers.norms import FixedBatchNorm
from vidlatent.models.pretrained.layers import PlainConv, max_pool, same_padding
from vidlatent.models.pretrained.registry import Definition
from vidlatent.spec import check_shape

__all__ = ["I3D", "KINETICS400", "TINY"]

Size = tuple[int, int, int]
# Mixed blocks: channels of the branches b0, b1a, b1b, b2a, b2b, b3b; and the poolings between.
_STAGES: tuple[tuple[str, tuple[int, ...] | tuple[Size, Size]], ...] = (
    ("Mixed_3b", (64, 96, 128, 16, 32, 32)),
    ("Mixed_3c", (128, 128, 192, 32, 96, 64)),
    ("pool", ((3, 3, 3), (2, 2, 2))),
    ("Mixed_4b", (192, 96, 208, 16, 48, 64)),
    ("Mixed_4c", (160, 112, 224, 24, 64, 64)),
    ("Mixed_4d", (128, 128, 256, 24, 64, 64)),
    ("Mixed_4e", (112, 144, 288, 32, 64, 64)),
    ("Mixed_4f", (256, 160, 320, 32, 128, 128)),
    ("pool", ((2, 2, 2), (2, 2, 2))),
    ("Mixed_5b", (256, 160, 320, 32, 128, 128)),
    ("Mixed_5c", (384, 192, 384, 48, 128, 128)),
)


class _Unit(nn.Module):
    """Convolution with TensorFlow's padding, batch norm with stored statistics, ReLU."""

    features: int
    kernel: Size = (1, 1, 1)
    strides: Size = (1, 1, 1)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = same_padding(x.shape[1:4], self.kernel, self.strides)
        h = PlainConv(
            self.features,
            self.kernel,
            self.strides,
            padding,
            use_bias=False,
            dtype=self.dtype,
            name="conv3d",
        )(x)
        return nn.relu(FixedBatchNorm(1e-5, dtype=self.dtype, name="bn")(h))


def _pool(x: jax.Array, window: Size, strides: Size) -> jax.Array:
    # The released code pads with zeros: after a ReLU they never exceed a real value either.
    return max_pool(x, window, strides, same_padding(x.shape[1:4], window, strides))


class _Mixed(nn.Module):
    features: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b0, b1a, b1b, b2a, b2b, b3b = self.features

        def unit(name: str, features: int, kernel: Size = (1, 1, 1)) -> _Unit:
            return _Unit(features, kernel, dtype=self.dtype, name=name)

        threes = (3, 3, 3)
        branches = [
            unit("b0", b0)(x),
            unit("b1b", b1b, threes)(unit("b1a", b1a)(x)),
            unit("b2b", b2b, threes)(unit("b2a", b2a)(x)),
            unit("b3b", b3b)(_pool(x, threes, (1, 1, 1))),
        ]
        return jnp.concatenate(branches, axis=-1)


class _Logits(nn.Module):
    """``[B, T, C] -> [B, classes]``: the classifier at each time, averaged."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # [B, T, C] -> [B, T, 1, 1, C], as the weights are of a convolution.
        y = PlainConv(self.classes, (1, 1, 1), name="conv3d")(x[:, :, None, None])
        return jnp.mean(y, axis=(1, 2, 3))


class I3D(nn.Module):
    """I3D on RGB.

    Attributes:
      classes: of the classifier.
      pool: window of the average pooling at the end; it must cover a whole frame.
      thinner: divides every width, for tiny networks in tests.
    """

    classes: int = 400
    pool: Size = (2, 7, 7)
    thinner: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, video: jax.Array) -> dict[str, jax.Array]:
        """``features`` and ``logits`` ``[B, classes]`` float32, the same, of ``[B, T, H, W, 3]``.

        Pixels lie in [-1, 1] at 224x224 already (``metrics.fvd.resize_clip``), at least 9 frames.
        The logits are averaged over time. FVD uses them as features, before the softmax.

        Raises:
          VidlatentError: another size of frames, or too few.
        """
        sizes = check_shape(video, "B T H W C", C=3)
        h = self._unit("Conv3d_1a_7x7", 64, (7, 7, 7), (2, 2, 2))(video)
        h = _pool(h, (1, 3, 3), (1, 2, 2))
        h = self._unit("Conv3d_2b_1x1", 64)(h)
        h = self._unit("Conv3d_2c_3x3", 192, (3, 3, 3))(h)
        h = _pool(h, (1, 3, 3), (1, 2, 2))
        for name, numbers in _STAGES:
            if name == "pool":
                h = _pool(h, *numbers)
            else:
                features = tuple(number // self.thinner for number in numbers)
                h = _Mixed(features, self.dtype, name=name)(h)
        time, *space = h.shape[1:4]
        if tuple(space) != self.pool[1:] or time < self.pool[0]:
            # The network shrinks frames 32 times and time 8 times.
            high, wide = (32 * side for side in self.pool[1:])
            raise VidlatentError(
                f"I3D reads {8 * self.pool[0] - 7} or more frames of {high}x{wide} pixels, not "
                f"{sizes['T']} of {sizes['H']}x{sizes['W']}: resize them first."
            )
        # Average pooling with stride 1: whole frames first, then windows of ``pool[0]`` of them.
        # [B, t, h, w, C] -> [B, t, C] -> [B, windows, C]
        frames = jnp.mean(h.astype(jnp.float32), axis=(2, 3))
        windows = sum(frames[:, i : time - self.pool[0] + 1 + i] for i in range(self.pool[0]))
        logits = _Logits(self.classes, name="logits")(windows / self.pool[0])
        return {"features": logits, "logits": logits}

    def _unit(self, name: str, features: int, *form: Size) -> _Unit:
        return _Unit(features // self.thinner, *form, dtype=self.dtype, name=name)


KINETICS400 = Definition(
    module=I3D,
    inputs=((1, 9, 224, 224, 3),),
    tables=("i3d",),
    files=("i3d_pretrained_400.pt",),
    source="github.com/songweige/TATS, tats/fvd",
)
TINY = Definition(
    module=functools.partial(I3D, 6, (2, 1, 1), 8),
    inputs=((1, 9, 32, 32, 3),),
    tables=("i3d",),
)
