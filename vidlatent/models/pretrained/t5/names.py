"""Importer tables: T5 and UMT5 by transformers' names, UMT5 as Wan ships it."""

from __future__ import annotations

__all__ = ["T5_TRANSFORMERS_TABLE", "UMT5_WAN_TABLE"]

_TO = "blocks_{i}/"
_BLOCK = r"encoder[.]block[.](?P<i>\d+)[.]layer[.]"
_ATTENTION = _BLOCK + "0[.]SelfAttention[.]"
_FEED = _BLOCK + "1[.]DenseReluDense[.]"

# T5's files have the position bias in layer 0 alone, UMT5's in each. The token table is written
# once or twice (tied); a whole model's decoder and head are not ours.
T5_TRANSFORMERS_TABLE = (
    ("shared[.]weight", "embedding", "copy"),
    ("encoder[.]embed_tokens[.]weight", "embedding", "copy"),
    (_ATTENTION + "(?P<m>q|k|v|o)[.]weight", _TO + "{m}/kernel", "dense"),
    (_ATTENTION + "relative_attention_bias[.]weight", _TO + "relative_bias", "copy"),
    (_BLOCK + "0[.]layer_norm[.]weight", _TO + "norm1/scale", "copy"),
    (_FEED + "(?P<m>wi|wi_0|wi_1|wo)[.]weight", _TO + "{m}/kernel", "dense"),
    (_BLOCK + "1[.]layer_norm[.]weight", _TO + "norm2/scale", "copy"),
    ("encoder[.]final_layer_norm[.]weight", "norm/scale", "copy"),
    ("decoder[.].+", "", "drop"),
    ("lm_head[.]weight", "", "drop"),
)

_WAN = r"blocks[.](?P<i>\d+)[.]"

UMT5_WAN_TABLE = (
    ("token_embedding[.]weight", "embedding", "copy"),
    (_WAN + "(?P<n>norm1|norm2)[.]weight", _TO + "{n}/scale", "copy"),
    (_WAN + "attn[.](?P<m>q|k|v|o)[.]weight", _TO + "{m}/kernel", "dense"),
    (_WAN + "ffn[.]gate[.]0[.]weight", _TO + "wi_0/kernel", "dense"),
    (_WAN + "ffn[.]fc1[.]weight", _TO + "wi_1/kernel", "dense"),
    (_WAN + "ffn[.]fc2[.]weight", _TO + "wo/kernel", "dense"),
    (_WAN + "pos_embedding[.]embedding[.]weight", _TO + "relative_bias", "copy"),
    ("norm[.]weight", "norm/scale", "copy"),
)
