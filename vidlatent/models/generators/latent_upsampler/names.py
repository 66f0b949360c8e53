"""Importer table of LTX-Video's latent upsampler, as Diffusers names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidlatent.weights.rows import Rows, layer_rows, norm_rows

__all__ = ["LTX_UPSAMPLER_TABLE", "fields_from_ltx"]


def _block_rows(source: str, target: str) -> Rows:
    source, target = source + r"[.](?P<i>\d+)[.]", target + "_{i}/"
    return (
        *layer_rows(source + r"conv(?P<n>\d)", target + "conv{n}", "conv3d"),
        *norm_rows(source + r"norm(?P<n>\d)", target + "norm{n}"),
    )


LTX_UPSAMPLER_TABLE: Rows = (
    *layer_rows("initial_conv", "initial_conv", "conv3d"),
    *norm_rows("initial_norm", "initial_norm"),
    *_block_rows("res_blocks", "blocks_before"),
    *layer_rows("upsampler[.]0", "shuffle_conv", "conv2d"),
    *_block_rows("post_upsample_res_blocks", "blocks"),
    *layer_rows("final_conv", "final_conv", "conv3d"),
)


def fields_from_ltx(config: Mapping[str, Any]) -> dict[str, Any]:
    """``LatentUpsampler``'s fields from ``LTXLatentUpsamplerModel``'s config.

    Its blocks stand half before and half behind the shuffle, ``num_blocks_per_stage`` each.
    """
    return {
        "latent_channels": config["in_channels"],
        "width": config["mid_channels"],
        "blocks": config["num_blocks_per_stage"],
        "blocks_before": config["num_blocks_per_stage"],
        # Constants of the published class.
        "groups": config.get("groups", 32),
        "eps": config.get("gn_eps", 1e-5),
    }
