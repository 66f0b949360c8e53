"""C3D (Tran et al. 2015) fine-tuned on UCF-101: the classifier of the video inception score.

The weights are those released with TGAN2, a copy of the original Caffe model that later papers use
as well.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained.layers import PlainConv, max_pool
from vidlatent.models.pretrained.registry import Definition
from vidlatent.models.pretrained.resize import resize
from vidlatent.models.pretrained.vit import linear
from vidlatent.spec import check_shape

__all__ = ["C3D", "TINY", "UCF101", "with_cropped_mean"]

_SIDE = 112  # pixels a side of its input
# Channels of the convolutions between poolings; the first pooling does not halve time.
_STAGES = (
    (("conv1a", 64),),
    (("conv2a", 128),),
    (("conv3a", 256), ("conv3b", 256)),
    (("conv4a", 512), ("conv4b", 512)),
    (("conv5a", 512), ("conv5b", 512)),
)


class C3D(nn.Module):
    """C3D on 16 frames.

    Attributes:
      classes: of the classifier.
      side: frames are resized to this square.
      hidden: width of the two layers before the classifier.
      thinner: divides the convolutions' widths, for tiny networks in tests.
    """

    classes: int = 101
    side: int = _SIDE
    hidden: int = 4096
    thinner: int = 1
    frames: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, video: jax.Array) -> dict[str, jax.Array]:
        """Features and classes of clips ``[B, 16, H, W, 3]`` in [-1, 1] of any size.

        Returns:
          ``features`` ``[B, hidden]`` (layer fc7), ``logits`` and ``probabilities``
          ``[B, classes]``, float32.

        Raises:
          VidlatentError: another number of frames.
        """
        sizes = check_shape(video, "B T H W C", C=3)
        if sizes["T"] != self.frames:
            raise VidlatentError(f"C3D reads {self.frames} frames at a time, not {sizes['T']}.")
        h = self._subtract_mean(video)
        for number, convolutions in enumerate(_STAGES):
            for name, features in convolutions:
                conv = PlainConv(
                    features // self.thinner,
                    (3, 3, 3),
                    padding=((1, 1),) * 3,
                    dtype=self.dtype,
                    name=name,
                )
                h = nn.relu(conv(h))
            h = _pool(h, time=number > 0)
        # Caffe flattens channels first, so the trained kernel expects them in that order.
        h = jnp.moveaxis(h, -1, 1).reshape(sizes["B"], -1)
        h = nn.relu(linear(self.hidden, self.dtype, "fc6")(h))
        h = nn.relu(linear(self.hidden, self.dtype, "fc7")(h))
        logits = linear(self.classes, self.dtype, "fc8")(h).astype(jnp.float32)
        return {
            "features": h.astype(jnp.float32),
            "logits": logits,
            "probabilities": jax.nn.softmax(logits),
        }

    def _subtract_mean(self, video: jax.Array) -> jax.Array:
        """BGR in 0 to 256, resized, minus the mean of the training clips: ``[B, T, h, w, 3]``."""
        shape = (3, self.frames, self.side, self.side)
        mean = self.param("mean", nn.initializers.constant(128.0), shape, jnp.float32)
        # Channel order, range and aligned corners are those of the code that came with the weights.
        x = resize(video[..., ::-1] * 128.0, self.side, self.side, corners=True) + 128.0
        return x - jnp.moveaxis(mean, 0, -1)


def _pool(x: jax.Array, time: bool) -> jax.Array:
    """2x2(x2) max pooling; an odd last column is a window of its own, as in Caffe."""
    window = (2 if time else 1, 2, 2)
    padding = [(0, -size % side) for size, side in zip(x.shape[1:4], window, strict=True)]
    return max_pool(x, window, window, padding)


def with_cropped_mean(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``tensors`` with the released mean clip ``(3, 16, 128, 171)`` cropped as its code does."""
    mean = tensors["mean"] if "mean" in tensors else None
    if mean is None or mean.shape[-2:] != (128, 171):
        return dict(tensors)
    # For both sides, although the middle of 171 columns lies elsewhere.
    cut = slice(8, 8 + _SIDE)
    return {**tensors, "mean": mean[..., cut, cut]}


UCF101 = Definition(
    module=C3D,
    inputs=((1, 16, _SIDE, _SIDE, 3),),
    tables=("c3d", "c3d_chainer"),
    files=("conv3d_deepnetA_ucf.npz", "mean2.npz"),
    source="github.com/pfnet-research/tgan2",
    prepare=with_cropped_mean,
)
TINY = Definition(
    module=functools.partial(C3D, 5, 20, 12, 16),
    inputs=((1, 16, 20, 20, 3),),
    tables=("c3d",),
)
