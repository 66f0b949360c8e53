"""An image VAE's weights as the start of a Reducio-VAE (Reducio, supplement).

The content encoder has the layout of Stable Diffusion's VAE encoder and takes all of its weights;
its attention has eight heads instead of one and reads the same weights differently. The video
encoder and the decoder have other widths on some levels, and the paper does not say how 2-D weights
become 3-D ones. Here every block with a counterpart of the same name and widths takes its weights,
with kernels in the middle temporal tap; the others keep their own initial weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError

__all__ = ["from_causal_image", "from_image"]

Params = Mapping[str, Any]
_UP_BLOCK = re.compile(r"up_(\d+)_block_([12])_(\d+)")


def from_image(params: Params, fresh: Params, tap: int = 1) -> dict[str, Any]:
    """Parameters of a Reducio-VAE from an image VAE's.

    Args:
      params: the image VAE's, as the table ``'sd_vae'`` reads them; kernels with one temporal tap.
      fresh: newly initialised ones of the Reducio-VAE.
      tap: where 3x3x3 kernels take the image kernel; 1 is the present frame of centred
        convolutions, 2 of causal ones.

    Raises:
      VidlatentError: the content encoder has another layout or widths than the image encoder.
    """
    for side in ("encoder", "decoder"):
        if side not in params:
            raise VidlatentError(f"these weights are no image VAE's: they lack the {side}.")
    levels = [
        {
            int(m[1])
            for m in map(re.compile(kind + r"_(\d+)_block_\d+").fullmatch, params[side])
            if m
        }
        for side, kind in (("encoder", "down"), ("decoder", "up"))
    ]
    if levels[0] != levels[1]:
        # Diffusers counts a decoder's levels from the deepest; the table turns four around.
        raise VidlatentError(
            f"the image VAE has {len(levels[0])} levels, and names of Diffusers are read for four: "
            "give the weights under their original names."
        )
    encoder = dict(fresh["encoder"])
    # A model without content frame has no encoder for it.
    if "frame" in encoder:
        encoder["frame"] = _whole(params["encoder"], encoder["frame"])
    encoder["volume"] = {
        name: _inflated(params["encoder"].get(name), module, tap)
        for name, module in encoder["volume"].items()
    }
    blocks = fresh["decoder"]
    # Blocks per half of a level; those after the fusion go on with the image decoder's count.
    per_half = 1 + max((int(m[3]) for m in map(_UP_BLOCK.fullmatch, blocks) if m), default=0)
    decoder = {
        name: _inflated(params["decoder"].get(_counterpart(name, per_half)), module, tap)
        for name, module in blocks.items()
    }
    return {"encoder": encoder, "decoder": decoder}


def from_causal_image(params: Params, fresh: Params) -> dict[str, Any]:
    """``from_image`` for a model with causal convolutions."""
    return from_image(params, fresh, tap=2)


def _counterpart(name: str, per_half: int) -> str:
    """The name in the image decoder, which has no fusion between the blocks of a level."""
    match = _UP_BLOCK.fullmatch(name)
    if match is None:
        return name
    level, half, place = map(int, match.groups())
    return f"up_{level}_block_{place + (half - 1) * per_half}"


def _whole(source: Params, target: Params) -> dict[str, Any]:
    def take(path, leaf):
        node = source
        for key in path:
            node = node[key.key] if key.key in node else {}
        if jnp.shape(node) != leaf.shape:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise VidlatentError(
                f"the image encoder has no {name} of shape {leaf.shape}: give the content encoder "
                "its widths and blocks (config.model.content_*)."
            )
        return jnp.asarray(node)

    return jax.tree_util.tree_map_with_path(take, target)


def _inflated(source: Params | None, target: Params, tap: int) -> Params:
    """``target`` with the weights of ``source`` if every one of them fits."""
    # No counterpart, or a block that has a shortcut in one of the two models only.
    if jax.tree.structure(source) != jax.tree.structure(target):
        return target
    pairs = zip(jax.tree.leaves(source), jax.tree.leaves(target), strict=True)
    leaves = [_kernel(a, b, tap) for a, b in pairs]
    if any(leaf is None for leaf in leaves):
        return target
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def _kernel(source: Any, target: jax.Array, tap: int) -> jax.Array | None:
    if source.shape == target.shape:
        return jnp.asarray(source)
    if target.ndim == 5 and source.shape == (1, *target.shape[1:]) and target.shape[0] == 3:
        return jnp.zeros_like(target).at[tap].set(source[0])
    return None
