"""Importer tables: CLIP's encoders by the names of transformers, open_clip and Wan."""

from __future__ import annotations

from vidlatent.weights.rows import Rows, dense_rows, norm_rows

__all__ = [
    "CLIP_OPENCLIP_TABLE",
    "CLIP_TEXT_TRANSFORMERS_TABLE",
    "CLIP_TRANSFORMERS_TABLE",
    "CLIP_WAN_TABLE",
]

_TO = "blocks_{i}/"
_QKV = (_TO + "attn/q", _TO + "attn/k", _TO + "attn/v")


def _transformers_blocks(layer: str) -> Rows:
    return (
        *dense_rows(layer + "self_attn[.](?P<m>q|k|v)_proj", _TO + "attn/{m}"),
        *dense_rows(layer + "self_attn[.]out_proj", _TO + "attn/o"),
        *norm_rows(layer + "layer_norm(?P<n>1|2)", _TO + "norm{n}"),
        *dense_rows(layer + "mlp[.](?P<m>fc1|fc2)", _TO + "mlp/{m}"),
    )


CLIP_TRANSFORMERS_TABLE = (
    ("vision_model[.]embeddings[.]class_embedding", "cls_token", "copy"),
    ("vision_model[.]embeddings[.]patch_embedding[.]weight", "patch_embed/kernel", "conv2d"),
    ("vision_model[.]embeddings[.]position_embedding[.]weight", "pos_embed", "copy"),
    # The misspelling is the published one.
    *norm_rows("vision_model[.]pre_layrnorm", "norm_pre"),
    *_transformers_blocks(r"vision_model[.]encoder[.]layers[.](?P<i>\d+)[.]"),
    *norm_rows("vision_model[.]post_layernorm", "norm_post"),
    ("visual_projection[.]weight", "projection", "dense"),
)

CLIP_TEXT_TRANSFORMERS_TABLE = (
    ("text_model[.]embeddings[.]token_embedding[.]weight", "token_embed", "copy"),
    ("text_model[.]embeddings[.]position_embedding[.]weight", "pos_embed", "copy"),
    *_transformers_blocks(r"text_model[.]encoder[.]layers[.](?P<i>\d+)[.]"),
    *norm_rows("text_model[.]final_layer_norm", "norm"),
    ("text_projection[.]weight", "projection", "dense"),
)

_BLOCK = r"visual[.]transformer[.]resblocks[.](?P<i>\d+)[.]"
CLIP_OPENCLIP_TABLE = (
    ("visual[.]class_embedding", "cls_token", "copy"),
    ("visual[.]conv1[.]weight", "patch_embed/kernel", "conv2d"),
    ("visual[.]positional_embedding", "pos_embed", "copy"),
    *norm_rows("visual[.]ln_pre", "norm_pre"),
    # Query, key and value in one matrix, as torch's attention has them.
    (_BLOCK + "attn[.]in_proj_weight", tuple(f"{end}/kernel" for end in _QKV), "dense"),
    (_BLOCK + "attn[.]in_proj_bias", tuple(f"{end}/bias" for end in _QKV), "copy"),
    *dense_rows(_BLOCK + "attn[.]out_proj", _TO + "attn/o"),
    *norm_rows(_BLOCK + "ln_(?P<n>1|2)", _TO + "norm{n}"),
    *dense_rows(_BLOCK + "mlp[.]c_fc", _TO + "mlp/fc1"),
    *dense_rows(_BLOCK + "mlp[.]c_proj", _TO + "mlp/fc2"),
    *norm_rows("visual[.]ln_post", "norm_post"),
    ("visual[.]proj", "projection", "copy"),
)

_WAN = r"visual[.]transformer[.](?P<i>\d+)[.]"
CLIP_WAN_TABLE = (
    ("visual[.]cls_embedding", "cls_token", "copy"),
    ("visual[.]patch_embedding[.]weight", "patch_embed/kernel", "conv2d"),
    ("visual[.]pos_embedding", "pos_embed", "copy"),
    *norm_rows("visual[.]pre_norm", "norm_pre"),
    *dense_rows(_WAN + "attn[.]to_qkv", _QKV),
    *dense_rows(_WAN + "attn[.]proj", _TO + "attn/o"),
    *norm_rows(_WAN + "norm(?P<n>1|2)", _TO + "norm{n}"),
    *dense_rows(_WAN + "mlp[.]0", _TO + "mlp/fc1"),
    *dense_rows(_WAN + "mlp[.]2", _TO + "mlp/fc2"),
    *norm_rows("visual[.]post_norm", "norm_post"),
    ("visual[.]head", "projection", "copy"),
)
