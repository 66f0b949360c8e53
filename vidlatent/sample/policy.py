"""A generator's sampler as a policy: each step can be random, and says how likely its result is.

The steps are those of the sampler that the generator is used with, Euler's or DDIM's, on the same
noise levels and with the same guidance. ``predict_clean`` is where ReFL takes its gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vidlatent.diffusion import make_schedule
from vidlatent.diffusion.prediction import data_weights
from vidlatent.diffusion.sde import RandomSteps, make_random_steps, still, take_mean
from vidlatent.errors import VidlatentError
from vidlatent.sample.sampler import LatentSampler

__all__ = ["Policy", "repeat_conditions"]

_SAMPLERS = ("euler", "ddim")


class Policy:
    """The sampling steps of a generator at one latent size; parameters are arguments.

    Args:
      model: the generator.
      config: of its run; read are ``sampler``, ``diffusion.schedule`` and ``rl``.
      shape: latent ``(t, h, w, c)``.

    Attributes:
      steps: how many there are.
      random, still: weights of the steps with and without noise.

    Raises:
      VidlatentError: ``config.sampler`` names a solver whose steps are not those of a policy.
    """

    def __init__(self, model: Any, config: ConfigDict, shape: Sequence[int]):
        if config.sampler.name not in _SAMPLERS or config.sampler.eta:
            raise VidlatentError(
                f"config.sampler.name={config.sampler.name} with eta {config.sampler.eta:g}: "
                "policy updates train the steps of euler (flow matching) or ddim with eta 0, by "
                "which the generator must then be sampled too: set one of these."
            )
        self.shape = tuple(shape)
        self._model, self._config = model, config
        self.sampler = LatentSampler(model, _quiet(config), shape)
        self._prediction = make_schedule(config.diffusion.schedule).prediction
        grid = self.sampler.plan.grid
        self.steps, self._times = grid.steps, grid.times
        self.still = still(grid, self._prediction)

    @functools.cached_property
    def random(self) -> RandomSteps:
        grid, rl = self.sampler.plan.grid, self._config.rl
        return make_random_steps(grid, self._prediction, rl.noise, rl.eta)

    def evaluate(
        self, params: Any, conditions: Mapping[str, Any], state: jax.Array, index: Any
    ) -> jax.Array:
        """The guided network's output ``[B, t, h, w, c]`` at step ``index``, which may be traced.

        Gradients reach ``params`` through everything, the projections of the conditions included.
        """
        branches = self.sampler.join_branches(params, conditions, len(state))
        denoise = self.sampler.make_denoise(params, branches, state)[0]
        return self._call(denoise, state, index)

    def _call(self, denoise: Any, state: jax.Array, index: Any) -> jax.Array:
        time = jnp.full(len(state), jnp.asarray(self._times, jnp.float32)[index])
        # A learned variance comes after the prediction; a policy's is the step's own.
        return denoise(state, time, index)[..., : self.shape[-1]].astype(state.dtype)

    @functools.cached_property
    def _apart(self) -> LatentSampler:
        """The sampler with the branches of guidance one after another."""
        return LatentSampler(self._model, _quiet(self._config, batched=False), self.shape)

    def predict_clean(
        self, params: Any, conditions: Mapping[str, Any], state: jax.Array, index: Any
    ) -> jax.Array:
        """The clean sample that step ``index`` predicts, ``x0 = z - sigma v`` of a flow.

        With guidance, gradients reach ``params`` through the most conditioned branch alone
        (``f = u + g (c - u)`` with ``u`` stopped), ``g`` times as large as without.

        Args:
          params, conditions: of the generator.
          state: ``[B, t, h, w, c]`` before the step.
          index: of the step; may be traced.
        """
        branches = self._apart.join_branches(params, conditions, len(state))
        denoise = self._apart.make_denoise(params, branches, state, last_learns=True)[0]
        grid = self.sampler.plan.grid
        weights = data_weights(self._prediction, grid.alphas[:-1], grid.sigmas[:-1])
        of_state, of_output = (jnp.asarray(w, state.dtype)[index] for w in weights)
        return of_state * state + of_output * self._call(denoise, state, index)

    def guidance_at(self, index: Any) -> jax.Array:
        """The product of step ``index``'s guidance scales; 1 without guidance."""
        return jnp.asarray(self.sampler.scales.prod(axis=1), jnp.float32)[index]

    def mean(self, steps: RandomSteps, params: Any, conditions: Any, state: Any, index: Any) -> Any:
        """The mean of the state after step ``index`` of ``steps``, ``random`` or ``still``."""
        output = self.evaluate(params, conditions, state, index)
        return take_mean(steps.at(index, state.dtype), state, output)

    def walk(
        self, params: Any, conditions: Any, state: jax.Array, first: Any, end: Any
    ) -> jax.Array:
        """The state after the steps ``first .. end - 1`` without noise; both may be traced."""

        def body(index, state):
            return self.mean(self.still, params, conditions, state, index)

        return jax.lax.fori_loop(first, end, body, state)


def _quiet(config: ConfigDict, **guidance: Any) -> ConfigDict:
    """The config with nothing in its sampler that gradients cannot pass, or that rounds more.

    ``guidance`` sets keys of ``config.sampler.guidance``.
    """
    found = config.copy_and_resolve_references()
    with found.unlocked():
        sampler = found.sampler
        sampler.cache_conditions, sampler.cache.threshold, sampler.fp8 = False, 0.0, False
        sampler.residual_dtype = found.generator.get("residual_dtype", "auto")
        sampler.guidance.update(guidance)
    return found


def repeat_conditions(conditions: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Conditions of P prompts for ``times`` samples of each, which follow one another."""

    def repeat(name, value):
        if name == "null_text":  # one for all samples
            return value
        return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), value)

    return {name: repeat(name, value) for name, value in conditions.items()}
