"""Importer tables: DINOv2 as its authors save it, and two generations of transformers' names."""

from __future__ import annotations

from vidlatent.weights.rows import Rows, dense_rows, norm_rows

__all__ = ["DINOV2_TABLE", "DINOV2_TRANSFORMERS_RELEASED_TABLE", "DINOV2_TRANSFORMERS_TABLE"]

_TO = "blocks_{i}/"
_QKV = (_TO + "attn/q", _TO + "attn/k", _TO + "attn/v")
_GATED = (_TO + "mlp/gate", _TO + "mlp/up")


def _table(ends: tuple[str, str, str, str], block: str, scales: str, layers: Rows) -> Rows:
    """Rows common to all namings; the mask token served training alone."""
    first, table, patches, last = ends
    return (
        (first + "cls_token", "cls_token", "copy"),
        (first + "mask_token", "", "drop"),
        (table, "pos_embed", "copy"),
        (patches + "[.]weight", "patch_embed/kernel", "conv2d"),
        (patches + "[.]bias", "patch_embed/bias", "copy"),
        *norm_rows(block + "(?P<n>norm1|norm2)", _TO + "{n}"),
        (block + scales, _TO + "scale{n}", "copy"),
        *dense_rows(block + "mlp[.](?P<m>fc1|fc2)", _TO + "mlp/{m}"),
        *layers,
        *norm_rows(last, "norm"),
    )


_BLOCK = r"blocks[.](?P<i>\d+)[.]"
DINOV2_TABLE = _table(
    ("", "pos_embed", "patch_embed[.]proj", "norm"),
    _BLOCK,
    r"ls(?P<n>1|2)[.]gamma",
    (
        # Matrices in one: query, key and value here; gate and then up in w12.
        *dense_rows(_BLOCK + "attn[.]qkv", _QKV),
        *dense_rows(_BLOCK + "attn[.]proj", _TO + "attn/o"),
        *dense_rows(_BLOCK + "mlp[.]w12", _GATED),
        *dense_rows(_BLOCK + "mlp[.]w3", _TO + "mlp/down"),
    ),
)

_LAYER = r"encoder[.]layer[.](?P<i>\d+)[.]"
_ENDS = (
    "embeddings[.]",
    "embeddings[.]position_embeddings",
    "embeddings[.]patch_embeddings[.]projection",
    "layernorm",
)
_LAMBDA = r"layer_scale(?P<n>1|2)[.]lambda1"

# transformers' current classes.
DINOV2_TRANSFORMERS_TABLE = _table(
    _ENDS,
    _LAYER,
    _LAMBDA,
    (
        *dense_rows(_LAYER + "attention[.](?P<m>q|k|v|o)_proj", _TO + "attn/{m}"),
        *dense_rows(_LAYER + "mlp[.](?P<m>gate|up|down)_proj", _TO + "mlp/{m}"),
    ),
)

# The files on the hub, written by its earlier ones.
_SPLIT = _LAYER + "attention[.]attention[.]"
DINOV2_TRANSFORMERS_RELEASED_TABLE = _table(
    _ENDS,
    _LAYER,
    _LAMBDA,
    (
        *dense_rows(_SPLIT + "query", _TO + "attn/q"),
        *dense_rows(_SPLIT + "key", _TO + "attn/k"),
        *dense_rows(_SPLIT + "value", _TO + "attn/v"),
        *dense_rows(_LAYER + "attention[.]output[.]dense", _TO + "attn/o"),
        *dense_rows(_LAYER + "mlp[.]weights_in", _GATED),
        *dense_rows(_LAYER + "mlp[.]weights_out", _TO + "mlp/down"),
    ),
)
