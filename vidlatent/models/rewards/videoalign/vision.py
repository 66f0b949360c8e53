"""Qwen2-VL's vision tower (Wang et al. 2024): each pair of frames by itself, then 2x2 merged."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.layers.dense import Mlp, exact
from vidlatent.layers.scan import run_stacked, stack_params
from vidlatent.models.pretrained.vit import ViTBlock, layer_norm
from vidlatent.models.rewards.videoalign.frames import MERGE, PAIR, PATCH
from vidlatent.models.rewards.videoalign.positions import patch_tables

__all__ = ["VisionSizes", "VisionTower"]

_lecun = nn.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True)
class VisionSizes:
    """Of the vision tower; the defaults are Qwen2-VL's.

    Attributes:
      width, depth, heads, hidden: of the transformer.
      eps: of the norms.
    """

    width: int = 1280
    depth: int = 32
    heads: int = 16
    hidden: int = 5120
    eps: float = 1e-6


class VisionTower(nn.Module):
    """Patches to video tokens.

    Attributes:
      sizes: of the transformer.
      features: width of a token, the language model's.
      remat: keep only the states between blocks for the backward pass.
    """

    sizes: VisionSizes
    features: int
    remat: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, patches: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """``[B, t, rows columns, 1176] -> [B, t rows columns / 4, features]``.

        No patch sees another pair of frames, so all pairs are one batch for the blocks.

        Args:
          patches: as ``frames.patchify`` gives them.
          grid: rows and columns of patches in a frame.
        """
        sizes, (batch, pairs, count, _) = self.sizes, patches.shape
        x = self._embed(patches.reshape(batch * pairs, count, -1))
        tables = patch_tables(*grid, sizes.width // sizes.heads)
        # parent=None: not a submodule, but a pure function applied to slices of the stack.
        block = ViTBlock(
            sizes.heads, sizes.hidden, eps=sizes.eps, dtype=self.dtype, quick=True, parent=None
        )
        token = jnp.zeros((1, 1, sizes.width))
        layers = stack_params(
            self, "blocks", lambda key: block.init(key, token)["params"], sizes.depth
        )
        x = run_stacked(
            lambda x, own: block.apply({"params": own}, x, tables=tables),
            x,
            layers,
            remat=self.remat,
        )
        x = layer_norm(sizes.eps, self.dtype, "norm")(x)
        # The patches of a token are neighbours: [B t, N, D] -> [B, t N / 4, 4 D]
        wide = MERGE**2 * sizes.width
        merged = x.reshape(batch, -1, wide)
        return Mlp(wide, self.features, "gelu", _lecun, self.dtype, name="merger")(merged)

    def _embed(self, rows: jax.Array) -> jax.Array:
        """A patch is one product with the published convolution's kernel, which has no bias."""
        shape = (PAIR, PATCH, PATCH, 3, self.sizes.width)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", (0, 1, 2, 3), 4)
        kernel = self.param("patch_embedding", lambda key: {"kernel": init(key, shape)})["kernel"]
        # [2, 14, 14, 3, D] -> [3, 2, 14, 14, D]: the order of a patch's values. Cast first, so
        # that a frozen kernel is kept in the compute dtype (models.frozen).
        kernel = kernel.astype(self.dtype).transpose(3, 0, 1, 2, 4)
        kernel = kernel.reshape(-1, self.sizes.width)
        return jnp.dot(rows.astype(self.dtype), kernel, precision=exact(self.dtype))
