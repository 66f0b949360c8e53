"""Classifier-free guidance at sampling, and dropping conditions in training.

Outputs are combined along a chain of conditions from the least to the most conditioned,
``f_0 + sum_k g_k (f_k - f_{k-1})``. Two conditions are the usual guidance
``negative + g (positive - negative)``; three guide two conditions apart, e.g. (null, null),
(null, image), (text, image).
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
    """Scales of each step, ``[N, K]`` for ``K`` links of the chain.

    Args:
      levels: noise level of each step, ``plan.levels``.
      scale: one for each link.
      interval: ``(low, high)``: guide only at levels within it, both ends included; elsewhere the
        scale is 1 and the positive condition is evaluated alone (Kynkaanniemi et al. 2024).
    """
    scales = np.atleast_1d(np.asarray(scale, np.float64))
    table = np.broadcast_to(scales, (len(levels), len(scales))).copy()
    if interval is not None:
        low, high = interval
        if not low <= high:
            raise VidlatentError(f"guidance.interval must be (low, high), got {interval}.")
        table[(levels < low) | (levels > high)] = 1.0
    return table


def count_evaluations(scales: np.ndarray, branches: int | None = None) -> int:
    """Evaluations of the network for one sample, with guidance scales ``[N, K]``.

    A step that guides evaluates every condition, and one that does not (all scales 1) one.
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
    """A ``denoise(x, t, index)`` for ``samplers.sample`` from a network with conditions.

    Args:
      network: ``(x [B, ...], t [B], index, condition) -> f``.
      conditions: from the least to the most conditioned, ``K + 1`` pytrees of one structure whose
        leaves have the batch on ``batch_axis``.
      scales: ``[N, K]`` from ``guidance_scales``, on the host.
      rescale: see ``rescale_guidance``.
      channels: guide only so many of the output's channels (those that are not the learned
        variance); the others are those of the last condition. None: all.
      batched: all conditions in one evaluation of ``(K + 1) B``, which reads the weights once;
        False: one after another, with less memory.

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
        outputs = _evaluate(network, conditions, x, t, index, batched, batch_axis)
        row = jnp.asarray(scales, outputs[0].dtype)[index]
        return combine(outputs, row, rescale, channels)

    return _where_guided(scales, every, plain)


def guide_batched(
    network: Callable[..., jax.Array],
    together: Any,
    positive: Any,
    scales: np.ndarray,
    *,
    rescale: float = 0.0,
    channels: int | None = None,
) -> Callable[..., jax.Array]:
    """As ``guide`` with all conditions in one evaluation, batched beforehand by the caller.

    For conditions with parts that are constant over the steps and costly to join again in each, or
    whose batch lies on other axes.

    Args:
      network: ``(x [n, ...], t [n], index, condition) -> f``.
      together: conditions of ``(K + 1) B`` samples, the least conditioned ``B`` first.
      positive: those of the last ``B`` alone, for steps that do not guide; None where all do.
      scales, rescale, channels: as for ``guide``.
    """
    scales = np.asarray(scales, np.float64)
    count = scales.shape[1] + 1

    def plain(x, t, index):
        return network(x, t, index, positive)

    def every(x, t, index):
        many = jnp.concatenate([x] * count), jnp.concatenate([t] * count)
        outputs = jnp.split(network(*many, index, together), count)
        row = jnp.asarray(scales, outputs[0].dtype)[index]
        return combine(outputs, row, rescale, channels)

    return _where_guided(scales, every, plain)


def _where_guided(scales: np.ndarray, every: Callable, plain: Callable) -> Callable:
    """``every`` at the steps that guide, ``plain`` at those whose scales are all 1."""
    guides = ~np.all(scales == 1.0, axis=1)

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
    """``f_0 + sum_k g_k (f_k - f_{k-1})`` over the first ``channels`` channels."""
    parts = [f if channels is None else f[..., :channels] for f in outputs]
    total = parts[0]
    for k in range(1, len(parts)):
        total = total + scales[k - 1] * (parts[k] - parts[k - 1])
    if rescale:
        total = rescale_guidance(total, parts[-1], rescale)
    if channels is None:
        return total
    return jnp.concatenate([total, outputs[-1][..., channels:]], axis=-1)


def rescale_guidance(guided: jax.Array, positive: jax.Array, amount: float) -> jax.Array:
    """Guidance without its growth in contrast (Lin et al. 2023, eqs. 15-16).

    A share ``amount`` of each sample is scaled to the standard deviation of ``positive``.
    """
    axes = tuple(range(1, guided.ndim))
    ratio = positive.std(axis=axes, keepdims=True) / jnp.maximum(
        guided.std(axis=axes, keepdims=True), 1e-12
    )
    return guided * (1.0 - amount + amount * ratio)


def drop_masks(
    key: jax.Array, batch: int, rates: Mapping[str, float], joint: float = 0.0
) -> dict[str, jax.Array]:
    """Which conditions of which samples are dropped, ``name -> [batch]`` bool.

    Each condition is dropped by itself with its rate and, besides, all of them together with
    ``joint``: dropped one by one they are rarely missing all at once, which guidance asks for.
    A name's mask depends on the key and the name's place in sorted order.

    Raises:
      VidlatentError: a rate outside [0, 1].
    """
    for name, rate in (*rates.items(), ("joint", joint)):
        if not 0.0 <= rate <= 1.0:
            raise VidlatentError(f"the drop rate of {name} must be in [0, 1], got {rate}.")
    keys = jax.random.split(key, len(rates) + 1)
    every = jax.random.bernoulli(keys[-1], joint, (batch,))
    return {
        name: every | jax.random.bernoulli(k, rates[name], (batch,))
        for name, k in zip(sorted(rates), keys[:-1], strict=True)
    }


def replace_dropped(mask: jax.Array, condition: Any, null: Any) -> Any:
    """``condition`` with ``null`` in the samples of ``mask [B]``.

    Args:
      condition, null: pytrees; a leaf of ``null`` is broadcast to ``[B, ...]``.
    """

    def leaf(value, other):
        return jnp.where(mask.reshape(mask.shape + (1,) * (value.ndim - 1)), other, value)

    return jax.tree.map(leaf, condition, null)


def _evaluate(network, conditions, x, t, index, batched, axis):
    if not batched:
        return [network(x, t, index, condition) for condition in conditions]
    count = len(conditions)
    together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=axis), *conditions)
    f = network(jnp.concatenate([x] * count), jnp.concatenate([t] * count), index, together)
    return jnp.split(f, count)
