"""Importer tables: Diffusers' and the original names of DC-AE, and FSAE's own (Diffusers' with
temporal kernels); model fields from Diffusers' constructor arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidlatent.errors import VidlatentError
from vidlatent.weights.rows import layer_rows, norm_rows

__all__ = [
    "DCAE_ORIGINAL_SHUFFLE_TABLE",
    "DCAE_ORIGINAL_TABLE",
    "DCAE_TABLE",
    "FSAE_TABLE",
    "fields_from_diffusers",
]

_END = r"(?P<side>encoder|decoder)[.](?P<end>conv_in|conv_out)"
_BLOCK = r"(?P<side>encoder|decoder)[.](?P<kind>down|up)_blocks[.](?P<i>\d+)[.](?P<j>\d+)"
_AT = "{side}/{kind}_blocks_{i}_{j}"


def _statistics(source: str, target: str) -> tuple[tuple[str, str, str], ...]:
    """Rows of what a batch normalisation has beside scale and bias."""
    return (
        (source + r"[.]running_mean", target + "/mean", "copy"),
        (source + r"[.]running_var", target + "/var", "copy"),
        (source + r"[.]num_batches_tracked", "", "drop"),
    )


def _table(rank: str) -> tuple[tuple[str, str, str], ...]:
    # The image model's kernels are 2-D, the video model's 3-D; all names are the same.
    conv, pointwise = f"conv{rank}", f"pointwise{rank}"
    return (
        (_END + "[.]weight", "{side}/{end}/kernel", conv),
        (_END + "[.]bias", "{side}/{end}/bias", "copy"),
        # An empty stage 0 makes the first or last convolution a down or up operation.
        (_END + "[.]conv[.]weight", "{side}/{end}/conv/kernel", conv),
        (_END + "[.]conv[.]bias", "{side}/{end}/conv/bias", "copy"),
        (r"decoder[.]norm_out[.]weight", "decoder/norm_out/scale", "copy"),
        (r"decoder[.]norm_out[.]bias", "decoder/norm_out/bias", "copy"),
        # Residual blocks, down and up operations.
        (_BLOCK + r"[.](?P<m>conv1|conv2|conv)[.]weight", _AT + "/{m}/kernel", conv),
        (_BLOCK + r"[.](?P<m>conv1|conv2|conv)[.]bias", _AT + "/{m}/bias", "copy"),
        (_BLOCK + r"[.]norm[.]weight", _AT + "/norm/scale", "copy"),
        (_BLOCK + r"[.]norm[.]bias", _AT + "/norm/bias", "copy"),
        *_statistics(_BLOCK + r"[.]norm", _AT + "/norm"),
        # EfficientViT: attention (two-dimensional in both models) and gated convolution.
        (
            _BLOCK + r"[.]attn[.](?P<m>to_q|to_k|to_v|to_out)[.]weight",
            _AT + "/attn/{m}/kernel",
            "dense",
        ),
        (
            _BLOCK + r"[.]attn[.]to_qkv_multiscale[.](?P<s>\d+)[.]proj_in[.]weight",
            _AT + "/attn/to_qkv_multiscale_{s}/proj_in/kernel",
            "conv2d",
        ),
        (
            _BLOCK + r"[.]attn[.]to_qkv_multiscale[.](?P<s>\d+)[.]proj_out[.]weight",
            _AT + "/attn/to_qkv_multiscale_{s}/proj_out/kernel",
            "grouped2d",
        ),
        (_BLOCK + r"[.]attn[.]norm_out[.]weight", _AT + "/attn/norm_out/scale", "copy"),
        (_BLOCK + r"[.]attn[.]norm_out[.]bias", _AT + "/attn/norm_out/bias", "copy"),
        (
            _BLOCK + r"[.]conv_out[.](?P<m>conv_inverted|conv_point)[.]weight",
            _AT + "/conv_out/{m}/kernel",
            pointwise,
        ),
        (
            _BLOCK + r"[.]conv_out[.]conv_inverted[.]bias",
            _AT + "/conv_out/conv_inverted/bias",
            "copy",
        ),
        (_BLOCK + r"[.]conv_out[.]conv_depth[.]weight", _AT + "/conv_out/conv_depth/kernel", conv),
        (_BLOCK + r"[.]conv_out[.]conv_depth[.]bias", _AT + "/conv_out/conv_depth/bias", "copy"),
        (_BLOCK + r"[.]conv_out[.]norm[.]weight", _AT + "/conv_out/norm/scale", "copy"),
        (_BLOCK + r"[.]conv_out[.]norm[.]bias", _AT + "/conv_out/norm/bias", "copy"),
    )


_FIRST_FRAME = r"decoder[.]first_frame_attn[.](?P<i>\d+)[.]"
_CROSS_ROWS = (
    (
        _FIRST_FRAME + r"(?P<m>norm_q|norm_kv)[.]weight",
        "decoder/first_frame_attn_{i}/{m}/scale",
        "copy",
    ),
    (
        _FIRST_FRAME + r"(?P<m>to_q|to_k|to_v|to_out)[.]weight",
        "decoder/first_frame_attn_{i}/{m}/kernel",
        "dense",
    ),
)

DCAE_TABLE = _table("2d")
FSAE_TABLE = _table("3d") + _CROSS_ROWS


def _original_blocks(side: str, kind: str, resampling: str) -> tuple:
    source = side + r"[.]stages[.](?P<i>\d+)[.]op_list[.](?P<j>\d+)[.]"
    to = f"{side}/{kind}_blocks_" + "{i}_{j}/"
    mixed, gated = source + "context_module[.]main[.]", source + "local_module[.]main[.]"
    scale = r"(?P<s>\d+)"
    return (
        *layer_rows(source + "main[.]conv1[.]conv", to + "conv1", "conv2d"),
        *layer_rows(source + "main[.]conv2[.]conv", to + "conv2", "conv2d", bias=False),
        *norm_rows(source + "main[.]conv2[.]norm", to + "norm"),
        *_statistics(source + "main[.]conv2[.]norm", to + "norm"),
        *layer_rows(source + resampling, to + "conv", "conv2d"),
        # One projection, cut in three.
        (
            mixed + "qkv[.]conv[.]weight",
            tuple(to + f"attn/{name}/kernel" for name in ("to_q", "to_k", "to_v")),
            "pointwise2d",
        ),
        *layer_rows(
            mixed + f"aggreg[.]{scale}[.]0",
            to + "attn/to_qkv_multiscale_{s}/proj_in",
            "conv2d",
            bias=False,
        ),
        *layer_rows(
            mixed + f"aggreg[.]{scale}[.]1",
            to + "attn/to_qkv_multiscale_{s}/proj_out",
            "grouped2d",
            bias=False,
        ),
        *layer_rows(mixed + "proj[.]conv", to + "attn/to_out", "pointwise2d", bias=False),
        *norm_rows(mixed + "proj[.]norm", to + "attn/norm_out"),
        *layer_rows(gated + "inverted_conv[.]conv", to + "conv_out/conv_inverted", "pointwise2d"),
        *layer_rows(gated + "depth_conv[.]conv", to + "conv_out/conv_depth", "conv2d"),
        *layer_rows(
            gated + "point_conv[.]conv", to + "conv_out/conv_point", "pointwise2d", bias=False
        ),
        *norm_rows(gated + "point_conv[.]norm", to + "conv_out/norm"),
    )


def _original(down: str) -> tuple:
    """The EfficientViT repository's names; a strided convolution has one wrapper less."""
    return (
        *layer_rows("encoder[.]project_in[.]conv[.]conv", "encoder/conv_in/conv", "conv2d"),
        *layer_rows("encoder[.]project_in[.]conv", "encoder/conv_in", "conv2d"),
        *layer_rows(
            "encoder[.]project_out[.]main[.]op_list[.]0[.]conv", "encoder/conv_out", "conv2d"
        ),
        *layer_rows("decoder[.]project_in[.]main[.]conv", "decoder/conv_in", "conv2d"),
        *norm_rows("decoder[.]project_out[.]op_list[.]0", "decoder/norm_out"),
        *layer_rows(
            "decoder[.]project_out[.]op_list[.]2[.]conv[.]conv", "decoder/conv_out/conv", "conv2d"
        ),
        *layer_rows("decoder[.]project_out[.]op_list[.]2[.]conv", "decoder/conv_out", "conv2d"),
        *_original_blocks("encoder", "down", down),
        *_original_blocks("decoder", "up", "main[.]conv[.]conv"),
    )


DCAE_ORIGINAL_TABLE = _original("main[.]conv")
DCAE_ORIGINAL_SHUFFLE_TABLE = _original("main[.]conv[.]conv")

_BLOCKS = {"ResBlock": "res", "EfficientViTBlock": "evit"}
_DOWN = {"conv": "conv", "Conv": "conv", "pixel_unshuffle": "shuffle"}
_UP = {"interpolate": "interpolate", "pixel_shuffle": "shuffle"}
_NORMS = {"rms_norm": "rms", "batch_norm": "batch"}
_ACTIVATIONS = {"silu": "silu", "relu": "relu"}
# Diffusers' arguments that only these values of are supported.
_FIXED = {
    "in_channels": 3,
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
    "decoder_conv_act_fn": "relu",
}


def fields_from_diffusers(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Model fields from the constructor arguments of Diffusers' AutoencoderDC (its config.json).

    Raises:
      VidlatentError: an argument has a value that this model does not have.
    """
    for key, value in _FIXED.items():
        if arguments.get(key, value) != value:
            raise VidlatentError(f"AutoencoderDC with {key}={arguments[key]!r} is not supported.")
    stages = len(arguments["encoder_layers_per_block"])

    def named(key: str, names: Mapping[str, str], default: str = "") -> tuple[str, ...]:
        values = arguments.get(key, default)
        # Diffusers gives a list for the stages, or one name for all.
        values = [values] * stages if isinstance(values, str) else values
        unknown = [value for value in values if value not in names]
        if unknown:
            raise VidlatentError(f"AutoencoderDC with {key}={unknown[0]!r} is not supported.")
        return tuple(names[value] for value in values)

    fields = {
        "latent_channels": arguments["latent_channels"],
        "head_dim": arguments["attention_head_dim"],
        "encoder_widths": tuple(arguments["encoder_block_out_channels"]),
        "decoder_widths": tuple(arguments["decoder_block_out_channels"]),
        "encoder_depths": tuple(arguments["encoder_layers_per_block"]),
        "decoder_depths": tuple(arguments["decoder_layers_per_block"]),
        "block_types": named("encoder_block_types", _BLOCKS),
        "decoder_block_types": named("decoder_block_types", _BLOCKS),
        "multiscales": tuple(map(tuple, arguments["encoder_qkv_multiscales"])),
        "decoder_multiscales": tuple(map(tuple, arguments["decoder_qkv_multiscales"])),
        "down_type": named("downsample_block_type", _DOWN)[0],
        "up_type": named("upsample_block_type", _UP)[0],
        "decoder_norm_types": named("decoder_norm_types", _NORMS, "rms_norm"),
        "decoder_activations": named("decoder_act_fns", _ACTIVATIONS, "silu"),
    }
    if "scaling_factor" in arguments:
        fields["latent_scale"] = float(arguments["scaling_factor"])
    return fields
