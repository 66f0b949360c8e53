"""GAN losses of both sides, the discriminator's regularisers, and the adaptive weight.

Logits are one array ``[B, ...]`` or a list of them, one for each scale. Every loss is the mean over
scales, samples and positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vidlatent.errors import VidlatentError
from vidlatent.losses.base import mean_over_samples
from vidlatent.registry import did_you_mean

__all__ = [
    "KINDS",
    "adaptive_weight",
    "discriminator_loss",
    "generator_loss",
    "lecam",
    "lecam_anchors",
    "lecam_update",
    "r1_penalty",
]

Logits = jax.Array | Sequence[jax.Array]

KINDS = ("hinge", "non_saturating")


def discriminator_loss(
    kind: str, real_logits: Logits, fake_logits: Logits, mask: jax.Array | None = None
) -> jax.Array:
    """The discriminator's loss, float32 scalar.

    Args:
      kind: ``'hinge'``: ``mean relu(1 - D(x)) + mean relu(1 + D(y))``, which Reducio and latent
        diffusion multiply by 1/2; or ``'non_saturating'``: ``mean softplus(-D(x)) +
        mean softplus(D(y))`` (Goodfellow et al. 2014).
      real_logits, fake_logits: logits of the clips ``x`` and of the reconstructions ``y``.
      mask: ``[B]``, 1 for a real sample and 0 for padding; None counts all.

    Raises:
      VidlatentError: unknown kind.
    """
    _check_kind(kind)
    if kind == "hinge":
        real = _average([jax.nn.relu(1 - x) for x in _list_maps(real_logits)], mask)
        return real + _average([jax.nn.relu(1 + x) for x in _list_maps(fake_logits)], mask)
    real = _average([jax.nn.softplus(-x) for x in _list_maps(real_logits)], mask)
    return real + _average([jax.nn.softplus(x) for x in _list_maps(fake_logits)], mask)


def generator_loss(kind: str, fake_logits: Logits, mask: jax.Array | None = None) -> jax.Array:
    """The tokenizer's adversarial loss, float32 scalar.

    It is ``-mean D(y)`` for ``'hinge'`` and ``mean softplus(-D(y))`` for ``'non_saturating'``;
    arguments as in ``discriminator_loss``.
    """
    _check_kind(kind)
    maps = _list_maps(fake_logits)
    return _average([-x if kind == "hinge" else jax.nn.softplus(-x) for x in maps], mask)


def r1_penalty(
    apply: Callable[[Any, jax.Array], Logits],
    params: Any,
    video: jax.Array,
    gamma: float = 10.0,
    mask: jax.Array | None = None,
) -> jax.Array:
    """R1: the squared gradient of the discriminator at real clips (Mescheder et al. 2018).

    For a scale with ``P`` logits per sample it is ``gamma / P * |d(sum of logits) / dx|^2``,
    averaged over samples and scales; the division by ``P`` keeps it comparable between clip sizes.
    With a single logit this is MAGVIT's ``gamma |grad|^2``, without Mescheder's factor 1/2.

    Args:
      apply: ``(params, video) -> logits``; must not mix samples (no batch norm in training mode).
      video: ``[B, T, H, W, 3]``.
      mask: ``[B]`` or None.
    """
    video = video.astype(jnp.float32)
    # Traced, not run: how many scales there are, and how many logits each.
    shapes = [x.shape for x in _list_maps(jax.eval_shape(apply, params, video))]

    def of_scale(index, shape):
        # Differentiate one scale at a time, so that the other scales drop out of the program.
        # Samples do not mix, so the gradient of the batch's sum holds each sample's own.
        grad = jax.grad(lambda x: _list_maps(apply(params, x))[index].sum())(video)
        positions = math.prod(shape[1:])
        return jnp.square(grad).sum(axis=tuple(range(1, grad.ndim))) / positions

    return gamma * _average([of_scale(i, shape) for i, shape in enumerate(shapes)], mask)


def lecam_anchors(scales: int = 1) -> dict[str, jax.Array]:
    """Initial moving averages of the real and the fake logits: zeros ``[scales]`` each."""
    return {name: jnp.zeros((scales,), jnp.float32) for name in ("real", "fake")}


def lecam_update(
    anchors: dict[str, jax.Array],
    real_logits: Logits,
    fake_logits: Logits,
    decay: float = 0.999,
    mask: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The moving averages after one more step: ``decay * old + (1 - decay) * mean logit``."""

    def moved(old, logits):
        new = jnp.stack([_average([x], mask) for x in _list_maps(logits)])
        return decay * old + (1 - decay) * jax.lax.stop_gradient(new)

    return {
        "real": moved(anchors["real"], real_logits),
        "fake": moved(anchors["fake"], fake_logits),
    }


def lecam(
    anchors: dict[str, jax.Array],
    real_logits: Logits,
    fake_logits: Logits,
    mask: jax.Array | None = None,
    one_sided: bool = True,
) -> jax.Array:
    """LeCam regulariser (Tseng et al. 2021): keeps real and fake logits from drifting apart.

    ``mean (D(x) - fake anchor)^2 + mean (real anchor - D(y))^2``. By default a difference counts
    only where it is positive, as in the authors' code; ``one_sided=False`` is the paper's equation.
    """
    # Averages of the past are constants of this step.
    anchors = jax.lax.stop_gradient(anchors)
    part = jax.nn.relu if one_sided else (lambda x: x)
    real, fake = _list_maps(real_logits), _list_maps(fake_logits)
    above = [jnp.square(part(x - a)) for x, a in zip(real, anchors["fake"], strict=True)]
    below = [jnp.square(part(a - x)) for x, a in zip(fake, anchors["real"], strict=True)]
    return _average(above, mask) + _average(below, mask)


def adaptive_weight(
    reconstruction_grad: Any,
    adversarial_grad: Any,
    weight: float = 1.0,
    eps: float = 1e-4,
    ceiling: float = 1e4,
) -> jax.Array:
    """VQGAN's adaptive weight: ``weight * clip(|g_rec| / (|g_adv| + eps), 0, ceiling)``.

    Both gradients are with respect to the decoder's last kernel. Reducio uses weight 0.05 and
    counts the perceptual loss as reconstruction. The result carries no gradient.
    """
    # Both terms then pull on the decoder with equal strength, times ``weight``.
    ratio = _compute_norm(reconstruction_grad) / (_compute_norm(adversarial_grad) + eps)
    return jax.lax.stop_gradient(weight * jnp.clip(ratio, 0.0, ceiling))


def _compute_norm(tree: Any) -> jax.Array:
    """Euclidean norm of all leaves together, float32."""
    return optax.global_norm(jax.tree.map(lambda x: x.astype(jnp.float32), tree))


def _list_maps(logits: Logits) -> list[jax.Array]:
    return list(logits) if isinstance(logits, (list, tuple)) else [logits]


def _average(maps: Sequence[jax.Array], mask: jax.Array | None) -> jax.Array:
    # Every scale counts alike, however many logits it has.
    means = [mean_over_samples(x, jnp.ones(x.shape[0]) if mask is None else mask) for x in maps]
    return sum(means) / len(means)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise VidlatentError(f"unknown adversarial loss {kind!r}: {did_you_mean(kind, KINDS)}")
