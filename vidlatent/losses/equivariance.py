"""Equivariance of a decoder: a resized or turned latent decodes to the clip treated alike.

Two published regularisers of image autoencoders have this form, and FSVideo compares with both
(table 1, references 35 and 65):

- EQ-VAE resizes by a random factor below 1 and turns by a random quarter;
- scale equivariance ("Improving the Diffusability of Autoencoders") shrinks two to four times, and
  adds the loss with the weight 0.25.

FSVideo's rows are called downscale and upscale; factors, weights and distances are not stated.
Compiled programs have fixed shapes, so the factor is one of a list, drawn anew in every step, and
every factor compiles a decoder of its own. Frames are transformed one like another; time stays.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.losses.base import DecoderInputs, Term
from vidlatent.losses.perceptual import lpips
from vidlatent.losses.reconstruction import l1
from vidlatent.models.pretrained import network_apply

__all__ = ["equivariance_term", "scale_equivariance_term", "turn_and_resize"]


def turn_and_resize(
    x: jax.Array, size: tuple[int, int], turns: int = 0, antialias: bool = True
) -> jax.Array:
    """``[B, T, H, W, C]`` with each frame resized to ``size``, then turned by quarters.

    Args:
      size: height and width before the turn. The resize is bilinear with pixel centres at halves.
      turns: quarter turns from the rows towards the columns.
      antialias: when shrinking, average all that a pixel covers instead of two neighbours.
    """
    if tuple(x.shape[2:4]) != size:
        shape = (*x.shape[:2], *size, x.shape[-1])
        resized = jax.image.resize(x.astype(jnp.float32), shape, "linear", antialias=antialias)
        x = resized.astype(x.dtype)
    return jnp.rot90(x, turns, axes=(2, 3))


def equivariance_term(
    scales: Sequence[float] = (0.25, 0.5, 0.75),
    turns: Sequence[int] = (0, 1, 2, 3),
    l1: float = 1.0,
    lpips: float = 0.0,
    network: str = "lpips_vgg",
    frames_at_once: int = 4,
    antialias: bool = True,
) -> Term:
    """``loss.equivariance``: EQ-VAE's transforms.

    EQ-VAE replaces the reconstruction loss by this one in half of its steps; here it is a term
    beside the others. It has no adversarial part.

    Args:
      scales: factors, above 1 to enlarge. Latent sides are rounded to whole positions, and the clip
        gets the size of what is decoded.
      turns: quarter turns, of which one is drawn too.
      l1, lpips: weights of the distances within the term.
      network: LPIPS network in ``models.pretrained``.
      frames_at_once: frames of a sample in that network at once.
      antialias: see ``turn_and_resize``.
    """
    return _term("equivariance", scales, turns, l1, lpips, network, frames_at_once, antialias)


def scale_equivariance_term(
    scales: Sequence[float] = (0.5, 0.25),
    l1: float = 1.0,
    lpips: float = 0.0,
    network: str = "lpips_vgg",
    frames_at_once: int = 4,
    antialias: bool = True,
) -> Term:
    """``loss.scale_equivariance``: resized latents only; options as of ``equivariance_term``."""
    return _term("scale_equivariance", scales, (0,), l1, lpips, network, frames_at_once, antialias)


def _term(name, scales, turns, l1_weight, lpips_weight, network, frames_at_once, antialias) -> Term:
    scales, turns = tuple(scales), tuple(turns)
    if not scales or any(not scale > 0 for scale in scales):
        raise VidlatentError(f"config.loss.{name}.scales {scales}: give factors above 0.")
    if not turns or any(turn not in (0, 1, 2, 3) for turn in turns):
        raise VidlatentError(f"config.loss.{name}.turns {turns}: give quarter turns, 0 to 3.")

    def distance(prediction, target, mask, networks):
        value = l1_weight * l1(prediction, target, mask)
        if lpips_weight:
            apply, weights = network_apply(network), networks[network]
            value += lpips_weight * lpips(apply, weights, prediction, target, mask, frames_at_once)
        return value

    def decoded(inputs, networks):
        return _compare(
            inputs,
            functools.partial(distance, mask=inputs.mask, networks=networks),
            scales,
            turns,
            antialias,
        )

    def value(inputs, params, networks):
        return inputs.decoded[name]

    return Term(value, (network,) if lpips_weight else (), decoded=decoded)


def _compare(inputs: DecoderInputs, distance, scales, turns, antialias) -> jax.Array:
    """The distance under one of the transforms, drawn by ``inputs.key``."""
    key = jax.random.key(0) if inputs.key is None else inputs.key
    by_scale, by_turn = (
        jax.random.randint(k, (), 0, len(values))
        for k, values in zip(jax.random.split(key), (scales, turns), strict=True)
    )
    height, width = inputs.latent.shape[2:4]
    cells = inputs.video.shape[2] // height, inputs.video.shape[3] // width
    # Turns that leave the shape are one program; on other frames odd and even turns are two.
    square = height == width and inputs.video.shape[2] == inputs.video.shape[3]
    groups = [turns] if square else [[t for t in turns if t % 2 == odd] for odd in (0, 1)]
    groups = [tuple(group) for group in groups if group]
    group_of = jnp.asarray([[t in group for group in groups].index(True) for t in turns])
    place_of = jnp.asarray([next(g for g in groups if t in g).index(t) for t in turns])

    def branch(scale, group):
        small = tuple(max(1, round(side * scale)) for side in (height, width))
        large = tuple(side * cell for side, cell in zip(small, cells, strict=True))

        # Of the branches that are not taken nothing is kept for the backward pass.
        @jax.checkpoint
        def run(latent, video, place):
            def transform(turn, pair):
                sizes = zip(pair, (small, large), strict=True)
                return tuple(turn_and_resize(x, size, turn, antialias) for x, size in sizes)

            ways = [functools.partial(transform, turn) for turn in group]
            z, x = (
                lax.switch(place, ways, (latent, video)) if ways[1:] else ways[0]((latent, video))
            )
            return distance(inputs.decode(z, x), x)

        return run

    branches = [branch(scale, group) for scale in scales for group in groups]
    index = by_scale * len(groups) + group_of[by_turn]
    given = inputs.latent, inputs.video, place_of[by_turn]
    return lax.switch(index, branches, *given) if branches[1:] else branches[0](*given)
