"""Importer tables of the Wan2.1 transformer, original and Diffusers' names; fields from configs.

Both tables know the layer memory's routers besides, as ``router.2.weight`` and so on, and tokens of
class labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidlatent.errors import VidlatentError
from vidlatent.weights.rows import Rows, dense_rows, norm_rows

__all__ = [
    "WAN_DIFFUSERS_TABLE",
    "WAN_TABLE",
    "fields_from_diffusers",
    "fields_from_original",
]

# Parameters before rotary positions: our kernel rotates halves, Wan2.1 neighbouring channels.
_ROTATED = tuple(f"self_attn/{name}" for name in ("q", "k", "norm_q", "norm_k"))


def _table(ends: Mapping[str, str], parts: Mapping[str, str]) -> Rows:
    """Rows from the names of single layers (``ends``) and of the layers of a block (``parts``)."""
    block, to = r"blocks[.](?P<i>\d+)[.]", "blocks/#{i}/"
    rows: list[tuple[str, str, str]] = [
        ("patch_embedding[.]weight", "patch_embedding/kernel", "conv3d"),
        ("patch_embedding[.]bias", "patch_embedding/bias", "copy"),
        (ends["head_modulation"], "head_modulation", "copy"),
        (block + parts["modulation"], to + "modulation", "copy"),
    ]
    for name, source in ends.items():
        if name != "head_modulation":
            rows += (norm_rows if "norm" in name else dense_rows)(source, name)
    for name, source in parts.items():
        # 'halves' permutes the channels once, so that the file's rotation becomes ours.
        rotated = name in _ROTATED
        if name.rpartition("/")[2].startswith("norm_"):  # RMS norms have no bias
            layout = "halves" if rotated else "copy"
            rows.append((block + source + "[.]weight", f"{to}{name}/scale", layout))
        elif rotated:
            rows.append((block + source + "[.]weight", f"{to}{name}/kernel", "halves"))
            rows.append((block + source + "[.]bias", f"{to}{name}/bias", "halves"))
        elif name != "modulation":
            rows += (norm_rows if name == "cross_norm" else dense_rows)(block + source, to + name)
    rows += dense_rows(r"router[.](?P<i>\d+)", "router_{i}")
    rows.append(("label_embedding[.]tokens", "label_embedding/tokens/embedding", "copy"))
    return tuple(rows)


def _attention(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}/{name}": f"{theirs}[.]{source}" for name, source in names.items()}


_OWN = {name: name for name in ("q", "k", "v", "o", "norm_q", "norm_k")}
# The image has keys and values of its own, and shares the queries of the text.
_OWN_IMAGE = {name: name for name in ("k_img", "v_img", "norm_k_img")}
_TO = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out[.]0", "norm_q": "norm_q"}
_TO |= {"norm_k": "norm_k"}
_TO_IMAGE = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}

WAN_TABLE = _table(
    {
        "head_modulation": "head[.]modulation",
        "head": "head[.]head",
        "time_embedding/fc1": "time_embedding[.]0",
        "time_embedding/fc2": "time_embedding[.]2",
        "time_projection": "time_projection[.]1",
        "text_embedding/fc1": "text_embedding[.]0",
        "text_embedding/fc2": "text_embedding[.]2",
        "image_norm1": "img_emb[.]proj[.]0",
        "image_embedding/fc1": "img_emb[.]proj[.]1",
        "image_embedding/fc2": "img_emb[.]proj[.]3",
        "image_norm2": "img_emb[.]proj[.]4",
    },
    {
        "modulation": "modulation",
        "cross_norm": "norm3",
        "ffn/fc1": "ffn[.]0",
        "ffn/fc2": "ffn[.]2",
        **_attention("self_attn", "self_attn", _OWN),
        **_attention("cross_attn", "cross_attn", _OWN | _OWN_IMAGE),
    },
)

_EMBEDDER = "condition_embedder[.]"
WAN_DIFFUSERS_TABLE = _table(
    {
        "head_modulation": "scale_shift_table",
        "head": "proj_out",
        "time_embedding/fc1": _EMBEDDER + "time_embedder[.]linear_1",
        "time_embedding/fc2": _EMBEDDER + "time_embedder[.]linear_2",
        "time_projection": _EMBEDDER + "time_proj",
        "text_embedding/fc1": _EMBEDDER + "text_embedder[.]linear_1",
        "text_embedding/fc2": _EMBEDDER + "text_embedder[.]linear_2",
        "image_norm1": _EMBEDDER + "image_embedder[.]norm1",
        "image_embedding/fc1": _EMBEDDER + "image_embedder[.]ff[.]net[.]0[.]proj",
        "image_embedding/fc2": _EMBEDDER + "image_embedder[.]ff[.]net[.]2",
        "image_norm2": _EMBEDDER + "image_embedder[.]norm2",
    },
    {
        "modulation": "scale_shift_table",
        "cross_norm": "norm2",
        "ffn/fc1": "ffn[.]net[.]0[.]proj",
        "ffn/fc2": "ffn[.]net[.]2",
        **_attention("self_attn", "attn1", _TO),
        **_attention("cross_attn", "attn2", _TO | _TO_IMAGE),
    },
)

# Diffusers' arguments that only these values of are supported.
_FIXED = {
    "qk_norm": "rms_norm_across_heads",
    "cross_attn_norm": True,
    "pos_embed_seq_len": None,
}


def fields_from_diffusers(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``WanDiT`` from the constructor arguments of Diffusers' WanTransformer3DModel.

    Raises:
      VidlatentError: an argument has a value that this model does not have.
    """
    for key, value in _FIXED.items():
        if arguments.get(key, value) != value:
            raise VidlatentError(
                f"WanTransformer3DModel with {key}={arguments[key]!r} is not supported."
            )
    heads = arguments["num_attention_heads"]
    image = arguments["image_dim"] if "image_dim" in arguments else None
    return {
        **_channels(arguments["in_channels"], arguments["out_channels"]),
        "patch": tuple(arguments["patch_size"]),
        "width": heads * arguments["attention_head_dim"],
        "depth": arguments["num_layers"],
        "heads": heads,
        "hidden": arguments["ffn_dim"],
        "freq_dim": arguments["freq_dim"],
        "text_dim": arguments["text_dim"],
        "image_dim": image or 0,
        "eps": arguments["eps"],
        "memory": False,
    }


def fields_from_original(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``WanDiT`` from the ``config.json`` beside Alibaba's own weights.

    Raises:
      VidlatentError: another kind of model than text or image to video.
    """
    if config["model_type"] not in ("t2v", "i2v"):
        raise VidlatentError(f"Wan of model_type {config['model_type']!r}: use t2v or i2v weights.")
    return {
        **_channels(config["in_dim"], config["out_dim"]),
        "patch": (1, 2, 2),
        "width": config["dim"],
        "depth": config["num_layers"],
        "heads": config["num_heads"],
        "hidden": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        # Not in the file: the widths of UMT5-XXL and of CLIP ViT-H/14.
        "text_dim": 4096,
        "image_dim": 1280 if config["model_type"] == "i2v" else 0,
        "eps": config["eps"],
        "memory": False,
    }


def _channels(inputs: int, outputs: int) -> dict[str, int]:
    """Split the input channels: noisy latent, then mask and given latent or nothing."""
    # Wan2.1's image to video: 36 = 16 noisy + 4 mask + 16 given; text to video: 16 and no more.
    rest = inputs - outputs
    given = outputs if rest >= outputs else 0
    return {
        "latent_channels": outputs,
        "condition_channels": given,
        "mask_channels": rest - given,
    }
