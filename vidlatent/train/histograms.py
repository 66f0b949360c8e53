"""Histograms of parameters and of their updates, for TensorBoard (``config.train.histograms``)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.checkpoint.digests import leaf_paths
from vidlatent.checkpoint.layout import find_players
from vidlatent.parallel.sharding import replicated
from vidlatent.report.writers import Histogram

__all__ = ["BUCKETS", "Histograms", "count_values"]

BUCKETS = 40  # of equal width, between the least and the largest value


class Histograms:
    """Writes them after every ``config.train.histograms`` steps; 0: never.

    An update is what a step adds to the parameters, so a copy of those is kept during that step.
    Counts are made on the devices: no parameters are gathered.
    """

    def __init__(self, config: ConfigDict, state: Any, mesh: Mesh):
        self.every = config.train.histograms
        self._players = find_players(state)
        self._before: dict[str, jax.Array] | None = None
        # Of each parameter by itself: those of one shape share a program.
        self._count = jax.jit(
            lambda old, new: (count_values(new), count_values(new - old)),
            out_shardings=replicated(mesh),
        )

    def before(self, step: int, state: Any) -> None:
        """Call it before the step that comes after ``step`` finished ones."""
        if self.every and (step + 1) % self.every == 0:
            # Copies, because the step takes over the memory of its arguments.
            self._before = jax.tree.map(jnp.copy, self._params(state))

    def after(self, step: int, state: Any, writer: Any) -> None:
        """Call it after that step; ``step`` counts finished ones."""
        if self._before is None:
            return
        before, self._before = self._before, None
        found = {}
        for name, new in self._params(state).items():
            both = jax.device_get(self._count(before.pop(name), new))
            for kind, values in zip(("params", "updates"), both, strict=True):
                found[f"{kind}/{name}"] = Histogram(*values)
        writer.write_histograms(step, found)

    def _params(self, state: Any) -> dict[str, jax.Array]:
        """Those of the model and of what is trained beside it, by path."""
        parts = {name: state[name]["params"] for name in self._players}
        return leaf_paths({"model": state["params"], **parts})


def count_values(x: jax.Array) -> tuple[jax.Array, ...]:
    """``(edges [BUCKETS + 1], counts [BUCKETS], sum, sum of squares)`` of all values, float32."""
    x = x.astype(jnp.float32)
    least, most = jnp.min(x), jnp.max(x)
    edges = least + (most - least) * jnp.linspace(0.0, 1.0, BUCKETS + 1)
    # Comparisons and sums alone, which stay where the shards of a parameter are. In float32: an
    # integer of 32 bits is too short for a stack of large layers.
    below = (x[..., None] < edges[1:-1]).astype(jnp.float32).sum(tuple(range(x.ndim)))
    upto = jnp.concatenate([jnp.zeros(1), below, jnp.full(1, x.size, jnp.float32)])
    return edges, jnp.diff(upto), jnp.sum(x), jnp.sum(jnp.square(x))
