"""CLIP's image encoder (Radford et al. 2021; OpenCLIP): image tokens for generators and rewards."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.layers.dense import exact
from vidlatent.models.pretrained.clip.image import preprocess
from vidlatent.models.pretrained.layers import PlainConv
from vidlatent.models.pretrained.registry import Definition
from vidlatent.models.pretrained.vit import ViTBlock, layer_norm
from vidlatent.registry import did_you_mean

__all__ = ["OUTPUTS", "ClipVision"]

OUTPUTS = (
    *("penultimate", "last", "projected", "patches", "patches_normed", "pooled", "embedding"),
)


class ClipVision(nn.Module):
    """Class token, learned positions, a norm before and one after the blocks.

    Attributes:
      width, depth, heads, hidden: of the transformer.
      patch, side: of a patch and of the square picture, in pixels.
      projection: width of the embedding; 0 where it was left out of the weights.
      quick: ``x * sigmoid(1.702 x)`` (OpenAI's weights); else the exact GELU (OpenCLIP's).
      resizing: how images are resized (``models.pretrained.clip.image.preprocess``).
      output: what is returned by default, see ``__call__``.
    """

    width: int = 1280
    depth: int = 32
    heads: int = 16
    hidden: int = 5120
    patch: int = 14
    side: int = 224
    projection: int = 1024
    quick: bool = False
    resizing: str = "center"
    output: str = "embedding"
    eps: float = 1e-5
    dtype: Any = jnp.float32

    def __call__(self, images: jax.Array, output: str = "") -> jax.Array:
        """Features of images ``[N, H, W, 3]`` in [-1, 1], of any size.

        Args:
          output: one of ``OUTPUTS`` in place of the field ``output``. With ``n`` patches:
            ``'penultimate'`` ``[N, 1 + n, D]`` before the last block, class token first (Wan);
            ``'last'`` the same after it, without the last norm; ``'projected'`` ``[N, 1 + n, P]``
            these, projected (MPS); ``'patches'`` ``[N, n, D]`` of
            these and ``'patches_normed'`` after the norm (Reducio; open_clip used to return the
            first and now returns the second); ``'pooled'`` ``[N, D]`` the normed class token;
            ``'embedding'`` ``[N, P]`` its projection.

        Raises:
          VidlatentError: unknown ``output``, or an embedding of a tower without projection.
        """
        return self.encode(preprocess(images, self.side, self.resizing), output)

    @nn.compact
    def encode(self, x: jax.Array, output: str = "") -> jax.Array:
        """``__call__`` from normalised pixels ``[N, side, side, 3]``."""
        output = self._check_output(output or self.output)
        h = self._embed(x)
        before = h
        for i in range(self.depth):
            # After the loop this is the input of the last block, which Wan reads.
            before = h
            h = ViTBlock(
                self.heads,
                self.hidden,
                eps=self.eps,
                dtype=self.dtype,
                quick=self.quick,
                name=f"blocks_{i}",
            )(h)
        normed = layer_norm(self.eps, self.dtype, "norm_post")(h)
        embedding = projected = None
        if self.projection:
            init = nn.initializers.normal(self.width**-0.5)
            kernel = self.param("projection", init, (self.width, self.projection))
            project = functools.partial(
                jnp.matmul, b=kernel.astype(self.dtype), precision=exact(self.dtype)
            )
            embedding, projected = project(normed[:, 0]), project(h)
        # XLA removes the outputs that are not chosen, and the last block with them.
        return {
            "penultimate": before,
            "last": h,
            "projected": projected,
            "patches": h[:, 1:],
            "patches_normed": normed[:, 1:],
            "pooled": normed[:, 0],
            "embedding": embedding,
        }[output]

    def _embed(self, x: jax.Array) -> jax.Array:
        """Tokens ``[N, 1 + n, D]`` after the first norm."""
        side = self.patch
        if x.shape[1:3] != (self.side, self.side):
            raise VidlatentError(
                f"pictures of {x.shape[1]}x{x.shape[2]} pixels: this tower sees {self.side} square."
            )
        h = PlainConv(
            self.width,
            (1, side, side),
            (1, side, side),
            use_bias=False,
            dtype=self.dtype,
            name="patch_embed",
        )(x)
        normal = nn.initializers.normal(0.02)
        # The class token comes first, then patches row by row: [N, 1 + n, D]
        first = self.param("cls_token", normal, (self.width,)).astype(self.dtype)
        first = jnp.broadcast_to(first, (len(x), 1, self.width))
        count = 1 + (self.side // side) ** 2
        table = self.param("pos_embed", normal, (count, self.width)).astype(self.dtype)
        h = jnp.concatenate([first, h.reshape(len(x), -1, self.width)], axis=1) + table
        return layer_norm(self.eps, self.dtype, "norm_pre")(h)

    def _check_output(self, output: str) -> str:
        if output not in OUTPUTS:
            raise VidlatentError(f"unknown CLIP output {output!r}: {did_you_mean(output, OUTPUTS)}")
        if output in ("embedding", "projected") and not self.projection:
            raise VidlatentError(
                "this CLIP tower has no projection: ask for output 'pooled' or use clip_vith14."
            )
        return output


def _select_image_encoder(
    tensors: Mapping[str, np.ndarray], projection: bool = True
) -> dict[str, np.ndarray]:
    """The image encoder's tensors of a whole CLIP; Wan's have extra axes, which are removed."""
    heads = ("visual_projection.weight", "visual.proj", "visual.head")
    found = {}
    for name, tensor in tensors.items():
        ours = name.startswith(("vision_model.", "visual.", "visual_projection."))
        if not ours or name.endswith("position_ids") or (name in heads and not projection):
            continue
        # Wan's [1, 1, D] -> [D] and [1, 1 + n, D] -> [1 + n, D]
        wans = name in ("visual.cls_embedding", "visual.pos_embedding")
        found[name] = (
            tensor.reshape(tensor.shape[-1 if "cls" in name else -2 :]) if wans else tensor
        )
    # No image encoder in the file: the importer's error will name what it holds.
    return found or dict(tensors)


_TABLES = ("clip_transformers", "clip_openclip", "clip_wan")


def _definition(files: tuple[str, ...], source: str, **fields: Any) -> Definition:
    module = functools.partial(ClipVision, **fields)
    side = module().side
    projected = bool(module().projection)
    return Definition(
        module=module,
        inputs=((1, side, side, 3),),
        tables=_TABLES,
        files=files,
        source=source,
        prepare=functools.partial(_select_image_encoder, projection=projected),
    )


VITH14 = _definition(
    ("open_clip_model.safetensors",),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K on huggingface.co",
    resizing="blurred",
    output="patches_normed",
)
VITH14_WAN = _definition(
    ("models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",),
    "Wan-AI/Wan2.1-I2V-14B-480P on huggingface.co; image_encoder/model.safetensors of its "
    "Diffusers form will do too",
    projection=0,
    resizing="whole",
    output="penultimate",
)
VITL14 = _definition(
    ("model.safetensors",),
    "openai/clip-vit-large-patch14 on huggingface.co",
    width=1024,
    depth=24,
    hidden=4096,
    projection=768,
    quick=True,
)
TINY = _definition(
    (), "", width=16, depth=2, heads=2, hidden=32, patch=4, side=12, projection=8, resizing="whole"
)
