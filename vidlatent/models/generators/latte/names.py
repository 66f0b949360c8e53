"""Importer table of Latte's published weights, whose names are those of DiT."""

from __future__ import annotations

from vidlatent.weights.rows import Rows, dense_rows

__all__ = ["LATTE_TABLE"]

_BLOCK, _TO = r"blocks[.](?P<i>\d+)[.]", "blocks/#{i}/"
# One matrix in the file; the importer cuts it in this order.
_QKV = tuple(f"{_TO}attn/{name}" for name in "qkv")

LATTE_TABLE: Rows = (
    ("x_embedder[.]proj[.]weight", "patch_embedding/kernel", "conv2d"),
    ("x_embedder[.]proj[.]bias", "patch_embedding/bias", "copy"),
    *dense_rows("t_embedder[.]mlp[.]0", "time_embedding/fc1"),
    *dense_rows("t_embedder[.]mlp[.]2", "time_embedding/fc2"),
    ("y_embedder[.]embedding_table[.]weight", "label_embedding/embedding", "copy"),
    (_BLOCK + "attn[.]qkv[.]weight", tuple(name + "/kernel" for name in _QKV), "dense"),
    (_BLOCK + "attn[.]qkv[.]bias", tuple(name + "/bias" for name in _QKV), "copy"),
    *dense_rows(_BLOCK + "attn[.]proj", _TO + "attn/o"),
    *dense_rows(_BLOCK + "mlp[.]fc1", _TO + "mlp/fc1"),
    *dense_rows(_BLOCK + "mlp[.]fc2", _TO + "mlp/fc2"),
    *dense_rows(_BLOCK + "adaLN_modulation[.]1", _TO + "modulation"),
    *dense_rows("final_layer[.]linear", "head/linear"),
    *dense_rows("final_layer[.]adaLN_modulation[.]1", "head/modulation"),
    # Fixed positions.
    ("pos_embed", "", "drop"),
    ("temp_embed", "", "drop"),
)
