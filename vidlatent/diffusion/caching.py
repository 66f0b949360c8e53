"""Step caching: skip the network where its input hardly changes (TeaCache, Liu et al. 2024).

The change of a cheap signal, such as the first block's modulated input, predicts the change of the
output. The signal's relative changes, mapped by a polynomial, are summed over the steps; while the
sum stays below a threshold, the last output is used again. The result is approximate, so caching is
off unless ``config.sampler.cache.threshold`` is set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.errors import VidlatentError

__all__ = ["CacheRule", "CacheState", "cache_denoiser", "empty_cache", "evaluate_or_reuse"]


@dataclasses.dataclass(frozen=True)
class CacheRule:
    """When to use the last output again.

    Attributes:
      threshold: largest summed change at which to skip; 0 never skips.
      polynomial: coefficients, highest power first, that map a relative change of the signal to
        one of the output; fitted for each network, by default the identity.
      max_skips: most steps to skip in a row.
      steps: N; the first and the last step are always evaluated.
    """

    threshold: float = 0.0
    polynomial: tuple[float, ...] = (1.0, 0.0)
    max_skips: int = 4
    steps: int = 1

    def __post_init__(self):
        if self.threshold < 0 or self.max_skips < 0 or not self.polynomial:
            raise VidlatentError(
                "step caching needs threshold >= 0, max_skips >= 0 and a polynomial, got "
                f"{self.threshold}, {self.max_skips}, {self.polynomial}."
            )


class CacheState(NamedTuple):
    """State of the rule.

    Attributes:
      signal: of the step before, ``[B, ...]``.
      output: of the last evaluation.
      change: sum of changes since then, float32 scalar.
      skips: steps skipped since then, int32.
      evaluated: number of evaluations so far, int32.
    """

    signal: jax.Array
    output: Any
    change: jax.Array
    skips: jax.Array
    evaluated: jax.Array


def empty_cache(signal: Any, output: Any) -> CacheState:
    """The state before the first step, from arrays or shapes of the signal and the output."""
    signal, output = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (signal, output))
    zero = jnp.zeros((), jnp.int32)
    return CacheState(signal, output, jnp.zeros((), jnp.float32), zero, zero)


def evaluate_or_reuse(
    rule: CacheRule,
    state: CacheState,
    signal: jax.Array,
    index: jax.Array,
    compute: Callable[[], Any],
) -> tuple[Any, CacheState]:
    """``compute()``, or its last result, and the new state.

    ``compute`` may be the whole network or, closer to the published rule, the residual that its
    blocks add to their input.

    Args:
      signal: ``[B, ...]``; one decision is taken for the whole batch.
      index: the step.
    """
    before, now = (x.astype(jnp.float32) for x in (state.signal, signal))
    # One number for the whole batch, because lax.cond takes one decision.
    size = jnp.abs(before).mean()
    # Before the first step the signal is zeros; that step is evaluated whatever comes out here.
    moved = jnp.abs(now - before).mean() / jnp.maximum(size, 1e-12)
    poly = jnp.asarray(rule.polynomial, jnp.float32)
    # A fitted polynomial may be negative outside the range that it was fitted on.
    change = state.change + jnp.maximum(jnp.polyval(poly, moved), 0.0)
    inner = (index > 0) & (index < rule.steps - 1)
    reuse = inner & (change < rule.threshold) & (state.skips < rule.max_skips)
    # cond and not where: the network must not run where its output is not used.
    output = lax.cond(reuse, lambda: state.output, compute)
    counts = jnp.where(reuse, state.skips + 1, 0), state.evaluated + jnp.where(reuse, 0, 1)
    return output, CacheState(signal, output, jnp.where(reuse, change, 0.0), *counts)


def cache_denoiser(
    denoise: Callable[..., jax.Array],
    signal: Callable[..., jax.Array],
    rule: CacheRule,
    x: jax.Array,
) -> tuple[Callable[..., tuple[jax.Array, CacheState]], CacheState]:
    """A denoiser with state and its first state, for ``samplers.sample(..., state=...)``.

    Args:
      denoise, signal: ``(x [B, ...], t [B], index) -> array``.
      rule: with ``steps = plan.nfe``.
      x: the sampler's start, for the shapes.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    inputs = (
        jax.ShapeDtypeStruct(x.shape, dtype),
        jax.ShapeDtypeStruct(x.shape[:1], dtype),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    # Shapes alone: nothing runs.
    state = empty_cache(jax.eval_shape(signal, *inputs), jax.eval_shape(denoise, *inputs))

    def with_state(x, t, index, state):
        return evaluate_or_reuse(
            rule, state, signal(x, t, index), index, lambda: denoise(x, t, index)
        )

    return with_state, state
