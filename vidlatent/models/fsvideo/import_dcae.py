"""Importer tables for the Diffusers names of AutoencoderDC, flat and with temporal kernels."""

from __future__ import annotations

__all__ = ["DCAE_TABLE", "FSAE_TABLE"]

_END = r"(?P<side>encoder|decoder)[.](?P<end>conv_in|conv_out)"
_BLOCK = r"(?P<side>encoder|decoder)[.](?P<kind>down|up)_blocks[.](?P<i>\d+)[.](?P<j>\d+)"
_AT = "{side}/{kind}_blocks_{i}_{j}"


def _table(rank: str) -> tuple[tuple[str, str, str], ...]:
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
