"""Latents from noise and conditions: the compiled sampling loop of one generator at one size.

A sample depends on its seed and its conditions, not on the batch that it is in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vidlatent.diffusion import (
    Carry,
    Diffusion,
    Flow,
    SamplerPlan,
    advance,
    draw_starting_noise,
    make_sampler,
    make_schedule,
    sample,
    sampler_options,
    start,
)
from vidlatent.diffusion.caching import CacheRule, cache_denoiser
from vidlatent.diffusion.guidance import count_evaluations, guidance_scales, guide, guide_batched
from vidlatent.errors import VidlatentError
from vidlatent.latents.inputs import missing_condition_masks
from vidlatent.models.generators.base import Generator
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import replicated

__all__ = ["LatentSampler", "latent_psnr", "plan_sampler"]


# Keys of ``config.sampler`` that are about the loop around the solver, not about the solver.
_OF_THE_LOOP = ("guidance", "cache", "cache_conditions", "residual_dtype", "fp8", "force")


def plan_sampler(config: ConfigDict, model: Generator, grid: Sequence[int]) -> SamplerPlan:
    """The steps of ``config.sampler`` for latents of ``grid`` (frames, rows, columns)."""
    schedule = make_schedule(config.diffusion.schedule)
    if isinstance(schedule, Flow):
        # As in training: the shift may grow with the number of tokens.
        schedule = schedule.for_tokens(math.prod(grid) // math.prod(model.patch))
    known = {k: v for k, v in config.sampler.items() if k not in _OF_THE_LOOP}
    options, unread = sampler_options(schedule, known)
    if unread:
        keys = ", ".join(f"config.sampler.{name}" for name in unread)
        logging.warning("%s: not read by sampler %s", keys, config.sampler.name)
    return make_sampler(schedule, options | {"steps": config.sampler.steps})


class LatentSampler:
    """``config.sampler`` for one generator and one latent size.

    Args:
      model: the generator.
      config: of its run; read are ``diffusion.schedule`` and ``sampler``.
      shape: latent ``(t, h, w, c)``.

    Attributes:
      model: the generator, with its residual stream in ``config.sampler.residual_dtype``.
      plan: the solver's steps.
      scales: guidance scales of each step, ``[N, K]``, one for each pair of neighbouring branches.
      drops: for each of the ``K + 1`` branches, the conditions that it goes without.
      nfe: evaluations of the network for one sample; a guided step has one for each branch.
      told: guidance scale that is an input of the generator; None if it has no such input.
    """

    def __init__(self, model: Generator, config: ConfigDict, shape: Sequence[int]):
        states = config.sampler.residual_dtype
        self.model = model.with_residual_dtype(model.dtype if states == "auto" else states)
        self.shape, self._config = tuple(shape), config.sampler
        self._check_variance(make_schedule(config.diffusion.schedule))
        self.plan = plan_sampler(config, model, shape[:3])
        guidance = config.sampler.guidance
        self.told = _read_told(model, guidance.scales)
        if guidance.scales and self.told is None:
            interval = tuple(guidance.interval) or None
            self.scales = guidance_scales(self.plan.levels, guidance.scales, interval)
        else:
            # One branch, so there is no pair to weigh.
            self.scales = np.ones((self.plan.nfe, 0))
        self.drops = self._branches()
        self.nfe = count_evaluations(self.scales)
        self._compiled: dict[Any, Any] = {}

    def _check_variance(self, schedule: Flow | Diffusion) -> None:
        learned = schedule.variance == "learned_range"
        if learned != self.model.learned_variance:
            raise VidlatentError(
                f"config.diffusion.schedule.variance is {schedule.variance!r}, but this generator "
                f"{'learns' if self.model.learned_variance else 'does not learn'} a variance: set "
                "it to " + ("'learned_range'." if not learned else "'fixed_small'.")
            )

    def _branches(self) -> tuple[tuple[str, ...], ...]:
        """Conditions that each branch goes without, from the least to the most conditioned."""
        scales, drops = self.scales.shape[1], self._config.guidance.drops
        reads = self.model.reads
        if not scales:
            return ((),)
        if not drops and scales == 1:
            # Usual guidance: the other branch goes without any condition.
            drops = (reads,)
        if len(drops) != scales:
            raise VidlatentError(
                f"config.sampler.guidance.drops has {len(drops)} entries for {scales} scales: name "
                "for each scale the conditions that its less conditioned branch goes without."
            )
        for name in {name for names in drops for name in names}:
            if name not in reads:
                raise VidlatentError(
                    f"config.sampler.guidance.drops names {name!r}, but the generator reads "
                    f"{', '.join(reads) or 'nothing'}."
                )
        return (*map(tuple, drops), ())

    def __call__(
        self,
        params: Any,
        seeds: Sequence[int],
        conditions: Mapping[str, Any],
        watch: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Standardised latents ``[B, t, h, w, c]`` float32, the same on every process.

        Steps are calls of one compiled program, so that it can be interrupted between them.

        Args:
          params: of the generator, on a mesh.
          seeds: one a sample, below 2**32.
          conditions: by name, ``[B, ...]`` each, or None for none in the whole batch.
          watch: is told after each step how many are done, of how many.
        """
        whole = replicated(jax.tree.leaves(params)[0].sharding.mesh)
        inputs = to_global((np.asarray(seeds, np.uint32), dict(conditions)), whole)
        begin, advance = self._compile(params, inputs, whole)
        carry, branches = begin(params, *inputs)
        for index in range(self.plan.nfe):
            number = to_global(np.int32(index), whole)
            carry = advance(params, inputs[0], carry, branches, number)
            if watch is not None:
                jax.block_until_ready(carry)
                watch(index + 1, self.plan.nfe)
        return np.asarray(carry.x)

    def _compile(self, params: Any, inputs: Any, whole: Any) -> tuple[Any, Any]:
        """Programs for inputs of these shapes: what comes before the steps, and a step."""
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), inputs)
        kind = (tuple(jax.tree.leaves(shapes)), jax.tree.structure(inputs))
        if kind not in self._compiled:
            # Parameters stay sharded as they are; samples are few, so each device has all of them.
            # How keys and values of the conditions are divided is left to the compiler.
            begin = jax.jit(self.begin, out_shardings=(whole, None)).lower(params, *inputs)
            begin = begin.compile()
            carry, branches = begin(params, *inputs)
            number = to_global(np.int32(0), whole)
            step = jax.jit(self.advance, out_shardings=whole)
            step = step.lower(params, inputs[0], carry, branches, number).compile()
            self._compiled[kind] = begin, step
        return self._compiled[kind]

    @property
    def working_bytes(self) -> int | None:
        """Bytes of a device that the loop needs beside its arguments, as the compiler says.

        None before the first call, and where the compiler does not say.
        """
        programs = [program for pair in self._compiled.values() for program in pair]
        found = [program.memory_analysis() for program in programs]
        if not found or any(analysis is None for analysis in found):
            return None
        return max(a.temp_size_in_bytes + a.output_size_in_bytes for a in found)

    def run(self, params: Any, seeds: jax.Array, conditions: Mapping[str, Any]) -> jax.Array:
        """All steps as one traceable function of ``seeds`` uint32 ``[B]``: ``[B, t, h, w, c]``."""
        carry, branches = self.begin(params, seeds, conditions)
        denoise = self.make_denoise(params, branches, carry.x)[0]
        return sample(self.plan, denoise, carry.x, _keys(seeds)[1], state=carry.state).x

    def begin(
        self, params: Any, seeds: jax.Array, conditions: Mapping[str, Any]
    ) -> tuple[Carry, Any]:
        """What comes before the steps: the first carry, and the branches' conditions."""
        x = draw_starting_noise(_keys(seeds)[0], (len(seeds), *self.shape))
        branches = self.join_branches(params, conditions, len(seeds))
        return start(self.plan, x, self.make_denoise(params, branches, x)[1]), branches

    def advance(
        self, params: Any, seeds: jax.Array, carry: Carry, branches: Any, index: jax.Array
    ) -> Carry:
        """Step ``index``, with the branches that ``begin`` has made."""
        denoise = self.make_denoise(params, branches, carry.x)[0]
        return advance(self.plan, denoise, carry, index, _keys(seeds)[1])

    def join_branches(self, params: Any, conditions: Mapping[str, Any], batch: int) -> Any:
        """Arguments of the network for each call in a step: of all branches, or one after another.

        With ``sampler.cache_conditions`` they hold what depends on conditions alone.
        """
        branches = [self._branch(conditions, names, batch) for names in self.drops]
        given = any(conditions[name] is not None for name in self.model.reads)
        caches = self._config.cache_conditions and self.model.caches_conditions and given

        def with_cache(branch):
            if not caches:
                return branch
            variables = {"params": params}
            cache = self.model.apply(variables, **branch, method="cache_conditions")
            return {**branch, "condition_cache": cache}

        if not self._batches:
            return [with_cache(branch) for branch in branches]
        # Joined once here, not in every step: [B, ...] each -> [(K + 1) B, ...]
        together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *branches)
        # Outside the guidance interval the most conditioned branch runs alone.
        some_unguided = bool(np.any(np.all(self.scales == 1.0, axis=1)))
        positive = with_cache(branches[-1]) if some_unguided else None
        return with_cache(together), positive

    @property
    def _batches(self) -> bool:
        """Whether the branches of guidance are one batch."""
        return len(self.drops) > 1 and self._config.guidance.batched

    def make_denoise(
        self, params: Any, branches: Any, x: jax.Array, *, last_learns: bool = False
    ) -> tuple[Any, Any]:
        """The guided ``denoise(x [B, ...], t [B], index)`` of the steps, and its first state.

        Args:
          params: of the generator.
          branches: from ``join_branches``.
          x: a state, for its shape.
          last_learns: only the most conditioned branch has a gradient, for a sampler whose branches
            run one after another (``config.sampler.guidance.batched``).
        """

        def network(x, t, index, branch):
            del index
            # Not only the output is stopped: so nothing is kept for a backward pass.
            stopped = last_learns and branch is not branches[-1]
            own = jax.lax.stop_gradient(params) if stopped else params
            return self.model.apply({"params": own}, x, t, **branch, method="denoise")

        # Guidance is for the prediction; the variance that comes with it is not extrapolated.
        channels = self.shape[-1] if self.model.learned_variance else None
        how = {"rescale": self._config.guidance.rescale, "channels": channels}
        if self._batches:
            denoise = guide_batched(network, *branches, self.scales, **how)
        else:
            denoise = guide(network, branches, self.scales, batched=False, **how)
        if not self._config.cache.threshold:
            return denoise, None
        rule = CacheRule(**self._config.cache, steps=self.plan.nfe)
        # Changes are measured on x itself, which costs no layer of the network.
        return cache_denoiser(denoise, lambda x, t, index: x, rule, x)

    def _branch(
        self, conditions: Mapping[str, Any], dropped: Sequence[str], batch: int
    ) -> dict[str, Any]:
        """Arguments of ``denoise`` for one branch."""
        lacking = missing_condition_masks(conditions, self.model.reads, self.shape[0])
        drop = {}
        for name in self.model.reads:
            # An array also where nothing is dropped: all branches must have one structure.
            drop[name] = jnp.full((batch,), name in dropped)
            if name in lacking:
                drop[name] |= lacking[name]
        given = dict(conditions)
        if self.told is not None:
            given["guidance"] = jnp.full((batch,), self.told, jnp.float32)
        if "null_text" in given:  # one for all samples: branches are joined
            given["null_text"] = jax.tree.map(
                lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:])), given["null_text"]
            )
        return {"conditions": given, "drop": drop}


def _read_told(model: Generator, scales: Sequence[float]) -> float | None:
    if not model.guidance_embed:
        return None
    if len(scales) != 1:
        raise VidlatentError(
            f"config.sampler.guidance.scales={tuple(scales)}: this generator takes its guidance "
            "scale as an input: give one, such as (5.0,)."
        )
    return float(scales[0])


def _keys(seeds: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys of the start and of the noise of the steps, two ``[B]``.

    A key for each sample, so that it does not depend on its batch.
    """
    keys = jax.vmap(jax.random.key)(seeds)
    first, steps = (jax.vmap(lambda k, n=n: jax.random.fold_in(k, n))(keys) for n in (0, 1))
    return first, steps


def latent_psnr(latents: np.ndarray, exact: np.ndarray) -> float:
    """PSNR of ``[B, t, h, w, c]`` latents in dB; the peak is the range of the exact ones."""
    error = np.mean(np.square(latents.astype(np.float64) - exact))
    return float(20 * np.log10(np.ptp(exact)) - 10 * np.log10(max(error, 1e-30)))
