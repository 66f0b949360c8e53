"""Importer tables: the released names of Wan's autoencoders, and Diffusers'.

The names of Diffusers count blocks by level where Wan2.1's own count modules, so its tables hold
rows for the released depth: four levels of two residual blocks (three in the decoder).
"""

from __future__ import annotations

from vidlatent.models.tokenizers.ivvae.names import PLAIN_TABLE
from vidlatent.weights.rows import Rows, layer_rows

__all__ = ["WAN21_VAE_DIFFUSERS_TABLE", "WAN22_VAE_DIFFUSERS_TABLE", "WAN_VAE_TABLE"]

_LEVELS, _BLOCKS = 4, 2


def _block(source: str, target: str, names: dict[str, str]) -> Rows:
    """A residual block; ``names``: published name of each layer by ours."""
    return (
        (source + names["residual_0"] + "[.]gamma", target + "/residual_0/gamma", "scale3d"),
        (source + names["residual_3"] + "[.]gamma", target + "/residual_3/gamma", "scale3d"),
        *layer_rows(source + names["residual_2"], target + "/residual_2", "conv3d"),
        *layer_rows(source + names["residual_6"], target + "/residual_6", "conv3d"),
        *layer_rows(source + names["shortcut"], target + "/shortcut", "pointwise3d"),
    )


def _resample(source: str, target: str) -> Rows:
    return (
        *layer_rows(source + r"resample[.]1", target + "/resample", "conv2d"),
        *layer_rows(source + "time_conv", target + "/time_conv", "conv3d"),
    )


_OWN = {
    **{f"residual_{i}": rf"residual[.]{i}" for i in (0, 2, 3, 6)},
    "shortcut": "shortcut",
}


def _nested_rows(part: str, side: str) -> Rows:
    """Wan2.2's own names: levels of modules."""
    source = rf"{side}[.]{part}[.](?P<i>\d+)[.]{part}[.](?P<j>\d+)[.]"
    target = f"{side}/{part}_{{i}}_{{j}}"
    return (*_block(source, target, _OWN), *_resample(source, target))


# The published names of both: those of Wan2.1 are the one-branch network's of the IV-VAE family.
WAN_VAE_TABLE: Rows = (
    *PLAIN_TABLE,
    *_nested_rows("downsamples", "encoder"),
    *_nested_rows("upsamples", "decoder"),
)

_DIFFUSERS = {
    "residual_0": "norm1",
    "residual_2": "conv1",
    "residual_3": "norm2",
    "residual_6": "conv2",
    "shortcut": "conv_shortcut",
}
_SIDE = "(?P<side>encoder|decoder)[.]"
_COMMON: Rows = (
    *layer_rows(_SIDE + "conv_in", "{side}/conv1", "conv3d"),
    *layer_rows(_SIDE + "conv_out", "{side}/head_2", "conv3d"),
    (_SIDE + r"norm_out[.]gamma", "{side}/head_0/gamma", "scale3d"),
    *layer_rows("quant_conv", "encoder/quant", "pointwise3d"),
    *layer_rows("post_quant_conv", "decoder/post_quant", "pointwise3d"),
    *_block(_SIDE + r"mid_block[.]resnets[.]0[.]", "{side}/middle_0", _DIFFUSERS),
    *_block(_SIDE + r"mid_block[.]resnets[.]1[.]", "{side}/middle_2", _DIFFUSERS),
    (
        _SIDE + r"mid_block[.]attentions[.]0[.]norm[.]gamma",
        "{side}/middle_1/attention/norm/gamma",
        "scale2d",
    ),
    *layer_rows(
        _SIDE + r"mid_block[.]attentions[.]0[.](?P<m>to_qkv|proj)",
        "{side}/middle_1/attention/{m}",
        "pointwise2d",
    ),
)


def _diffusers_21() -> Rows:
    encoder = (
        *_block(r"encoder[.]down_blocks[.](?P<i>\d+)[.]", "encoder/downsamples_{i}", _DIFFUSERS),
        *_resample(r"encoder[.]down_blocks[.](?P<i>\d+)[.]", "encoder/downsamples_{i}"),
    )
    rows: list[tuple[str, str | tuple[str, ...], str]] = [*_COMMON, *encoder]
    deep = _BLOCKS + 1
    for level in range(_LEVELS):
        up, first = rf"decoder[.]up_blocks[.]{level}[.]", level * (deep + 1)
        for block in range(deep):
            source, target = rf"{up}resnets[.]{block}[.]", f"decoder/upsamples_{first + block}"
            rows += _block(source, target, _DIFFUSERS)
        rows += _resample(up + r"upsamplers[.]0[.]", f"decoder/upsamples_{first + deep}")
    return tuple(rows)


def _diffusers_22() -> Rows:
    rows: list[tuple[str, str | tuple[str, ...], str]] = [*_COMMON]
    parts = (
        (r"encoder[.]down_blocks[.](?P<i>\d+)[.]", "encoder/downsamples_{i}_", "down", _BLOCKS),
        (r"decoder[.]up_blocks[.](?P<i>\d+)[.]", "decoder/upsamples_{i}_", "up", _BLOCKS + 1),
    )
    for source, target, way, last in parts:
        rows += _block(source + r"resnets[.](?P<j>\d+)[.]", target + "{j}", _DIFFUSERS)
        rows += _resample(source + f"{way}sampler[.]", f"{target}{last}")
    return tuple(rows)


WAN21_VAE_DIFFUSERS_TABLE = _diffusers_21()
WAN22_VAE_DIFFUSERS_TABLE = _diffusers_22()
