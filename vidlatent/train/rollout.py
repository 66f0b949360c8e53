"""Samples of a policy: drawn, judged and learned from in one compiled loop (MixGRPO).

A random step is taken twice: when a sample is drawn, and when its likelihood is asked for again
to learn from it. Both are turns of the same loop, at the same shapes, and the loop's body is
compiled once: with unchanged parameters the two likelihoods are equal to the bit, and their ratio
is exactly 1. Elsewhere the ratio's rounding is as large as the clip range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from vidlatent.diffusion.policy import (
    clipped_loss,
    group_advantages,
    mean_distance,
    ratio_distance,
)
from vidlatent.diffusion.sde import log_prob
from vidlatent.parallel.sharding import constrain
from vidlatent.sample.judge import Judge, Shown, repeat_shown
from vidlatent.sample.policy import Policy, repeat_conditions

__all__ = ["Problem", "Rollout", "Samples", "Tally"]

_LATENT_AXES = ("batch", "time", "width", "width", "channel")
# (state, gradients, loss) -> (state, report)
Update = Callable[[Any, Any, jax.Array], tuple[Any, dict[str, jax.Array]]]


class Problem(NamedTuple):
    """The prompts of an iteration and everything random about it.

    Attributes:
      conditions: of P prompts.
      shown: to decoder and rewards, of P prompts.
      mask: ``[P]``, 0 for padding.
      first, length: the window, int32 scalars.
      start_key, noise_key: of the starts, and of the noise in the window's steps.
    """

    conditions: Any
    shown: Shown
    mask: jax.Array
    first: jax.Array
    length: jax.Array
    start_key: jax.Array
    noise_key: jax.Array


class Samples(NamedTuple):
    """What is kept of all samples; ``n`` parts of ``b = P m`` samples, a prompt's next to another.

    Attributes:
      states: ``[n, w + 1, b, t, h, w, c]``, before the window's steps and after each.
      log_probs: ``[n, w, b]``, when they were drawn.
      scores: ``[n, b, R]``.
    """

    states: jax.Array
    log_probs: jax.Array
    scores: jax.Array


class Tally(NamedTuple):
    """Sums over what was learned from, weighed like the loss of each update.

    Attributes:
      loss: of the current update.
      clipped: share whose ratio left the clip range.
      distance: ``|log ratio|``.
      kl: before its weight.
      first_error: greatest ``|ratio - 1|`` before the first update; exactly 0.
    """

    loss: jax.Array
    clipped: jax.Array
    distance: jax.Array
    kl: jax.Array
    first_error: jax.Array

    def add(self, sums: Sequence[jax.Array], first_error: jax.Array) -> Tally:
        """With more of the first four, and an error that may be the greatest."""
        more = (total + new for total, new in zip(self[:4], sums, strict=True))
        return Tally(*more, jnp.maximum(self.first_error, first_error.astype(jnp.float32)))


class Rollout:
    """The loop of one iteration.

    Args:
      policy: the generator's steps.
      judge: decoder and rewards.
      rl: ``config.rl``.
      size: steps of a full window.
      weights: of the judge's scores.
      merge: ``(what is trained, frozen networks) -> the model's parameters``.
    """

    def __init__(
        self,
        policy: Policy,
        judge: Judge,
        rl: ConfigDict,
        size: int,
        weights: tuple[float, ...],
        merge: Callable[[Any, Mapping[str, Any]], Any],
    ):
        self.policy, self._judge, self._rl, self._size = policy, judge, rl, size
        self._weights, self._merge = weights, merge
        self._members = rl.group // rl.parts  # of a prompt in a part

    def run(
        self, state: Any, problem: Problem, frozen: Mapping[str, Any], update: Update
    ) -> tuple[Any, Samples, Tally, dict[str, jax.Array]]:
        """Draw, judge, and learn; returns the new state, what was drawn, sums, and the report.

        Args:
          state: training state; ``step`` is not advanced.
          problem: what to draw.
          frozen: parameters of the frozen networks; ``reference`` if the KL term asks for it.
          update: one step of the optimizer.
        """
        parts, updates = self._rl.parts, self._rl.updates
        samples = self._prepare(self._merge(state["params"], frozen), problem)
        gradients = jax.tree.map(jnp.zeros_like, state["params"])
        tally = Tally(*(jnp.zeros((), jnp.float32) for _ in Tally._fields))
        # On-policy the parameters do not change inside the loop, and so are not carried by it.
        carried = None
        if updates > 1:
            shapes = jax.eval_shape(lambda s: update(s, gradients, tally.loss)[1], state)
            report = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            carried = (state, report)

        def turn(carry, number):
            carried, samples, gradients, tally = carry
            held = state if carried is None else carried[0]
            place = _Place(number, parts, parts // updates)
            samples, gradients, tally = self._take_window(
                held["params"], frozen, problem, place, samples, gradients, tally
            )
            samples = self._finish(held["params"], frozen, problem, place, samples)
            if carried is not None:
                carried, gradients, tally = lax.cond(
                    place.ends_update,
                    lambda: self._update(update, carried, gradients, tally),
                    lambda: (carried, gradients, tally),
                )
            return (carried, samples, gradients, tally), None

        carry = (carried, samples, gradients, tally)
        carry, _ = lax.scan(turn, carry, jnp.arange(2 * parts))
        carried, samples, gradients, tally = carry
        if carried is None:
            carried = update(state, gradients, tally.loss)
        return carried[0], samples, tally, carried[1]

    @staticmethod
    def _update(update: Update, carried: Any, gradients: Any, tally: Tally) -> Any:
        carried = update(carried[0], gradients, tally.loss)
        zeros = jax.tree.map(jnp.zeros_like, gradients)
        return carried, zeros, tally._replace(loss=jnp.zeros_like(tally.loss))

    def _prepare(self, params: Any, problem: Problem) -> Samples:
        """The states at the window's first step; nothing else has been drawn yet."""
        prompts, parts, members = len(problem.mask), self._rl.parts, self._members
        shape, window = self.policy.shape, self._size

        def walk(conditions, noise):
            return self.policy.walk(params, conditions, noise, 0, problem.first)

        if self._rl.same_start:
            # Members that begin alike are alike up to the window: one of them is enough.
            keys = _member_keys(problem.start_key, prompts, jnp.zeros(1, jnp.int32))
            begun = walk(problem.conditions, _draw(keys, shape))
            begun = jnp.broadcast_to(
                jnp.repeat(begun, members, axis=0)[None], (parts, prompts * members, *shape)
            )
        else:
            conditions = repeat_conditions(problem.conditions, members)

            def one(part):
                own = part * members + jnp.arange(members)
                keys = _member_keys(problem.start_key, prompts, own)
                return walk(conditions, _draw(keys, shape))

            begun = lax.map(one, jnp.arange(parts))
        rows = prompts * members
        states = jnp.zeros((parts, window + 1, rows, *shape), begun.dtype).at[:, 0].set(begun)
        return Samples(
            states,
            jnp.zeros((parts, window, rows), jnp.promote_types(begun.dtype, jnp.float32)),
            jnp.zeros((parts, rows, len(self._weights)), jnp.float32),
        )

    def compare(self, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Advantages ``[n, b]`` from scores ``[n, b, R]``, and spreads ``[P, R]`` of the groups."""
        parts, rows, rewards = scores.shape
        members = self._members
        # [n, P m, R] -> [P, n m, R]
        grouped = scores.reshape(parts, rows // members, members, rewards)
        grouped = jnp.moveaxis(grouped, 0, 1).reshape(rows // members, -1, rewards)
        found, _ = group_advantages(
            grouped,
            self._weights,
            unbiased=self._rl.advantage_std == "unbiased",
            eps=self._rl.advantage_eps,
        )
        found = found.reshape(rows // members, parts, members)
        return jnp.moveaxis(found, 1, 0).reshape(parts, rows), grouped.std(axis=1)

    def _take_window(
        self,
        trained: Any,
        frozen: Mapping[str, Any],
        problem: Problem,
        place: _Place,
        samples: Samples,
        gradients: Any,
        tally: Tally,
    ) -> tuple[Samples, Any, Tally]:
        """The window's random steps of a part: drawn at the first visit, learned from at the next.

        All of it is one loop body. Only the backward pass is left out when a sample is drawn.
        """
        members = self._members
        conditions = repeat_conditions(problem.conditions, members)
        own = place.part * members + jnp.arange(members)
        keys = _member_keys(problem.noise_key, len(problem.mask), own)
        advantage = self.compare(samples.scores)[0][place.part]
        rows = jnp.repeat(problem.mask, members)
        # Of all samples of this update, each once for each step of the window.
        count = rows.sum() * place.parts_of_update * problem.length

        def step(carry, number):
            samples, gradients, tally = carry
            index = jnp.minimum(problem.first + number, self.policy.steps - 1)
            inside = number < problem.length
            learns = place.learns & inside
            noise = _draw(jax.vmap(jax.random.fold_in, (0, None))(keys, index), self.policy.shape)
            now, kept = (samples.states[place.part, number + k] for k in (0, 1))
            drawn = _Step(now, kept, noise, index, inside, place.learns)
            evaluate = self._make_evaluation(frozen, conditions, drawn, learns)
            (likely, far), pull, after = jax.vjp(evaluate, trained, has_aux=True)
            before = jnp.where(place.learns, samples.log_probs[place.part, number], likely)
            weight = jnp.where(learns, rows / jnp.maximum(count, 1.0), 0.0)
            cotangents, found = self._lose(likely, far, before, advantage, weight)
            gradients = lax.cond(
                learns,
                lambda total: jax.tree.map(jnp.add, total, pull(cotangents)[0]),
                lambda total: total,
                gradients,
            )
            samples = samples._replace(
                states=samples.states.at[place.part, number + 1].set(after),
                log_probs=samples.log_probs.at[place.part, number].set(before),
            )
            error = jnp.abs(jnp.exp(likely - before) - 1.0) * (weight > 0)
            first = jnp.where(place.first_update, error.max(), 0.0)
            return (samples, gradients, tally.add(found, first)), None

        carry = (samples, gradients, tally)
        return lax.scan(step, carry, jnp.arange(self._size))[0]

    def _make_evaluation(
        self, frozen: Mapping[str, Any], conditions: Any, step: _Step, learns: jax.Array
    ) -> Callable[[Any], tuple[tuple[jax.Array, jax.Array], jax.Array]]:
        """``trained -> ((likelihood [b], distance to the reference [b]), next state)``."""
        policy, rl = self.policy, self._rl
        reference = self._refer(frozen, conditions, step.now, step.index, learns)

        def evaluate(trained):
            params = self._merge(trained, frozen)
            mean = policy.mean(policy.random, params, conditions, step.now, step.index)
            weights = policy.random.at(step.index, step.now.dtype)
            # A published window may end early, where there may be no noise.
            std = jnp.where(step.inside, weights.std, 1.0)
            # Branches and not a choice between values: those would be fused into what follows
            # and rounded anew there, so that what is used would not be what is stored.
            after = lax.cond(
                step.again,
                lambda middle: step.kept,
                lambda middle: middle + std * step.noise,
                lax.stop_gradient(mean),
            )
            after = constrain(after, _LATENT_AXES)
            far = jnp.zeros(len(step.now), mean.dtype)
            if reference is not None:
                scale = std if rl.kl_kind == "exact" else weights.spread
                far = mean_distance(mean, reference, jnp.where(step.inside, scale, 1.0))
            return (log_prob(after, mean, std), far), after

        return evaluate

    def _refer(self, frozen, conditions, state, index, learns) -> jax.Array | None:
        """The reference's mean of a step, where the KL term asks for it; None without."""
        if not self._rl.kl_weight or self._rl.kl_kind == "log_ratio":
            return None

        def mean():
            return self.policy.mean(
                self.policy.random, frozen["reference"], conditions, state, index
            )

        return lax.cond(learns, mean, lambda: jnp.zeros_like(state))

    def _lose(self, likely, far, before, advantage, weight) -> tuple[Any, tuple[Any, ...]]:
        """Gradients of the loss with respect to likelihood and KL ``[b]``, and sums to report."""
        rl = self._rl

        def loss(likely, far):
            log_ratio = likely - before
            each = clipped_loss(log_ratio, advantage, rl.clip, rl.advantage_clip)
            if rl.kl_kind == "log_ratio":
                far = ratio_distance(log_ratio)
            total = each + rl.kl_weight * far if rl.kl_weight else each
            out = jnp.abs(jnp.exp(log_ratio) - 1.0) > rl.clip
            report = (jnp.sum(weight * x) for x in (out, jnp.abs(log_ratio), far))
            return jnp.sum(weight * total), tuple(report)

        (value, report), cotangents = jax.value_and_grad(loss, (0, 1), has_aux=True)(likely, far)
        return cotangents, tuple(x.astype(jnp.float32) for x in (value, *report))

    def _finish(
        self,
        trained: Any,
        frozen: Mapping[str, Any],
        problem: Problem,
        place: _Place,
        samples: Samples,
    ) -> Samples:
        """The steps after the window and the scores of a part that has just been drawn."""
        members, prompts = self._members, len(problem.mask)

        def judge():
            params = self._merge(trained, frozen)
            after = samples.states[place.part, problem.length]
            conditions = repeat_conditions(problem.conditions, members)
            begin = problem.first + problem.length
            latent = self.policy.walk(params, conditions, after, begin, self.policy.steps)
            shown = repeat_shown(problem.shown, prompts, members)
            return self._judge.score(frozen, latent, shown)

        scores = lax.cond(place.learns, lambda: samples.scores[place.part], judge)
        return samples._replace(scores=samples.scores.at[place.part].set(scores))


class _Step(NamedTuple):
    """A random step of a part.

    Attributes:
      now, kept: the state before it, and the one after it if it was taken before.
      noise: standard normal, for the first time.
      index: its number in the sampler.
      inside: whether it lies in the window.
      again: whether it was taken before.
    """

    now: jax.Array
    kept: jax.Array
    noise: jax.Array
    index: jax.Array
    inside: jax.Array
    again: jax.Array


class _Place:
    """Where a turn of the loop stands: first every part is drawn, then every part is visited again.

    Attributes:
      part: number of the part.
      learns: whether it is learned from.
      first_update, ends_update: whether no update came before, and whether one follows.
      parts_of_update: how many parts an update learns from.
    """

    def __init__(self, number: jax.Array, parts: int, parts_of_update: int):
        self.part, self.learns = number % parts, number >= parts
        self.parts_of_update = parts_of_update
        self.first_update = number < parts + parts_of_update
        self.ends_update = self.learns & ((self.part + 1) % parts_of_update == 0)


def _member_keys(key: jax.Array, prompts: int, members: jax.Array) -> jax.Array:
    """A key for each sample ``[P m]``, of its prompt's row and its number in the group alone."""
    rows = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(prompts))
    keys = jax.vmap(lambda row: jax.vmap(lambda m: jax.random.fold_in(row, m))(members))(rows)
    return keys.reshape(-1)


def _draw(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal ``[B, ...]`` float32, each sample from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
