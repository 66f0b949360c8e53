"""Classifier-free guidance in sampling, and dropping conditions in training.

The network runs once per branch, from the least to the most conditioned, and the outputs are
combined as ``f_0 + sum_k g_k (f_k - f_{k-1})``. With two branches that is the usual guidance
``negative + g (positive - negative)`` (Ho & Salimans 2022). With three, each of two conditions has
a guidance scale of its own: (null, null), (null, image), (text, image), as in InstructPix2Pix
(Brooks et al. 2023, 3.2.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vidlatent.errors import VidlatentError

__all__ = [
    "combine",
    "count_evaluations",
    "drop_masks",
    "evaluate_branches",
    "guidance_scales",
    "guide",
    "guide_batched",
    "replace_dropped",
    "rescale_guidance",
]


def guidance_scales(
    levels: np.ndarray,
    scale: float | Sequence[float],
    interval: tuple[float, float] | None = None,
) -> np.ndarray:
    """Guidance scales of each step, ``[N, K]`` for ``K + 1`` branches.

    Args:
      levels: noise level of each step, ``plan.levels``.
      scale: one for each pair of neighbouring branches, ``K`` numbers.
      interval: ``(low, high)``: guide only at levels within it, both ends included. Elsewhere the
        scale is 1 and only the most conditioned branch runs (Kynkaanniemi et al. 2024).

    Raises:
      VidlatentError: ``low`` is above ``high``.
    """
    scales = np.atleast_1d(np.asarray(scale, np.float64))
    table = np.broadcast_to(scales, (len(levels), len(scales))).copy()
    if interval is not None:
        low, high = interval
        if not low <= high:
            raise VidlatentError(
                f"config.sampler.guidance.interval must be (low, high), got {interval}."
            )
        # Guidance harms at high noise and is hardly needed at low noise (Kynkaanniemi et al.).
        table[(levels < low) | (levels > high)] = 1.0
    return table


def count_evaluations(scales: np.ndarray, branches: int | None = None) -> int:
    """Evaluations of the network for one sample, with guidance scales ``[N, K]``.

    A guided step evaluates every branch, and a step whose scales are all 1 only the last one.
    """
    branches = scales.shape[1] + 1 if branches is None else branches
    return int(np.where(np.all(scales == 1.0, axis=1), 1, branches).sum())


def guide(
    network: Callable[..., jax.Array],
    conditions: Sequence[Any],
    scales: np.ndarray,
    *,
    rescale: float = 0.0,
    channels: int | None = None,
    batched: bool = True,
    batch_axis: int = 0,
) -> Callable[..., jax.Array]:
    """A guided ``denoise(x, t, index)`` for ``samplers.sample``.

    Args:
      network: ``(x [B, ...], t [B], index, condition) -> f``.
      conditions: from the least to the most conditioned, ``K + 1`` pytrees of one structure whose
        leaves have the batch on ``batch_axis``.
      scales: ``[N, K]`` from ``guidance_scales``, on the host.
      rescale: see ``rescale_guidance``.
      channels: guide only so many of the output's channels (those that are not the learned
        variance); the others are those of the last condition. None: all.
      batched: all branches in one evaluation of ``(K + 1) B`` samples, which reads the weights
        once; False: one after another, which needs less memory.

    Raises:
      VidlatentError: the number of conditions does not fit the scales.
    """
    scales = np.asarray(scales, np.float64)
    if scales.ndim != 2 or scales.shape[1] + 1 != len(conditions):
        raise VidlatentError(
            f"guidance over {len(conditions)} conditions needs scales [steps, "
            f"{len(conditions) - 1}], got {list(scales.shape)}."
        )

    def plain(x, t, index):
        return network(x, t, index, conditions[-1])

    def every(x, t, index):
        outputs = evaluate_branches(network, conditions, x, t, index, batched, batch_axis)
        # The index is traced, so the whole table is a constant of the program.
        row = jnp.asarray(scales, outputs[0].dtype)[index]
        return combine(outputs, row, rescale, channels)

    return _switch(scales, every, plain)


def guide_batched(
    network: Callable[..., jax.Array],
    together: Any,
    positive: Any,
    scales: np.ndarray,
    *,
    rescale: float = 0.0,
    channels: int | None = None,
) -> Callable[..., jax.Array]:
    """``guide`` for branches whose conditions the caller has concatenated already.

    ``guide`` would concatenate them again in every step. That is costly for cached keys and values,
    which are large and the same in all steps.

    Args:
      network: ``(x [n, ...], t [n], index, condition) -> f``.
      together: conditions of ``(K + 1) B`` samples, the least conditioned ``B`` first.
      positive: those of the last ``B`` alone, for steps without guidance; None if there are none.
      scales, rescale, channels: as for ``guide``.
    """
    scales = np.asarray(scales, np.float64)
    count = scales.shape[1] + 1

    def plain(x, t, index):
        return network(x, t, index, positive)

    def every(x, t, index):
        # States are small beside the conditions: only they are joined in every step.
        many = jnp.concatenate([x] * count), jnp.concatenate([t] * count)
        outputs = jnp.split(network(*many, index, together), count)
        row = jnp.asarray(scales, outputs[0].dtype)[index]
        return combine(outputs, row, rescale, channels)

    return _switch(scales, every, plain)


def _switch(scales: np.ndarray, every: Callable, plain: Callable) -> Callable:
    """``every`` at the guided steps, ``plain`` at those whose scales are all 1."""
    guides = ~np.all(scales == 1.0, axis=1)

    # A branch at run time: inside the scan over steps the index is traced.
    def either(x, t, index):
        return lax.cond(jnp.asarray(guides)[index], every, plain, x, t, index)

    if not guides.any():
        return plain
    return every if guides.all() else either


def combine(
    outputs: Sequence[jax.Array],
    scales: Sequence[Any],
    rescale: float = 0.0,
    channels: int | None = None,
) -> jax.Array:
    """``f_0 + sum_k g_k (f_k - f_{k-1})`` over the first ``channels`` channels.

    Args:
      outputs: ``K + 1`` of ``[B, ..., C]``, from the least to the most conditioned.
      scales: ``g``, ``K`` numbers.
      rescale: see ``rescale_guidance``.
      channels: None for all; the rest is taken from the last output.

    Returns:
      ``[B, ..., C]``.
    """
    parts = [f if channels is None else f[..., :channels] for f in outputs]
    total = parts[0]
    # Each difference is the effect of one more condition, at a scale of its own.
    for k in range(1, len(parts)):
        total = total + scales[k - 1] * (parts[k] - parts[k - 1])
    if rescale:
        total = rescale_guidance(total, parts[-1], rescale)
    if channels is None:
        return total
    return jnp.concatenate([total, outputs[-1][..., channels:]], axis=-1)


def rescale_guidance(guided: jax.Array, positive: jax.Array, amount: float) -> jax.Array:
    """Undo the rise in contrast that guidance causes (Lin et al. 2023, eqs. 15-16).

    Each sample is scaled towards the standard deviation of ``positive``, fully at ``amount`` 1.

    Args:
      guided, positive: ``[B, ...]``; the result has this shape.
    """
    axes = tuple(range(1, guided.ndim))  # over the whole sample, as published
    ratio = positive.std(axis=axes, keepdims=True) / jnp.maximum(
        guided.std(axis=axes, keepdims=True), 1e-12
    )
    return guided * (1.0 - amount + amount * ratio)


def drop_masks(
    key: jax.Array, batch: int, rates: Mapping[str, float], joint: float = 0.0
) -> dict[str, jax.Array]:
    """Which conditions of which samples are dropped, ``name -> [batch]`` bool.

    Each condition is dropped independently at its own rate, and all of them together at the rate
    ``joint``. Independent drops alone would hardly ever show the network a sample without any
    condition, which is what guidance evaluates. A mask depends on the key and on the place of its
    name in sorted order.

    Raises:
      VidlatentError: a rate outside [0, 1].
    """
    for name, rate in (*rates.items(), ("joint", joint)):
        if not 0.0 <= rate <= 1.0:
            raise VidlatentError(f"the drop rate of {name} must be in [0, 1], got {rate}.")
    keys = jax.random.split(key, len(rates) + 1)
    # The last key is not for a name, so ``joint`` leaves the other draws unchanged.
    every = jax.random.bernoulli(keys[-1], joint, (batch,))
    return {
        name: every | jax.random.bernoulli(k, rates[name], (batch,))
        for name, k in zip(sorted(rates), keys[:-1], strict=True)
    }


def replace_dropped(mask: jax.Array, condition: Any, null: Any) -> Any:
    """``condition`` with ``null`` in the samples where ``mask`` ``[B]`` is true.

    Args:
      condition, null: pytrees; a leaf of ``null`` is broadcast to ``[B, ...]``.
    """

    def leaf(value, other):
        # [B] -> [B, 1, ...]
        return jnp.where(mask.reshape(mask.shape + (1,) * (value.ndim - 1)), other, value)

    return jax.tree.map(leaf, condition, null)


def evaluate_branches(
    network: Callable[..., jax.Array],
    conditions: Sequence[Any],
    x: jax.Array,
    t: jax.Array,
    index: Any = None,
    batched: bool = True,
    axis: int = 0,
) -> list[jax.Array]:
    """The network's outputs under each of several conditions; arguments as of ``guide``."""
    if not batched:
        return [network(x, t, index, condition) for condition in conditions]
    count = len(conditions)
    # K + 1 branches of B samples -> (K + 1) B, the least conditioned first.
    together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=axis), *conditions)
    f = network(jnp.concatenate([x] * count), jnp.concatenate([t] * count), index, together)
    return jnp.split(f, count)
