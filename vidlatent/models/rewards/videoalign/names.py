"""Importer table: VideoAlign by Qwen2-VL's names, after ``released.merge_released``."""

from __future__ import annotations

from vidlatent.weights.rows import Rows, dense_rows, norm_rows, packed_rows

__all__ = ["VIDEOALIGN_TABLE"]

_VISUAL, _TO = r"visual[.]blocks[.](?P<i>\d+)[.]", "visual/blocks/#{i}/"
_LAYER, _INTO = r"model[.]layers[.](?P<i>\d+)[.]", "text/blocks/#{i}/"

VIDEOALIGN_TABLE: Rows = (
    ("visual[.]patch_embed[.]proj[.]weight", "visual/patch_embedding/kernel", "conv3d"),
    *norm_rows(_VISUAL + "norm(?P<n>1|2)", _TO + "norm{n}"),
    *packed_rows(_VISUAL + "attn[.]qkv", _TO + "attn", "qkv"),
    *dense_rows(_VISUAL + "attn[.]proj", _TO + "attn/o"),
    *dense_rows(_VISUAL + "mlp[.](?P<m>fc1|fc2)", _TO + "mlp/{m}"),
    *norm_rows("visual[.]merger[.]ln_q", "visual/norm"),
    *dense_rows("visual[.]merger[.]mlp[.]0", "visual/merger/fc1"),
    *dense_rows("visual[.]merger[.]mlp[.]2", "visual/merger/fc2"),
    ("model[.]embed_tokens[.]weight", "text/embedding/kernel", "copy"),
    (_LAYER + "input_layernorm[.]weight", _INTO + "norm1/scale", "copy"),
    (_LAYER + "post_attention_layernorm[.]weight", _INTO + "norm2/scale", "copy"),
    *dense_rows(_LAYER + "self_attn[.](?P<m>q|k|v)_proj", _INTO + "attn/{m}"),
    (_LAYER + "self_attn[.]o_proj[.]weight", _INTO + "attn/o/kernel", "dense"),
    (_LAYER + "mlp[.]gate_proj[.]weight", _INTO + "gate/kernel", "dense"),
    (_LAYER + "mlp[.]up_proj[.]weight", _INTO + "fc1/kernel", "dense"),
    (_LAYER + "mlp[.]down_proj[.]weight", _INTO + "fc2/kernel", "dense"),
    ("model[.]norm[.]weight", "norm/scale", "copy"),
    ("rm_head[.]weight", "head/kernel", "dense"),
    # Token numbers around the prompt, which are no weights (template.load_template).
    ("template[.](?P<part>head|tail)", "", "drop"),
)
