"""Importer tables: the released Reducio-VAE names, and those of the image VAE it can start from.

The image VAE is published under two namings: its original one and that of Diffusers.

The released files also hold the networks of the loss, which are left out, and fixed sinusoids
(``pos_embed``), which are kept as they are.
"""

from __future__ import annotations

from typing import Any

from vidlatent.weights.rows import layer_rows, norm_rows

__all__ = ["RELEASED", "REDUCIO_TABLE", "SD_VAE_DIFFUSERS_TABLE", "SD_VAE_TABLE"]

_COMMON: dict[str, Any] = {"latent_channels": 16, "width": 128}

# Model fields of the released files; the last one was announced and withdrawn.
RELEASED: dict[str, dict[str, Any]] = {
    "reducio-ft4-fs32-attn23": {**_COMMON, "time_factor": 4, "space_factor": 32},
    "reducio-ft2-fs32-attn23": {**_COMMON, "time_factor": 2, "space_factor": 32},
    "reducio-ft2-fs16-attn23": {**_COMMON, "time_factor": 2, "space_factor": 16},
}


def _block(source: str, target: str, conv: str, point: str) -> tuple[tuple[str, str, str], ...]:
    return (
        *norm_rows(source + "[.](?P<m>norm1|norm2)", target + "/{m}"),
        *layer_rows(source + "[.](?P<m>conv1|conv2)", target + "/{m}", conv),
        *layer_rows(source + "[.]nin_shortcut", target + "/nin_shortcut", point),
    )


def _middle(source: str, target: str, conv: str, point: str) -> tuple[tuple[str, str, str], ...]:
    attention = source + "mid[.]attn_1[.]"
    return (
        *_block(source + "mid[.]block_(?P<n>1|2)", target + "/mid_block_{n}", conv, point),
        *norm_rows(attention + "norm", target + "/mid_attn_1/norm"),
        *layer_rows(attention + "(?P<m>q|k|v|proj_out)", target + "/mid_attn_1/{m}", point),
        *norm_rows(source + "norm_out", target + "/norm_out"),
        *layer_rows(source + "(?P<m>conv_in|conv_out)", target + "/{m}", conv),
    )


def _encoder(source: str, target: str, conv: str, point: str) -> tuple[tuple[str, str, str], ...]:
    level = source + r"down[.](?P<i>\d+)[.]"
    return (
        *_block(level + r"block[.](?P<j>\d+)", target + "/down_{i}_block_{j}", conv, point),
        *layer_rows(level + "downsample[.]conv", target + "/down_{i}_downsample", conv),
        *_middle(source, target, conv, point),
    )


def _fusion(source: str, target: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (source + "pos_embed", target + "/pos_embed", "copy"),
        *norm_rows(source + "norm", target + "/norm"),
        (source + "attn[.](?P<m>to_q|to_k|to_v)[.]weight", target + "/{m}/kernel", "dense"),
        *layer_rows(source + "attn[.]to_out[.]0", target + "/to_out", "dense"),
    )


_UP = r"decoder[.]up[.](?P<i>\d+)[.]"

REDUCIO_TABLE = (
    *_encoder("encoder_3d[.]", "encoder/volume", "conv3d", "pointwise3d"),
    *_encoder("encoder_2d[.]", "encoder/frame", "conv2d", "pointwise2d"),
    *layer_rows("quant_conv", "encoder/quant", "pointwise3d"),
    *layer_rows("post_quant_conv", "decoder/post_quant", "pointwise3d"),
    *_block(
        _UP + r"block_(?P<n>1|2)[.](?P<j>\d+)",
        "decoder/up_{i}_block_{n}_{j}",
        "conv3d",
        "pointwise3d",
    ),
    *layer_rows(_UP + "upsample[.]conv", "decoder/up_{i}_upsample", "conv3d"),
    *_fusion(_UP + "fuse[.]0[.]", "decoder/up_{i}_fuse"),
    *_fusion("decoder[.]mid[.]fuse[.]0[.]", "decoder/mid_fuse"),
    *_middle("decoder[.]", "decoder", "conv3d", "pointwise3d"),
    (r"loss[.].*", "", "drop"),
)

# Stable Diffusion's VAE in its original naming; what ``init_from.from_image`` takes.
SD_VAE_TABLE = (
    *_encoder("encoder[.]", "encoder", "conv2d", "pointwise2d"),
    *_block(_UP + r"block[.](?P<j>\d+)", "decoder/up_{i}_block_{j}", "conv2d", "pointwise2d"),
    *layer_rows(_UP + "upsample[.]conv", "decoder/up_{i}_upsample", "conv2d"),
    *_middle("decoder[.]", "decoder", "conv2d", "pointwise2d"),
    *layer_rows("quant_conv", "encoder/quant", "pointwise2d"),
    *layer_rows("post_quant_conv", "decoder/post_quant", "pointwise2d"),
    (r"loss[.].*", "", "drop"),
)

# The four levels of Stable Diffusion's VAE; Diffusers counts those of the decoder from the deepest.
_LEVELS = 4


def _diffusers_block(source: str, target: str) -> tuple[tuple[str, str, str], ...]:
    return (
        *norm_rows(source + "[.](?P<m>norm1|norm2)", target + "/{m}"),
        *layer_rows(source + "[.](?P<m>conv1|conv2)", target + "/{m}", "conv2d"),
        *layer_rows(source + "[.]conv_shortcut", target + "/nin_shortcut", "pointwise2d"),
    )


def _diffusers_middle(side: str) -> tuple[tuple[str, str, str], ...]:
    source, target = f"{side}[.]mid_block[.]", f"{side}/mid_"
    attention, ours = source + "attentions[.]0[.]", target + "attn_1/"
    # The present names, then those of older files; writing takes the present ones.
    names = (
        *((f"to_{part}", part) for part in "qkv"),
        ("to_out[.]0", "proj_out"),
        *((old, old[0]) for old in ("query", "key", "value")),
        ("proj_attn", "proj_out"),
    )
    return (
        *(
            row
            for i in (0, 1)
            for row in _diffusers_block(f"{source}resnets[.]{i}", f"{target}block_{i + 1}")
        ),
        *norm_rows(attention + "group_norm", ours + "norm"),
        *(
            row
            for theirs, name in names
            for row in layer_rows(attention + theirs, ours + name, "dense")
        ),
        *norm_rows(f"{side}[.]conv_norm_out", f"{side}/norm_out"),
        *layer_rows(f"{side}[.](?P<m>conv_in|conv_out)", side + "/{m}", "conv2d"),
    )


def _diffusers_up(place: int) -> tuple[tuple[str, str, str], ...]:
    source, target = f"decoder[.]up_blocks[.]{place}[.]", f"decoder/up_{_LEVELS - 1 - place}_"
    return (
        *_diffusers_block(source + r"resnets[.](?P<j>\d+)", target + "block_{j}"),
        *layer_rows(source + "upsamplers[.]0[.]conv", target + "upsample", "conv2d"),
    )


_DOWN = r"encoder[.]down_blocks[.](?P<i>\d+)[.]"

# The same in the naming of Diffusers' AutoencoderKL.
SD_VAE_DIFFUSERS_TABLE = (
    *_diffusers_block(_DOWN + r"resnets[.](?P<j>\d+)", "encoder/down_{i}_block_{j}"),
    *layer_rows(_DOWN + "downsamplers[.]0[.]conv", "encoder/down_{i}_downsample", "conv2d"),
    *_diffusers_middle("encoder"),
    *_diffusers_middle("decoder"),
    *(row for place in range(_LEVELS) for row in _diffusers_up(place)),
    *layer_rows("quant_conv", "encoder/quant", "pointwise2d"),
    *layer_rows("post_quant_conv", "decoder/post_quant", "pointwise2d"),
)
