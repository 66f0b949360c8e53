"""Layer memory: a block's keys and values read a mixture of all earlier states, per token.

State ``X_0`` enters the stack and ``X_{l+1} = block_l(X_l, sum_j A_l[..., j] X_j)`` with weights
``A_l`` over the sources ``j <= l`` from a softmax of ``U_l W_l + b_l``, where ``U_l`` is what the
block's queries read (FSVideo 2.3.1, eqs. 6-8). Layers are counted from 0 here; layer 0 has one
source and no router. Three forms compute the same:

* ``unrolled``: a list of states, and routers of their true sizes; the reference;
* ``scanned``: one compiled layer with a buffer of states in the carry, written in place. Autodiff
  would save the buffer at every layer, which is quadratic in depth;
* ``recomputed``: ``scanned`` with a backward pass of its own. The final buffer holds the input of
  every layer, so nothing else is saved. Cotangents of the states are not accumulated in a second
  buffer either: the backward pass stores the cotangent ``G_l`` of each layer's mixture beside its
  weights, and sums a state's cotangent once, ``dX_j = sum_{l >= j} A_l[..., j] G_l``, in float32.
  Memory is linear in depth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.kernels.layer_mix import layer_dots, layer_mix
from vidlatent.parallel.sharding import constrain

__all__ = ["Stack", "last_bias", "mix", "pad_routers", "router_weights"]

Params = Any
Shared = Any
_STATE = ("batch", "tokens", "channel")
_BUFFER = ("time", *_STATE)
_NEVER = -1e30  # a logit with weight 0 that, unlike -inf, has a gradient of 0 and no NaN


@dataclasses.dataclass(frozen=True)
class Stack:
    """A stack of equal layers as pure functions; ``shared`` is the same for all layers.

    Attributes:
      inputs: ``(params of a layer, X_l, shared) -> U_l`` float32 ``[B, N, D]``.
      block: ``(params of a layer, X_l, mixture, shared) -> X_{l+1}``.
      normed: mix ``U_j`` in place of ``X_j``, so that the mixture is what keys and values read.
      stride: read only every such source, from ``X_0`` on, and always the last; an ablation, which
        saves no memory here.
    """

    inputs: Callable[[Params, jax.Array, Shared], jax.Array]
    block: Callable[[Params, jax.Array, jax.Array, Shared], jax.Array]
    normed: bool = False
    stride: int = 1

    def unrolled(
        self, params: Params, routers: Sequence[Mapping[str, jax.Array]], x: jax.Array, shared: Any
    ) -> tuple[jax.Array, list[dict[str, jax.Array]]]:
        """The result ``X_L``, and each layer's ``weights`` and ``fused`` mixture.

        Args:
          params: every layer's parameters, stacked on the first axis.
          routers: ``{'kernel': [D, l + 1], 'bias': [l + 1]}`` of the layers ``l = 1 ...``, and
            perhaps a ``'gate'``, see ``router_weights``.
          x: ``X_0`` ``[B, N, D]``.
        """
        sources, seen = [], []
        for layer in range(len(routers) + 1):
            own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params)
            sources.append(self._source(own, x, shared))
            # Layer 0 has one source, X_0 itself.
            weights = jnp.ones((*x.shape[:2], 1), jnp.float32)
            if layer:
                read = self.inputs(own, x, shared)
                weights = router_weights(read, routers[layer - 1], stride=self.stride)
            fused = mix(weights, sources)
            x = self.block(own, x, fused, shared)
            seen.append({"weights": weights, "fused": fused, "state": x})
        return x, seen

    def scanned(self, params: Params, routers: Params, x: jax.Array, shared: Shared) -> jax.Array:
        """``X_L`` with routers of ``pad_routers``: ``{'kernel': [L, D, L], 'bias': [L, L]}``."""
        return self._forward(params, routers, x, shared)[0]

    def recomputed(
        self, params: Params, routers: Params, x: jax.Array, shared: Shared
    ) -> jax.Array:
        """As ``scanned``, with the backward pass described above."""
        run = jax.custom_vjp(self.scanned)
        run.defvjp(self._kept, self._backward)
        return run(params, routers, x, shared)

    def memory_weights(
        self, params: Params, routers: Params, x: jax.Array, shared: Shared, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Weights of the sources in ``scanned``: largest and mean over tokens, two ``[L, L]``.

        Row ``l`` belongs to layer ``l``; later sources have weight 0. ``rows`` ``[B]`` is 0 for
        samples that do not count, else 1.
        """
        rows = rows.astype(jnp.float32)[:, None, None]

        def look(weights):
            total = jnp.sum(rows) * weights.shape[1]
            return jnp.max(weights * rows, (0, 1)), jnp.sum(weights * rows, (0, 1)) / total

        return self._forward(params, routers, x, shared, look)[3]

    def _source(self, own: Params, x: jax.Array, shared: Any) -> jax.Array:
        return self.inputs(own, x, shared).astype(x.dtype) if self.normed else x

    def _weights(self, own: Params, router: Params, x: jax.Array, shared: Any, layer: Any) -> Any:
        return router_weights(self.inputs(own, x, shared), router, layer, self.stride)

    def _forward(self, params, routers, x, shared, look=lambda weights: None):
        """``X_L``, the buffer of sources, layers' inputs if they differ, and what ``look`` gave."""
        depth = routers["bias"].shape[0]

        def step(carry, item):
            # Left alone, the partitioner would shard the carry like the op that produced it, by
            # channels on a tensor axis, and every layer would gather the whole buffer.
            x, buffer = constrain(carry[0], _STATE), constrain(carry[1], _BUFFER)
            layer, own, router = item
            source = self._source(own, x, shared)
            buffer = constrain(lax.dynamic_update_index_in_dim(buffer, source, layer, 0), _BUFFER)
            weights = self._weights(own, router, x, shared, layer)
            # Slots of later layers are zeros; the kernel need not fetch them.
            fused = _mixture(buffer, weights, layer + 1)
            out = self.block(own, x, fused, shared)
            # With ``normed`` the buffer holds U_l, so the backward pass needs X_l besides.
            return (out, buffer), (x if self.normed else None, look(weights))

        x = constrain(x, _STATE)
        buffer = constrain(jnp.zeros((depth, *x.shape), x.dtype), _BUFFER)
        items = (jnp.arange(depth), params, routers)
        (x, buffer), (states, seen) = lax.scan(step, (x, buffer), items)
        return x, buffer, states, seen

    def _kept(self, params, routers, x, shared):
        out, buffer, states, _ = self._forward(params, routers, x, shared)
        return out, (params, routers, buffer, states, shared)

    def _backward(self, kept, cotangent):
        params, routers, buffer, states, shared = kept
        depth, tokens = buffer.shape[0], buffer.shape[1:3]

        def step(carry, item):
            grad, mixtures, spread, to_shared = carry
            layer, own, router, x = item
            # Recompute the layer from its input.
            weights, to_weights = jax.vjp(
                lambda *args: self._weights(*args, layer), own, router, x, shared
            )
            fused = _mixture(buffer, weights, layer + 1)
            _, to_block = jax.vjp(self.block, own, x, fused, shared)
            own_grad, x_grad, fused_grad, shared_grad = to_block(grad)
            # The cotangent of weight j is <X_j, G_l>: [B, N, L]
            more = to_weights(layer_dots(buffer, fused_grad, 0, layer + 1))
            # Higher layers have stored the cotangents of their mixtures already.
            mixtures = lax.dynamic_update_index_in_dim(mixtures, fused_grad, layer, 0)
            spread = lax.dynamic_update_index_in_dim(spread, weights, layer, 0)
            # Weights that all layers give to this one's source: [L, B, N, L] -> [B, N, L]
            column = jnp.moveaxis(lax.dynamic_index_in_dim(spread, layer, 3, False), 0, -1)
            total = layer_mix(mixtures, column, layer, depth)  # of this layer's source
            own_grad = jax.tree.map(jnp.add, own_grad, more[0])
            to_shared = jax.tree.map(_accumulate, to_shared, shared_grad, more[3])
            if self.normed:
                _, to_source = jax.vjp(self._source, own, x, shared)
                own_more, total, shared_more = to_source(total.astype(x.dtype))
                own_grad = jax.tree.map(jnp.add, own_grad, own_more)
                to_shared = jax.tree.map(_accumulate, to_shared, shared_more)
            # A state is read three ways: by later mixtures, by its own block, and by its own
            # router.
            total = total.astype(jnp.float32) + x_grad.astype(jnp.float32)
            total = total + more[2].astype(jnp.float32)
            carry = (total.astype(x.dtype), constrain(mixtures, _BUFFER), spread, to_shared)
            return carry, (own_grad, more[1])

        # All layers add to these cotangents, so they are summed in float32.
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shared)
        spread = jnp.zeros((depth, *tokens, depth), jnp.float32)
        start = (cotangent, jnp.zeros_like(buffer), spread, zeros)
        # Without ``normed`` the final buffer is the layers' inputs: nothing else was saved.
        items = (jnp.arange(depth), params, routers, buffer if states is None else states)
        (grad, _, _, to_shared), (to_params, to_routers) = lax.scan(
            step, start, items, reverse=True
        )
        to_shared = jax.tree.map(lambda a, b: a.astype(b.dtype), to_shared, shared)
        return to_params, to_routers, grad, to_shared


def _accumulate(total: jax.Array, *parts: jax.Array) -> jax.Array:
    return total + sum(part.astype(jnp.float32) for part in parts)


def _mixture(states: jax.Array, weights: jax.Array, end: jax.Array) -> jax.Array:
    """The mixture of the first ``end`` slots of a buffer ``[L, B, N, D]``, in its dtype."""
    return layer_mix(states, weights, 0, end).astype(states.dtype)


def mix(weights: jax.Array, states: Sequence[jax.Array]) -> jax.Array:
    """The mixture ``sum_j A[..., j] X_j`` for each token, accumulated in float32.

    Args:
      weights: ``[B, N, J]``.
      states: ``J`` arrays ``[B, N, D]``.

    Returns:
      ``[B, N, D]`` in the states' dtype.
    """
    parts = zip(jnp.split(weights, len(states), axis=-1), states, strict=True)
    return sum(a * x.astype(jnp.float32) for a, x in parts).astype(states[0].dtype)


def router_weights(
    x: jax.Array,
    router: Mapping[str, jax.Array],
    last: jax.Array | int | None = None,
    stride: int = 1,
) -> jax.Array:
    """Softmax over sources of ``x W + b`` in float32: ``[B, N, D] -> [B, N, J]``.

    Args:
      router: ``{'kernel': [D, J], 'bias': [J]}``, and perhaps a scalar ``'gate'``: the share of the
        softmax, while the last source has the rest. At gate 0 there is no memory.
      last: the last source that exists; later ones get weight 0. None for all.
      stride: sources other than the last whose number is no multiple of it get weight 0.
    """
    # HIGHEST: by default TPUs would multiply in bfloat16 and GPUs in TF32.
    logits = jnp.einsum(
        "bnd,dj->bnj",
        x.astype(jnp.float32),
        router["kernel"].astype(jnp.float32),
        precision=lax.Precision.HIGHEST,
    )
    logits = logits + router["bias"].astype(jnp.float32)
    source = jnp.arange(logits.shape[-1])
    if last is not None:
        logits = jnp.where(source <= last, logits, _NEVER)
    last = source[-1] if last is None else last
    if stride > 1:
        logits = jnp.where((source % stride == 0) | (source == last), logits, _NEVER)
    weights = jax.nn.softmax(logits, axis=-1)
    if "gate" in router:
        gate = router["gate"].astype(jnp.float32)
        weights = gate * weights + (1 - gate) * (source == last)
    return weights


def pad_routers(routers: Sequence[Mapping[str, jax.Array]], width: int) -> dict[str, jax.Array]:
    """Routers of all layers, including layer 0, padded to one size and stacked for a scan.

    ``{'kernel': [L, D, L], 'bias': [L, L]}``, and ``'gate'`` ``[L]`` where they have one.
    """
    depth = len(routers) + 1
    kernels, biases = [jnp.zeros((width, depth))], [jnp.zeros((depth,))]
    for router in routers:
        # Columns of sources that do not exist for this layer; ``last`` gives them weight 0.
        rest = (0, depth - router["bias"].shape[0])
        kernels.append(jnp.pad(router["kernel"], ((0, 0), rest)))
        biases.append(jnp.pad(router["bias"], rest))
    found = {"kernel": jnp.stack(kernels), "bias": jnp.stack(biases)}
    if routers and "gate" in routers[0]:
        found["gate"] = jnp.stack([jnp.zeros(()), *(router["gate"] for router in routers)])
    return found


def last_bias(sources: int, share: float) -> float:
    """Bias that gives the last of ``sources`` the weight ``share`` if the other biases are 0.

    ``share`` 0 means uniform weights (bias 0).
    """
    if not 0 <= share < 1:
        raise VidlatentError(
            f"memory_share {share}: the previous layer's weight lies in [0, 1), 0 for uniform."
        )
    # share = e^b / (e^b + sources - 1), solved for b.
    return math.log((sources - 1) * share / (1 - share)) if share else 0.0
