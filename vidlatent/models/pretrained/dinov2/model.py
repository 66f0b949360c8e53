"""DINOv2 (Oquab et al. 2023): the image features that the Video VF loss aligns latents to."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained.layers import PlainConv
from vidlatent.models.pretrained.registry import Definition
from vidlatent.models.pretrained.resize import resize, resize_matrix
from vidlatent.models.pretrained.vit import ViTBlock, layer_norm
from vidlatent.spec import check_shape

__all__ = ["TINY", "VITB14", "VITG14", "VITL14", "VITS14", "Dinov2", "gated_width", "input_size"]

# Mean and standard deviation of ImageNet's pixels, with which DINOv2 was trained.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
# Pixels to which images are resized: 16x16 patches of a square image, whatever the training size.
AREA = 224 * 224


def input_size(height: int, width: int, patch: int, area: int = AREA) -> tuple[int, int]:
    """Height and width in whole patches, near ``area`` pixels and the image's aspect ratio."""
    factor = math.sqrt(area / (height * width)) / patch
    return tuple(max(1, round(size * factor)) * patch for size in (height, width))


def gated_width(hidden: int) -> int:
    """Width of the gated feed-forward layer: two thirds of ``hidden``, rounded up to 8.

    SwiGLU has three matrices instead of two, so two thirds of the width cost the same.
    """
    return (int(hidden * 2 / 3) + 7) // 8 * 8


class Dinov2(nn.Module):
    """DINOv2 without registers.

    Attributes:
      width, depth, heads: of the transformer.
      gated: SwiGLU feed-forward layers (the giant model).
      mlp_ratio: feed-forward width over ``width``, before ``gated`` takes two thirds of it.
      patch: side of a patch in pixels.
      table: side of the learned position table in patches; other grids resample it (bicubic).
      eps: of the layer norms.
      area: see ``input_size``; None for images that are whole patches already.
    """

    width: int = 1024
    depth: int = 24
    heads: int = 16
    gated: bool = False
    mlp_ratio: float = 4.0
    patch: int = 14
    table: int = 37
    eps: float = 1e-6
    area: int | None = AREA
    dtype: Any = jnp.float32

    def __call__(self, images: jax.Array) -> jax.Array:
        """Patch tokens ``[N, h, w, C]`` after the last norm, of images ``[N, H, W, 3]`` in [-1, 1].

        Images are resized (bilinear) to ``area`` and normalised by ImageNet's statistics.
        """
        x = self._preprocess(images)
        # Without the class token, which says nothing about a place.
        return self.encode(x)[:, 1:].reshape(
            len(x), x.shape[1] // self.patch, x.shape[2] // self.patch, self.width
        )

    @nn.nowrap
    def _preprocess(self, images: jax.Array) -> jax.Array:
        sizes = check_shape(images, "N H W C", C=3)
        height, width = sizes["H"], sizes["W"]
        if self.area is not None:
            height, width = input_size(height, width, self.patch, self.area)
        x = resize(images, height, width)
        return ((x + 1) / 2 - jnp.array(_MEAN)) / jnp.array(_STD)

    @nn.compact
    def encode(self, x: jax.Array) -> jax.Array:
        """All tokens ``[N, 1 + h * w, C]``, class token first, of normalised pixels."""
        side = self.patch
        if x.shape[1] % side or x.shape[2] % side:
            raise VidlatentError(
                f"pictures of {x.shape[1]}x{x.shape[2]} pixels are not whole patches of {side}."
            )
        h = PlainConv(
            self.width, (1, side, side), (1, side, side), dtype=self.dtype, name="patch_embed"
        )(x)
        grid = h.shape[1:3]
        first = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width))
        first = jnp.broadcast_to(first, (len(x), 1, self.width)).astype(self.dtype)
        h = jnp.concatenate([first, h.reshape(len(x), -1, self.width)], axis=1)
        count = 1 + self.table**2
        table = self.param("pos_embed", nn.initializers.normal(0.02), (1, count, self.width))
        h = h + positions(table, self.table, grid).astype(self.dtype)
        hidden = int(self.width * self.mlp_ratio)
        for i in range(self.depth):
            h = ViTBlock(
                self.heads,
                gated_width(hidden) if self.gated else hidden,
                self.gated,
                layer_scale=True,
                eps=self.eps,
                dtype=self.dtype,
                name=f"blocks_{i}",
            )(h)
        return layer_norm(self.eps, self.dtype, "norm")(h)


def positions(table: jax.Array, side: int, grid: tuple[int, int]) -> jax.Array:
    """Position table ``[1, 1 + side^2, C]`` resampled for another grid: ``[1, 1 + h * w, C]``.

    The class token's position stays as it is.
    """
    if grid == (side, side):
        return table
    # The class token has a position but no place: [1 + side^2, C] -> [side, side, C]
    square = table[0, 1:].reshape(side, side, -1)
    down, across = (resize_matrix(side, size, "bicubic") for size in grid)
    square = jnp.einsum("hy,wx,yxc->hwc", down, across, square, precision=lax.Precision.HIGHEST)
    return jnp.concatenate([table[:, :1], square.reshape(1, -1, table.shape[-1])], axis=1)


def _definition(letter: str, hub: str, **fields: Any) -> Definition:
    return Definition(
        module=functools.partial(Dinov2, **fields),
        inputs=((1, 14, 14, 3),),
        tables=("dinov2_transformers", "dinov2_transformers_released", "dinov2"),
        files=(f"dinov2_vit{letter}14_pretrain.pth",),
        source=f"dl.fbaipublicfiles.com/dinov2; model.safetensors of facebook/{hub} will do too",
    )


VITS14 = _definition("s", "dinov2-small", width=384, depth=12, heads=6)
VITB14 = _definition("b", "dinov2-base", width=768, depth=12, heads=12)
VITL14 = _definition("l", "dinov2-large", width=1024, depth=24, heads=16)
VITG14 = _definition("g", "dinov2-giant", width=1536, depth=40, heads=24, gated=True)
TINY = Definition(
    module=functools.partial(Dinov2, 16, 2, 2, patch=4, table=5, area=24 * 24),
    inputs=((1, 8, 8, 3),),
    tables=("dinov2_transformers",),
)
