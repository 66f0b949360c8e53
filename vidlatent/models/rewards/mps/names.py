"""Importer table: MPS by its released names, CLIP's parts as in transformers."""

from __future__ import annotations

from vidlatent.models.pretrained.clip.names import (
    CLIP_TEXT_TRANSFORMERS_TABLE,
    CLIP_TRANSFORMERS_TABLE,
)
from vidlatent.weights.rows import Rows, below, layer_rows

__all__ = ["MPS_TABLE"]

_CROSS = r"cross_model[.]layers[.](?P<i>\d+)[.]0[.]fn[.]"
_SELF = r"cross_model[.]layers[.](?P<i>\d+)[.]1[.]fn[.]"


def _matrix(source: str, target: str) -> Rows:
    return layer_rows(source, target, "dense", bias=False)


MPS_TABLE = (
    *below("model[.]", "vision/", CLIP_TRANSFORMERS_TABLE),
    *below("model[.]", "text/", CLIP_TEXT_TRANSFORMERS_TABLE),
    ("model[.]logit_scale", "logit_scale", "copy"),
    (_CROSS + "norm[.]weight", "cross_{i}/norm/scale", "copy"),
    *_matrix(_CROSS + "to_q", "cross_{i}/q"),
    *_matrix(_CROSS + "to_kv", "cross_{i}/kv"),
    *_matrix(_CROSS + "to_out", "cross_{i}/o"),
    *_matrix(_CROSS + "ff[.]0", "cross_{i}/up"),
    *_matrix(_CROSS + "ff[.]2", "cross_{i}/down"),
    (_SELF + "norm[.]weight", "own_{i}/norm/scale", "copy"),
    *_matrix(_SELF + "fused_attn_ff_proj", "own_{i}/fused"),
    *_matrix(_SELF + "attn_out", "own_{i}/o"),
    *_matrix(_SELF + "ff_out[.]1", "own_{i}/down"),
    # Buffers: biases that are always 0, wave lengths, and numbers of positions.
    (r"cross_model[.]layers[.](?P<i>\d+)[.](?P<j>0|1)[.]fn[.]norm[.]bias", "", "drop"),
    (_SELF + "rotary_emb[.]inv_freq", "", "drop"),
    ("model[.](?P<t>text|vision)_model[.]embeddings[.]position_ids", "", "drop"),
)
