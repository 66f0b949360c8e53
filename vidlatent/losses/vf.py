"""Video VF loss: align latents with the features of a frozen image network (FSVideo eqs. 2-4).

Latents and features are compared by cosine similarity on the features' grid: each latent with its
feature (eq. 2), and the similarity of each pair of latents with that of the same pair of features
(eq. 3). Eq. 3 sums over all pairs of a clip's tokens, 6.3e7 for 31x16x16. It is computed in blocks
of rows, so that the matrix of all pairs never exists.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.losses.base import Term, mean_over_samples
from vidlatent.losses.frames import map_frames
from vidlatent.models.pretrained import NETWORKS, network_apply, network_shapes
from vidlatent.models.pretrained.resize import resize

__all__ = [
    "cosine_distance",
    "normalise",
    "pool_frames",
    "project_to_features",
    "relation_distance",
    "vf_term",
    "video_features",
    "video_vf",
]

_EXACT = lax.Precision.HIGHEST  # the margins compare differences of cosines, which TF32 would blur


def pool_frames(features: jax.Array, latents: int, first_alone: bool = True) -> jax.Array:
    """Mean features of the frames behind each latent frame.

    Args:
      features: ``[B, T, h, w, C]``.
      latents: latent frames ``t``.
      first_alone: frame 0 has a latent frame for itself and the others share evenly (1+4k frames);
        False: all share evenly.

    Returns:
      ``[B, t, h, w, C]``.
    """
    frames = features.shape[1]
    alone = 1 if first_alone or frames == 1 else 0
    rest, shares = frames - alone, latents - alone
    if (shares == 0) != (rest == 0) or (shares and rest % shares):
        raise VidlatentError(
            f"config.loss.vf: {frames} frames do not spread over {latents} latent frames with "
            f"first_alone={first_alone}: set config.loss.vf.first_alone to fit the tokenizer."
        )
    if not shares:
        return features
    # [B, T - 1, ...] -> [B, shares, frames of a share, ...]
    rest = features[:, alone:].reshape(
        features.shape[0], shares, rest // shares, *features.shape[2:]
    )
    return jnp.concatenate([features[:, :alone], rest.mean(axis=2)], axis=1)


def project_to_features(latent: jax.Array, kernel: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Latents ``[B, t, h, w, c]`` on the features' grid and channels, ``[B, t, *grid, C]``.

    The resize is bilinear with pixel centres at halves. Resizing and projection are linear and may
    change places; resizing first is cheaper, because latents have fewer channels.

    Args:
      kernel: ``[c, C]``.
    """
    resized = resize(latent, *grid)
    return jnp.einsum("bthwc,cd->bthwd", resized, kernel, precision=_EXACT)


def normalise(x: jax.Array) -> jax.Array:
    """``x / max(|x|, 1e-12)`` along the last axis: ``[..., C] -> [..., C]`` float32."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(square, 1e-24))


def cosine_distance(z: jax.Array, f: jax.Array, margin: float) -> jax.Array:
    """Eq. 2: mean over tokens of ``relu(1 - margin - cos)``.

    Args:
      z, f: unit vectors ``[B, N, C]``.

    Returns:
      ``[B]``.
    """
    return jax.nn.relu(1.0 - margin - (z * f).sum(axis=-1)).mean(axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def relation_distance(z: jax.Array, f: jax.Array, margin: float, rows: int = 512) -> jax.Array:
    """Eq. 3: mean over pairs p, q of ``relu(|cos(z_p, z_q) - cos(f_p, f_q)| - margin)``.

    The matrix exists ``rows`` rows at a time. The forward pass computes the gradient to ``z`` as
    well, the only thing saved for the backward pass; ``f`` is a constant.

    Args:
      z: unit vectors ``[B, N, D]`` float32.
      f: unit vectors ``[B, N, C]`` float32.
      margin: m2, at least 0.
      rows: in a block.

    Returns:
      ``[B]``.
    """
    return _pairs(z, f, margin, rows, gradient=False)[0]


def _relation_forward(z, f, margin, rows):
    value, grad = _pairs(z, f, margin, rows, gradient=True)
    return value, (grad, f)


def _relation_backward(margin, rows, saved, cotangent):
    grad, f = saved
    return cotangent[:, None, None] * grad, jnp.zeros_like(f)


relation_distance.defvjp(_relation_forward, _relation_backward)


def _pairs(z, f, margin, rows, gradient: bool):
    batch, tokens, _ = z.shape
    # Blocks of equal size, so that little padding is needed.
    blocks = -(-tokens // rows)
    rows = -(-tokens // blocks)
    # Padding tokens are zero vectors: their cosines are 0 in both matrices, so they add nothing.
    pads = ((0, 0), (0, blocks * rows - tokens), (0, 0))
    z, f = jnp.pad(z, pads), jnp.pad(f, pads)

    def gram(a, b):
        return jnp.einsum("bpc,bqc->bpq", a, b, precision=_EXACT)

    def block(index, carry):
        total, grad = carry
        z_rows, f_rows = (lax.dynamic_slice_in_dim(x, index * rows, rows, 1) for x in (z, f))
        apart = gram(z_rows, z) - gram(f_rows, f)
        total += jax.nn.relu(jnp.abs(apart) - margin).sum(axis=(1, 2))
        if not gradient:
            return total, grad
        # Each pair occurs as (p, q) and as (q, p) with the same gradient: one product, factor 2.
        push = jnp.where(jnp.abs(apart) > margin, (2.0 / pairs) * jnp.sign(apart), 0.0)
        # A cosine is a product of unit vectors, so its gradient to z_p is z_q.
        moved = jnp.einsum("bpq,bqc->bpc", push, z, precision=_EXACT)
        return total, lax.dynamic_update_slice_in_dim(grad, moved, index * rows, 1)

    pairs = float(tokens) ** 2
    # Without a gradient its place in the carry is a scalar.
    start = jnp.zeros(batch, jnp.float32), jnp.zeros_like(z) if gradient else jnp.zeros(())
    total, grad = lax.fori_loop(0, blocks, block, start)
    return total / pairs, grad[:, :tokens] if gradient else None


def video_vf(
    latent: jax.Array,
    kernel: jax.Array,
    features: jax.Array,
    mask: jax.Array,
    cosine_margin: float = 0.5,
    distance_margin: float = 0.25,
    rows: int = 512,
) -> tuple[jax.Array, jax.Array]:
    """Eq. 2 and eq. 3, averaged over the real samples; the loss is their sum.

    Args:
      latent: ``[B, t, h, w, c]``.
      kernel: ``[c, C]``, trained along.
      features: ``[B, t, h', w', C]``, one for each latent frame; a constant.
      mask: ``[B]``.
      cosine_margin, distance_margin: m1 and m2.
      rows: of the blocks of eq. 3.
    """
    aligned = project_to_features(latent, kernel, features.shape[2:4])
    batch, width = aligned.shape[0], aligned.shape[-1]
    # All tokens of a clip in one list: [B, t, h', w', C] -> [B, t h' w', C]
    z = normalise(aligned).reshape(batch, -1, width)
    f = normalise(lax.stop_gradient(features)).reshape(batch, -1, width)
    near = cosine_distance(z, f, cosine_margin)
    alike = relation_distance(z, f, distance_margin, rows)
    return mean_over_samples(near, mask), mean_over_samples(alike, mask)


def video_features(apply: Any, params: Any, video: jax.Array, frames_at_once: int = 8) -> jax.Array:
    """Features of every frame ``[B, T, h', w', C]`` float32, without a gradient.

    Args:
      apply: ``(params, images [N, H, W, 3]) -> [N, h', w', C]``.
      video: ``[B, T, H, W, 3]`` in [-1, 1]; the network resizes frames itself.
    """

    def network(images):
        return apply(params, images).astype(jnp.float32)

    video = lax.stop_gradient(video)
    return lax.stop_gradient(map_frames(network, video, at_once=frames_at_once, remat=False))


def vf_term(
    network: str = "dinov2_vitl14",
    cosine_margin: float = 0.5,
    distance_margin: float = 0.25,
    frames_at_once: int = 8,
    rows: int = 512,
    first_alone: bool = True,
    dtype: str = "float32",
) -> Term:
    """``loss.vf``; FSVideo gives it the weight 0.5.

    Its own parameters are the map from latent channels to feature channels, without a bias. Its
    parts are ``cosine`` (eq. 2) and ``relation`` (eq. 3).

    Args:
      network: image network in ``models.pretrained`` that returns a grid of patch features.
      cosine_margin, distance_margin: m1 and m2.
      frames_at_once: frames of a sample in the network at once.
      rows: of the blocks of eq. 3.
      first_alone: see ``pool_frames``.
      dtype: compute dtype of the network.
    """

    def apply(params, images):
        return network_apply(network, jnp.dtype(dtype))(params, images)

    def parts(inputs, params, networks):
        if inputs.posterior is None:
            raise VidlatentError("config.loss.vf needs the encoder's output: leave the term out.")
        latent = inputs.posterior.mode()
        features = video_features(apply, networks[network], inputs.target, frames_at_once)
        features = pool_frames(features, latent.shape[1], first_alone)
        cosine, relation = video_vf(
            latent,
            params["projection"]["kernel"],
            features,
            inputs.mask,
            cosine_margin,
            distance_margin,
            rows,
        )
        return {"cosine": cosine, "relation": relation}

    def init(key, spec):
        image = jax.ShapeDtypeStruct(NETWORKS.get(network).inputs[0], jnp.float32)
        # Traced, not run: only the width of the features is asked for.
        width = jax.eval_shape(apply, network_shapes(network), image).shape[-1]
        # Projected latents then start with the variance that latents have.
        scale = 1.0 / math.sqrt(spec.channels)
        kernel = scale * jax.random.normal(key, (spec.channels, width), jnp.float32)
        return {"projection": {"kernel": kernel}}

    return Term.of_parts(parts, networks=(network,), init=init)
