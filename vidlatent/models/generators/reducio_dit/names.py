"""PixArt-alpha's published names, and Reducio-DiT's start from its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.models.generators.wan.init_from import take_matching
from vidlatent.weights.rows import Rows, dense_rows, norm_rows, packed_rows

__all__ = [
    "PIXART_TABLE",
    "REDUCIO_DIT_TABLE",
    "fields_from_pixart",
    "from_pixart",
    "with_sizes",
]

_BLOCK, _TO = r"blocks[.](?P<i>\d+)[.]", "blocks/#{i}/"


PIXART_TABLE: Rows = (
    ("x_embedder[.]proj[.]weight", "patch_embedding/kernel", "conv2d"),
    ("x_embedder[.]proj[.]bias", "patch_embedding/bias", "copy"),
    *dense_rows("t_embedder[.]mlp[.]0", "time_embedding/fc1"),
    *dense_rows("t_embedder[.]mlp[.]2", "time_embedding/fc2"),
    *dense_rows("t_block[.]1", "time_projection"),
    ("y_embedder[.]y_embedding", "conditions/null_text", "copy"),
    *dense_rows("y_embedder[.]y_proj[.]fc1", "conditions/text_embedding/fc1"),
    *dense_rows("y_embedder[.]y_proj[.]fc2", "conditions/text_embedding/fc2"),
    *dense_rows("csize_embedder[.]mlp[.]0", "extent_embedding/fc1"),
    *dense_rows("csize_embedder[.]mlp[.]2", "extent_embedding/fc2"),
    *dense_rows("ar_embedder[.]mlp[.]0", "ratio_embedding/fc1"),
    *dense_rows("ar_embedder[.]mlp[.]2", "ratio_embedding/fc2"),
    (_BLOCK + "scale_shift_table", _TO + "modulation", "copy"),
    *packed_rows(_BLOCK + "attn[.]qkv", _TO + "attn", "qkv"),
    *dense_rows(_BLOCK + "attn[.]proj", _TO + "attn/o"),
    *dense_rows(_BLOCK + "cross_attn[.]q_linear", _TO + "cross_attn/q"),
    *packed_rows(_BLOCK + "cross_attn[.]kv_linear", _TO + "cross_attn", "kv"),
    *dense_rows(_BLOCK + "cross_attn[.]proj", _TO + "cross_attn/o"),
    *dense_rows(_BLOCK + "mlp[.]fc1", _TO + "mlp/fc1"),
    *dense_rows(_BLOCK + "mlp[.]fc2", _TO + "mlp/fc2"),
    ("final_layer[.]scale_shift_table", "head/modulation", "copy"),
    *dense_rows("final_layer[.]linear", "head/linear"),
    ("pos_embed", "", "drop"),  # fixed positions
)

# What Reducio-DiT has besides, in names of the same manner.
REDUCIO_DIT_TABLE: Rows = (
    *PIXART_TABLE,
    *packed_rows(_BLOCK + "time_attn[.]qkv", _TO + "time_attn", "qkv"),
    *dense_rows(_BLOCK + "time_attn[.]proj", _TO + "time_attn/o"),
    ("label_embedder[.]tokens[.]weight", "conditions/label_embedding/tokens/embedding", "copy"),
    *norm_rows("image_embedder[.]norm", "conditions/image_norm"),
    *dense_rows("image_embedder[.]fc1", "conditions/image_embedding/fc1"),
    *dense_rows("image_embedder[.]fc2", "conditions/image_embedding/fc2"),
    ("image_embedder[.]null", "conditions/null_image", "copy"),
    ("content_embedder[.]proj[.]weight", "conditions/content_embedding/kernel", "conv2d"),
    ("content_embedder[.]proj[.]bias", "conditions/content_embedding/bias", "copy"),
    ("content_embedder[.]null", "conditions/null_content", "copy"),
)


def fields_from_pixart(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``ReducioDiT`` that make it PixArt, from PixArt's constructor arguments.

    ``lewei_scale``, ``mlp_ratio`` and ``pred_sigma`` may be absent, as there; the multi-scale
    variant is ``size_embedding`` True besides.
    """
    known = {"mlp_ratio": 4.0, "lewei_scale": 1.0, "pred_sigma": True, **arguments}
    side, width = known["patch_size"], known["hidden_size"]
    return {
        "latent_channels": known["in_channels"],
        "patch": (1, side, side),
        "width": width,
        "depth": known["depth"],
        "heads": known["num_heads"],
        "hidden": int(width * known["mlp_ratio"]),
        "text_dim": known["caption_channels"],
        "text_length": known["model_max_length"],
        "image_dim": 0,
        "content_channels": 0,
        "position_span": float(known["input_size"] // side),
        "position_scale": known["lewei_scale"],
        "time_positions": False,
        "learned_variance": known["pred_sigma"],
    }


def from_pixart(params: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a Reducio-DiT from PixArt's, as the table ``'pixart'`` reads them.

    Patch embedding and final linear layer read and write other latents, so they are newly
    initialised, as are the parts that PixArt lacks. The patch embedding of content tokens is
    PixArt's, which was trained on such latents.

    Raises:
      VidlatentError: the blocks have other sizes than PixArt's.
    """
    if "blocks" not in params or "cross_attn" not in params["blocks"]:
        raise VidlatentError("these weights are not PixArt's: they lack blocks with cross_attn.")
    # Patch embedding and last layer see latents of other channels or patches.
    start = take_matching(
        params,
        fresh,
        anew=(("patch_embedding/", "head/linear/"),),
        optional=("conditions/", "extent_embedding/", "ratio_embedding/", "blocks/time_attn/"),
    )
    shapes = [
        {name: jnp.shape(leaf) for name, leaf in tree.items()}
        for tree in (params["patch_embedding"], _content(fresh))
    ]
    # Equal for image latents of four channels in patches of 2x2, the default.
    if shapes[0] == shapes[1]:
        start["conditions"]["content_embedding"] = dict(params["patch_embedding"])
    return start


def with_sizes(params: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """A Reducio-DiT that is told the frame's size and ratio (stage 3), from one that is not.

    The embeddings of both are newly initialised; a model that has them already keeps its own.

    Raises:
      VidlatentError: any other weight is absent or has another shape.
    """
    return take_matching(params, fresh, anew=(), optional=("extent_embedding/", "ratio_embedding/"))


def _content(fresh: Mapping[str, Any]) -> Mapping[str, Any]:
    tokens = fresh["conditions"]
    return tokens["content_embedding"] if "content_embedding" in tokens else {}
