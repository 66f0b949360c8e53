"""Latents to patch tokens and back, and the linear layer that embeds a patch."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.layers.dense import exact

__all__ = ["PatchEmbedding", "from_patches", "patch_grid", "to_patches"]

Patch = tuple[int, int, int]
# Xavier's uniform initialisation with the patch as one input vector, as in DiT.
_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", (0, 1, 2, 3), 4)


def patch_grid(extent: tuple[int, ...], patch: Patch) -> tuple[int, int, int]:
    """Tokens in time, rows and columns of a latent of ``extent``.

    Raises:
      VidlatentError: the latent is not cut by whole patches.
    """
    if any(size % part for size, part in zip(extent, patch, strict=True)):
        raise VidlatentError(
            f"a latent of {tuple(extent)} (time, rows, columns) is not cut by patches of "
            f"{tuple(patch)}: choose a size that is a multiple."
        )
    t, h, w = (size // part for size, part in zip(extent, patch, strict=True))
    return t, h, w


def to_patches(latent: jax.Array, patch: Patch) -> jax.Array:
    """``[B, T, H, W, C] -> [B, N, pt ph pw C]``, tokens numbered with columns fastest."""
    (t, h, w), (pt, ph, pw) = patch_grid(latent.shape[1:4], patch), patch
    x = latent.reshape(-1, t, pt, h, ph, w, pw, latent.shape[-1])
    # [B, t, pt, h, ph, w, pw, C] -> [B, t, h, w, pt, ph, pw, C] -> [B, N, P]
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(latent.shape[0], t * h * w, -1)


def from_patches(
    tokens: jax.Array, grid: tuple[int, int, int], patch: Patch, *, channels_first: bool = False
) -> jax.Array:
    """``[B, N, P] -> [B, T, H, W, C]``, the inverse of ``to_patches``.

    Args:
      tokens: features of a patch in the order (pt, ph, pw, C), as ``to_patches`` has them.
      grid: tokens in time, rows and columns.
      patch: latents per token on each axis.
      channels_first: the order is (C, pt, ph, pw), as CogVideoX has it.
    """
    (t, h, w), (pt, ph, pw) = grid, patch
    if channels_first:
        x = tokens.reshape(-1, t, h, w, tokens.shape[-1] // (pt * ph * pw), pt, ph, pw)
        # [B, t, h, w, C, pt, ph, pw] -> [B, t, pt, h, ph, w, pw, C]
        x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)
    else:
        x = tokens.reshape(-1, t, h, w, pt, ph, pw, tokens.shape[-1] // (pt * ph * pw))
        # [B, t, h, w, pt, ph, pw, C] -> [B, t, pt, h, ph, w, pw, C]
        x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(-1, t * pt, h * ph, w * pw, x.shape[-1])


class PatchEmbedding(nn.Module):
    """A vector for each patch; the kernel ``[pt, ph, pw, C, D]`` is a convolution's.

    Attributes:
      patch: latents per token in time, rows and columns.
      width: of the vectors.
    """

    patch: Patch
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, latent: jax.Array) -> jax.Array:
        """``[B, T, H, W, C] -> [B, N, D]``."""
        shape = (*self.patch, latent.shape[-1], self.width)
        kernel = self.param("kernel", _init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        # The published convolution has its kernel's size as its stride: one product per patch.
        x = to_patches(latent, self.patch).astype(self.dtype)
        kernel = kernel.reshape(int(np.prod(shape[:-1])), self.width).astype(self.dtype)
        return jnp.dot(x, kernel, precision=exact(self.dtype)) + bias.astype(self.dtype)
