"""Importer tables of the video networks I3D, C3D and VideoMAE."""

from __future__ import annotations

from vidlatent.weights.rows import Rows, dense_rows, norm_rows

__all__ = ["C3D_CHAINER_TABLE", "C3D_TABLE", "I3D_TABLE", "VIDEOMAE_TABLE"]


def _unit(source: str, target: str) -> Rows:
    """A convolution and its batch norm; the norm counts batches too."""
    norms = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return (
        (source + "conv3d[.]weight", target + "/conv3d/kernel", "conv3d"),
        *((f"{source}bn[.]{old}", f"{target}/bn/{new}", "copy") for old, new in norms.items()),
        (source + "bn[.]num_batches_tracked", "", "drop"),
    )


# The names of piergiaj/pytorch-i3d, which the released FVD weights keep.
I3D_TABLE = (
    *_unit(r"(?P<m>Conv3d_\w+)[.]", "{m}"),
    *_unit(r"(?P<m>Mixed_\w+)[.](?P<b>b\w+)[.]", "{m}/{b}"),
    ("logits[.]conv3d[.]weight", "logits/conv3d/kernel", "conv3d"),
    ("logits[.]conv3d[.]bias", "logits/conv3d/bias", "copy"),
)


def _c3d(weight: str, bias: str) -> Rows:
    conv, full = r"(?P<m>conv\d\w)", r"(?P<m>fc\d)"
    return (
        (conv + weight, "{m}/kernel", "conv3d"),
        (conv + bias, "{m}/bias", "copy"),
        (full + weight, "{m}/kernel", "dense"),
        (full + bias, "{m}/bias", "copy"),
        ("mean", "mean", "copy"),
    )


C3D_TABLE = _c3d("[.]weight", "[.]bias")
C3D_CHAINER_TABLE = _c3d("/W", "/b")

_BLOCK, _TO = r"blocks[.](?P<i>\d+)[.]", "blocks_{i}/"
VIDEOMAE_TABLE = (
    ("patch_embed[.]proj[.]weight", "patch_embed/kernel", "conv3d"),
    ("patch_embed[.]proj[.]bias", "patch_embed/bias", "copy"),
    *norm_rows(_BLOCK + "(?P<n>norm1|norm2)", _TO + "{n}"),
    (
        _BLOCK + "attn[.]qkv[.]weight",
        tuple(f"{_TO}attn/{name}/kernel" for name in "qkv"),
        "dense",
    ),
    # Keys have no bias, so the others' stand apart from the packed kernel.
    (_BLOCK + "attn[.](?P<m>q|v)_bias", _TO + "attn/{m}/bias", "copy"),
    *dense_rows(_BLOCK + "attn[.]proj", _TO + "attn/o"),
    *dense_rows(_BLOCK + "mlp[.](?P<m>fc1|fc2)", _TO + "mlp/{m}"),
    *norm_rows("fc_norm", "fc_norm"),
    *dense_rows("head", "head"),
)
