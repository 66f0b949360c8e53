"""Video features attend to the content frame's features (Reducio, fusion block)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.kernels.attention import attention
from vidlatent.layers.positions import interleaved_sincos
from vidlatent.models.tokenizers.reducio.blocks import (
    Dense,
    into_windows,
    out_of_windows,
)

__all__ = ["Fusion"]

HEAD_DIM = 64
# PyTorch's default; Flax's would be 1e-6.
LAYER_EPS = 1e-5


class Fusion(nn.Module):
    """``x' + Wo attend(Wq n(x'), Wk f, Wv f) + b`` with ``x' = x + sinusoid(t)``.

    The sinusoid stays in the residual. The content features ``f`` are neither normalised nor given
    positions.

    Attributes:
      frames: temporal length, which the stored sinusoid fixes.
      window: sides (rows, columns) of the windows that larger content maps are cut into; zeros:
        never. Zeros fill the last ones and take part, as in the released code.
      scale: of the output projection's initial weights.
    """

    frames: int
    window: tuple[int, int] = (128, 128)
    scale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, content: jax.Array) -> jax.Array:
        """``[B, T, H, W, D]`` and ``[B, Hc, Wc, Dc]`` -> ``[B, T, H, W, D]``."""
        width = x.shape[-1]
        if x.shape[1] != self.frames:
            raise VidlatentError(
                f"the fusion with the content frame is made for {self.frames} frames at this "
                f"level, not {x.shape[1]}: change config.model.frames."
            )
        table = self.param("pos_embed", self._positions, width)
        # Stored with the weights, as in the released files, but never trained.
        places = jax.lax.stop_gradient(table).reshape(1, self.frames, 1, 1, width)
        x = (x + places).astype(self.dtype)
        norm = nn.LayerNorm(LAYER_EPS, dtype=self.dtype, use_fast_variance=False, name="norm")
        # As released: heads of 64, and one such head where the width is smaller.
        inner = HEAD_DIM * max(1, width // HEAD_DIM)
        q = Dense(inner, False, dtype=self.dtype, name="to_q")(norm(x))
        # The content map gets a time axis of one frame, which windows expect.
        k, v = (
            Dense(inner, False, dtype=self.dtype, name=name)(content[:, None])
            for name in ("to_k", "to_v")
        )
        out = self._attend(q, k, v).astype(self.dtype)
        return x + Dense(width, True, self.scale, self.dtype, name="to_out")(out)

    def _positions(self, key: jax.Array, width: int) -> jax.Array:
        """``[1, T, 1, D]``: the released files store it among the weights."""
        return jnp.asarray(interleaved_sincos(self.frames, width)[None, :, None])

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        size, most = q.shape[2:4], self.window[0] * self.window[1]
        # As released, windows need both a larger content map and enough queries.
        if not most or k.shape[2] * k.shape[3] <= most or size[0] * size[1] < most:
            return _softmax(q, k, v)
        sides = zip(self.window, size, k.shape[2:4], strict=True)
        # Query windows are scaled like the video's map, so that both cuts give the same grid.
        q, grid = into_windows(q, tuple(-(-w * n // m) for w, n, m in sides))
        (k, keys), (v, _) = (into_windows(part, self.window) for part in (k, v))
        if keys != grid:
            raise VidlatentError(
                f"windowed fusion cuts the content into {keys} windows but the video features into "
                f"{grid}: choose a size whose maps divide alike, raise config.model.fuse_window, "
                "or decode in tiles."
            )
        return out_of_windows(_softmax(q, k, v), grid)[:, :, : size[0], : size[1]]


def _softmax(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    def heads(x):
        return x.reshape(x.shape[0], -1, x.shape[-1] // HEAD_DIM, HEAD_DIM)

    return attention(heads(q), heads(k), heads(v), implementation="xla").reshape(q.shape)
