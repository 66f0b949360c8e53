"""Importer tables: the released IV-VAE names, and the one-branch baseline's (Wan's VAE).

Released checkpoints differ in ``latent_channels`` and ``width``, and in scale and shift: a
generator sees ``scale * (latent - shift)``.
"""

from __future__ import annotations

from vidlatent.weights.rows import layer_rows

__all__ = ["IVVAE_TABLE", "PLAIN_TABLE", "RELEASED"]

_FIELDS = ("latent_channels", "width", "latent_scale", "latent_shift")

# Model fields of the four released files, by file name.
RELEASED: dict[str, dict[str, float]] = {
    name: dict(zip(_FIELDS, values, strict=True))
    for name, values in {
        "ivvae_z4_dim64": (4, 64, 1.3196, 0.1250),
        "ivvae_z8_dim64": (8, 64, 1.0940, -0.0322),
        "ivvae_z16_dim64": (16, 64, 0.9697, -0.1553),
        "ivvae_z16_dim96": (16, 96, 0.7619, -0.0483),
    }.items()
}

_SIDE = r"(?P<side>encoder|decoder)[.]"
_AT = _SIDE + r"(?P<part>downsamples|middle|upsamples)[.](?P<i>\d+)[.]"
_TO = "{side}/{part}_{i}"
_CONV = r"residual[.](?P<j>2|6)"


def _attention(source: str, target: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (source + "norm[.]gamma", target + "/norm/gamma", "scale2d"),
        *layer_rows(source + "(?P<m>to_qkv|proj)", target + "/{m}", "pointwise2d"),
    )


_NORMS = (
    (_AT + r"residual[.](?P<j>0|3)[.]gamma", _TO + "/residual_{j}/gamma", "scale3d"),
    (_SIDE + r"head[.]0[.]gamma", "{side}/head_0/gamma", "scale3d"),
)

_QUANT = (("encoder/quant", "conv1"), ("decoder/post_quant", "conv2"))

IVVAE_TABLE = (
    *_NORMS,
    # KTC units: the two ends and the residual blocks above the lowest resolution.
    *layer_rows(r"encoder[.]conv1[.]conv_2d", "encoder/conv1/conv_2d", "conv2d"),
    *layer_rows(r"encoder[.]conv1[.](?P<m>conv_3d|conv_3d_key)", "encoder/conv1/{m}", "conv3d"),
    *layer_rows(r"decoder[.]head[.]2[.]conv_2d", "decoder/head_2/conv_2d", "conv2d"),
    *layer_rows(r"decoder[.]head[.]2[.](?P<m>conv_3d|conv_3d_key)", "decoder/head_2/{m}", "conv3d"),
    *layer_rows(_AT + _CONV + "[.]conv_2d", _TO + "/residual_{j}/conv_2d", "conv2d"),
    *layer_rows(_AT + _CONV + "[.](?P<m>conv_3d|conv_3d_key)", _TO + "/residual_{j}/{m}", "conv3d"),
    *layer_rows(_AT + r"shortcut[.]conv_2d", _TO + "/shortcut/conv_2d", "pointwise2d"),
    *layer_rows(_AT + r"shortcut[.]conv_3d", _TO + "/shortcut/conv_3d", "pointwise3d"),
    *(
        row
        for target, source in _QUANT
        for row in (
            *layer_rows(source + r"[.]conv_2d", target + "/conv_2d", "pointwise2d"),
            *layer_rows(source + r"[.]conv_3d", target + "/conv_3d", "pointwise3d"),
        )
    ),
    # Two-dimensional convolutions that join both branches.
    *layer_rows(r"decoder[.]conv1[.]conv", "decoder/conv1", "conv2d"),
    *layer_rows(_AT + _CONV + "[.]conv", _TO + "/residual_{j}", "conv2d"),
    *layer_rows(_AT + r"shortcut[.]conv", _TO + "/shortcut", "pointwise2d"),
    *layer_rows(r"encoder[.]head[.]2[.]PAC_conv[.]conv", "encoder/head_2/PAC_conv", "pointwise2d"),
    *layer_rows(r"encoder[.]head[.]2[.]PAC_(?P<d>\d+)[.]conv", "encoder/head_2/PAC_{d}", "conv2d"),
    *layer_rows(r"encoder[.]head[.]2[.]conv", "encoder/head_2", "conv2d"),
    # Attention and resampling, one of each per branch.
    *_attention(_AT + "(?P<a>Attention_2d|Attention_3d)[.]", _TO + "/{a}"),
    *layer_rows(_AT + r"(?P<r>resample_2d|resample_3d)[.]1", _TO + "/{r}", "conv2d"),
    *layer_rows(
        r"encoder[.]downsamples[.](?P<i>\d+)[.]time_conv",
        "encoder/downsamples_{i}/time_conv",
        "conv3d",
    ),
    *layer_rows(
        r"decoder[.]upsamples[.](?P<i>\d+)[.]time_conv",
        "decoder/upsamples_{i}/time_conv",
        "pointwise3d",
    ),
)

PLAIN_TABLE = (
    *_NORMS,
    *layer_rows(_SIDE + "conv1", "{side}/conv1", "conv3d"),
    *layer_rows(_SIDE + r"head[.]2", "{side}/head_2", "conv3d"),
    *layer_rows(_AT + _CONV, _TO + "/residual_{j}", "conv3d"),
    *layer_rows(_AT + "shortcut", _TO + "/shortcut", "pointwise3d"),
    *(row for target, source in _QUANT for row in layer_rows(source, target, "pointwise3d")),
    *_attention(_AT, _TO + "/attention"),
    *layer_rows(_AT + r"resample[.]1", _TO + "/resample", "conv2d"),
    *layer_rows(_AT + "time_conv", _TO + "/time_conv", "conv3d"),
)
