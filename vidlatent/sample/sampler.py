"""Latents from noise and conditions: the compiled loop of one generator at one size.

What a sample becomes depends on its seed and its conditions, not on the batch that it is in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from vidlatent.diffusion import (
    Diffusion,
    Flow,
    draw_starting_noise,
    make_sampler,
    make_schedule,
    sample,
    sampler_options,
)
from vidlatent.diffusion.caching import CacheRule, cache_denoiser
from vidlatent.diffusion.guidance import count_evaluations, guidance_scales, guide, guide_batched
from vidlatent.errors import VidlatentError
from vidlatent.latents.inputs import absent
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import replicated

__all__ = ["LatentSampler", "latent_psnr"]


class LatentSampler:
    """``config.sampler`` for one generator and one latent size.

    Args:
      model: the generator.
      schedule: ``config.diffusion.schedule`` as a dict.
      sampler: ``config.sampler`` as a dict.
      shape: latent ``(t, h, w, c)``.

    Attributes:
      plan: the solver's steps.
      scales: guidance at each step and link, ``[N, K]``.
      nfe: evaluations of the network for one sample; a guided step has one for each branch.
    """

    def __init__(
        self,
        model: Any,
        schedule: Mapping[str, Any],
        sampler: Mapping[str, Any],
        shape: Sequence[int],
    ):
        self.model, self.shape = model, tuple(shape)
        options = dict(sampler)
        self._guidance, self._cache = options.pop("guidance"), options.pop("cache")
        options.pop("fp8")  # the parameters say it
        self._caches = options.pop("cache_conditions") and model.caches_conditions
        noise = make_schedule(schedule)
        self._check_variance(noise)
        if isinstance(noise, Flow):
            noise = noise.for_tokens(math.prod(shape[:3]) // math.prod(model.patch))
        options, unread = sampler_options(noise, options)
        if unread:
            keys = ", ".join(f"config.sampler.{name}" for name in unread)
            logging.warning("%s: not read by sampler %s", keys, options["name"])
        self.plan = make_sampler(noise, options)
        scales, interval = self._guidance["scales"], self._guidance["interval"]
        if scales:
            self.scales = guidance_scales(self.plan.levels, scales, tuple(interval) or None)
        else:
            self.scales = np.ones((self.plan.nfe, 0))
        self.drops = self._branches()
        self.nfe = count_evaluations(self.scales)
        self._compiled: Any = None

    def _check_variance(self, schedule: Flow | Diffusion) -> None:
        learned = schedule.variance == "learned_range"
        if learned != self.model.learned_variance:
            raise VidlatentError(
                f"config.diffusion.schedule.variance is {schedule.variance!r}, but this generator "
                f"{'learns' if self.model.learned_variance else 'does not learn'} a variance: set "
                "it to " + ("'learned_range'." if not learned else "'fixed_small'.")
            )

    def _branches(self) -> tuple[tuple[str, ...], ...]:
        """Conditions that each branch does without, from the least to the most conditioned."""
        links, drops = self.scales.shape[1], self._guidance["drops"]
        reads = self.model.reads
        if not links:
            return ((),)
        if not drops and links == 1:
            drops = (reads,)
        if len(drops) != links:
            raise VidlatentError(
                f"config.sampler.guidance.drops has {len(drops)} entries for {links} scales: name "
                "for each the conditions that its less conditioned side does without."
            )
        for name in {name for names in drops for name in names}:
            if name not in reads:
                raise VidlatentError(
                    f"config.sampler.guidance.drops names {name!r}, but the generator reads "
                    f"{', '.join(reads) or 'nothing'}."
                )
        return (*map(tuple, drops), ())

    def __call__(
        self, params: Any, seeds: Sequence[int], conditions: Mapping[str, Any]
    ) -> np.ndarray:
        """Standardised latents ``[B, t, h, w, c]`` float32, the same on every process.

        Args:
          params: of the generator, on a mesh.
          seeds: one a sample, below 2**32.
          conditions: by name, ``[B, ...]`` each, or None for none in the whole batch; the same
            names are None in every call.
        """
        leaf = jax.tree.leaves(params)[0]
        if self._compiled is None:
            placed = jax.tree.map(lambda leaf: leaf.sharding, params)
            whole = replicated(leaf.sharding.mesh)
            self._whole = whole
            self._compiled = jax.jit(
                self.run, in_shardings=(placed, whole, whole), out_shardings=whole
            )
        seeds = np.asarray(seeds, np.uint32)
        inputs = to_global((seeds, dict(conditions)), self._whole)
        return np.asarray(self._compiled(params, *inputs))

    def run(self, params: Any, seeds: jax.Array, conditions: Mapping[str, Any]) -> jax.Array:
        """The same as a traceable function of arrays."""
        keys = jax.vmap(jax.random.key)(seeds)
        starts, steps = (jax.vmap(lambda k, n=n: jax.random.fold_in(k, n))(keys) for n in (0, 1))
        x = draw_starting_noise(starts, (len(seeds), *self.shape))
        denoise, state = self.denoiser(params, conditions, len(seeds)), None
        if self._cache["threshold"]:
            rule = CacheRule(**self._cache, steps=self.plan.nfe)
            denoise, state = cache_denoiser(denoise, lambda x, t, index: x, rule, x)
        return sample(self.plan, denoise, x, steps, state=state).x

    def denoiser(self, params: Any, conditions: Mapping[str, Any], batch: int) -> Any:
        """The guided ``denoise(x [B, ...], t [B], index)`` of ``diffusion.samplers.sample``."""
        branches = [self._branch(conditions, names, batch) for names in self.drops]
        variables = {"params": params}

        def network(x, t, index, branch):
            del index
            return self.model.apply(variables, x, t, **branch, method="denoise")

        told = any(conditions[name] is not None for name in self.model.reads)

        def with_cache(branch):
            if not (self._caches and told):
                return branch
            cache = self.model.apply(variables, **branch, method="cache_conditions")
            return {**branch, "condition_cache": cache}

        channels = self.shape[-1] if self.model.learned_variance else None
        how = {"rescale": self._guidance["rescale"], "channels": channels}
        if len(branches) == 1 or not self._guidance["batched"]:
            branches = [with_cache(branch) for branch in branches]
            return guide(network, branches, self.scales, batched=False, **how)
        together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *branches)
        alone = bool(np.any(np.all(self.scales == 1.0, axis=1)))
        positive = with_cache(branches[-1]) if alone else None
        return guide_batched(network, with_cache(together), positive, self.scales, **how)

    def _branch(
        self, conditions: Mapping[str, Any], dropped: Sequence[str], batch: int
    ) -> dict[str, Any]:
        """Arguments of ``denoise`` for one branch."""
        lacking = absent(conditions)
        drop = {}
        for name in self.model.reads:
            drop[name] = jnp.full((batch,), name in dropped)
            if name in lacking:
                drop[name] |= lacking[name]
        given = dict(conditions)
        if "null_text" in given:  # one for all samples: branches are joined
            given["null_text"] = jax.tree.map(
                lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:])), given["null_text"]
            )
        return {"conditions": given, "drop": drop}


def latent_psnr(latents: np.ndarray, exact: np.ndarray) -> float:
    """PSNR of latents against exact ones, in dB of the range of the latter."""
    error = np.mean(np.square(latents.astype(np.float64) - exact))
    return float(20 * np.log10(np.ptp(exact)) - 10 * np.log10(max(error, 1e-30)))
