"""Importer table of CogVideoX's transformer under Diffusers' names; fields from its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidlatent.errors import VidlatentError
from vidlatent.weights.rows import Rows, dense_rows, norm_rows

__all__ = ["COGVIDEOX_DIFFUSERS_TABLE", "fields_from_cogvideox"]

_BLOCK, _TO = r"transformer_blocks[.](?P<i>\d+)[.]", "blocks/#{i}/"

COGVIDEOX_DIFFUSERS_TABLE: Rows = (
    ("patch_embed[.]proj[.]weight", "patch_embedding/kernel", "conv2d"),
    ("patch_embed[.]proj[.]bias", "patch_embedding/bias", "copy"),
    *dense_rows("patch_embed[.]text_proj", "text_embedding"),
    *dense_rows("time_embedding[.]linear_1", "time_embedding/fc1"),
    *dense_rows("time_embedding[.]linear_2", "time_embedding/fc2"),
    *dense_rows(_BLOCK + "norm1[.]linear", _TO + "modulation1"),
    *norm_rows(_BLOCK + "norm1[.]norm", _TO + "norm1"),
    *dense_rows(_BLOCK + "norm2[.]linear", _TO + "modulation2"),
    *norm_rows(_BLOCK + "norm2[.]norm", _TO + "norm2"),
    *norm_rows(_BLOCK + "attn1[.]norm_q", _TO + "attn/norm_q"),
    *norm_rows(_BLOCK + "attn1[.]norm_k", _TO + "attn/norm_k"),
    *dense_rows(_BLOCK + "attn1[.]to_q", _TO + "attn/q"),
    *dense_rows(_BLOCK + "attn1[.]to_k", _TO + "attn/k"),
    *dense_rows(_BLOCK + "attn1[.]to_v", _TO + "attn/v"),
    *dense_rows(_BLOCK + "attn1[.]to_out[.]0", _TO + "attn/o"),
    *dense_rows(_BLOCK + "ff[.]net[.]0[.]proj", _TO + "ffn/fc1"),
    *dense_rows(_BLOCK + "ff[.]net[.]2", _TO + "ffn/fc2"),
    *norm_rows("norm_final", "last_norm"),
    *dense_rows("norm_out[.]linear", "head_modulation"),
    *norm_rows("norm_out[.]norm", "head_norm"),
    *dense_rows("proj_out", "head"),
    ("label_embedding[.]tokens", "label_embedding/tokens/embedding", "copy"),  # ours
)

# Diffusers' arguments that only these values of are supported.
_FIXED = {
    "use_rotary_positional_embeddings": True,
    "use_learned_positional_embeddings": False,
    "patch_size_t": None,
    "ofs_embed_dim": None,
    "attention_bias": True,
    "patch_bias": True,
    "norm_elementwise_affine": True,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "activation_fn": "gelu-approximate",
    "timestep_activation_fn": "silu",
}


def fields_from_cogvideox(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``ProMAGDiT`` from the arguments of Diffusers' CogVideoXTransformer3DModel.

    Raises:
      VidlatentError: an argument has a value that this model does not have.
    """
    for key, value in _FIXED.items():
        if arguments.get(key, value) != value:
            raise VidlatentError(
                f"CogVideoXTransformer3DModel with {key}={arguments[key]!r} is not supported."
            )
    if arguments["in_channels"] != arguments["out_channels"]:
        raise VidlatentError(
            f"CogVideoXTransformer3DModel with {arguments['in_channels']} channels in and "
            f"{arguments['out_channels']} out is not supported: use a text-to-video model."
        )
    heads, side = arguments["num_attention_heads"], arguments["patch_size"]
    width = heads * arguments["attention_head_dim"]
    return {
        "latent_channels": arguments["out_channels"],
        "patch": (1, side, side),
        "width": width,
        "depth": arguments["num_layers"],
        "heads": heads,
        # Not among the arguments: always four times the width.
        "hidden": 4 * width,
        "time_dim": arguments["time_embed_dim"],
        "text_dim": arguments["text_embed_dim"],
        "text_length": arguments["max_text_seq_length"],
        # CogVideoX was trained without a text mask.
        "padding": "attended",
        "position_plane": (arguments["sample_height"] // side, arguments["sample_width"] // side),
        "eps": arguments["norm_eps"],
    }
