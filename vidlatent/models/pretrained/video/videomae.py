"""VideoMAE V2's giant transformer, fine-tuned on Something-Something: features of motion.

Those of the content-debiased Fréchet video distance (Ge et al. 2024).
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.layers.positions import interleaved_sincos
from vidlatent.models.pretrained.layers import PlainConv
from vidlatent.models.pretrained.registry import Definition
from vidlatent.models.pretrained.resize import resize_matrix
from vidlatent.models.pretrained.vit import ViTBlock, layer_norm, linear
from vidlatent.spec import check_shape

__all__ = ["GIANT_SSV2", "TINY", "VideoMae"]


class VideoMae(nn.Module):
    """VideoMAE's encoder with its classifier.

    Attributes:
      width, depth, heads, hidden: of the transformer.
      patch: side of a token in pixels; a token is two frames long.
      grid: frame pairs, rows and columns of tokens that the positions were made for.
      classes: of the classifier.
    """

    width: int = 1408
    depth: int = 40
    heads: int = 16
    hidden: int = 6144
    patch: int = 14
    grid: tuple[int, int, int] = (8, 16, 16)
    classes: int = 174
    eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, video: jax.Array) -> dict[str, jax.Array]:
        """``features`` ``[B, width]`` and ``logits`` ``[B, classes]``, float32.

        Args:
          video: ``[B, T, H, W, 3]`` in [-1, 1] at 224x224 already (``metrics.fvd``). Two frames
            or more; the last of an odd number is ignored. The positions were made for 16
            frames and are stretched over other numbers.

        Raises:
          VidlatentError: another size of frames, or fewer than two.
        """
        sizes = check_shape(video, "B T H W C", C=3)
        high, wide = (self.patch * side for side in self.grid[1:])
        if (sizes["H"], sizes["W"]) != (high, wide) or sizes["T"] < 2:
            raise VidlatentError(
                f"VideoMAE reads 2 or more frames of {high}x{wide} pixels, not "
                f"{sizes['T']} of {sizes['H']}x{sizes['W']}: resize them first."
            )
        token = (2, self.patch, self.patch)
        h = PlainConv(self.width, token, token, dtype=self.dtype, name="patch_embed")(
            (video.astype(jnp.float32) + 1) / 2
        )
        h = h + self._positions(h.shape[1]).astype(self.dtype)
        # [B, pairs, rows, columns, D] -> [B, N, D]
        h = h.reshape(sizes["B"], -1, self.width)
        for i in range(self.depth):
            h = ViTBlock(
                self.heads,
                self.hidden,
                key_bias=False,
                eps=self.eps,
                dtype=self.dtype,
                name=f"blocks_{i}",
            )(h)
        # There is no class token: the mean over all tokens is classified.
        pooled = jnp.mean(h.astype(jnp.float32), axis=1)
        features = layer_norm(self.eps, jnp.float32, "fc_norm")(pooled)
        logits = linear(self.classes, jnp.float32, "head")(features)
        return {"features": features, "logits": logits}

    def _positions(self, pairs: int) -> jax.Array:
        """``[pairs, rows, columns, width]``."""
        # One sequence through the whole clip, not a table for each axis (VideoMAE).
        table = interleaved_sincos(int(np.prod(self.grid)), self.width)
        table = table.reshape(*self.grid, self.width)
        if pairs == self.grid[0]:
            return jnp.asarray(table)
        # The released code passes a scale factor with 0.1 added, which shifts the samples slightly.
        along = resize_matrix(self.grid[0], pairs, scale=(pairs + 0.1) / self.grid[0])
        return jnp.einsum("ts,shwc->thwc", along, table, precision=lax.Precision.HIGHEST)


GIANT_SSV2 = Definition(
    module=VideoMae,
    inputs=((1, 2, 224, 224, 3),),
    tables=("videomae",),
    files=("vit_g_hybrid_pt_1200e_ssv2_ft.pth",),
    source="huggingface.co/OpenGVLab/InternVideoMAE_models, mae-g",
)
TINY = Definition(
    module=functools.partial(VideoMae, 16, 2, 2, 24, 16, (8, 2, 2), 5),
    inputs=((1, 2, 32, 32, 3),),
    tables=("videomae",),
)
