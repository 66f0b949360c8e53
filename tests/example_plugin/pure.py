"""A loss term, a sampler, a noise schedule and a metric: pure functions."""

import jax.numpy as jnp
import numpy as np

from vidlatent.diffusion.flow import Flow
from vidlatent.diffusion.samplers import make_plan
from vidlatent.losses.base import Term, mean_over_samples


def squared_means_term(power: float = 2.0):
    """Difference of the mean colours of every frame."""

    def value(inputs, params, networks):
        difference = (inputs.prediction - inputs.target).mean((2, 3))
        return mean_over_samples(jnp.abs(difference) ** power, inputs.mask)

    return Term(value)


def half_euler(grid, prediction="velocity"):
    """Euler's steps at half their length."""
    ahead = 0.5 * np.diff(grid.sigmas)
    return make_plan(grid, (0.0, 1.0), np.stack([np.ones_like(ahead), ahead], axis=1))


def shifted_flow(shift: float = 2.0):
    """Flow matching with more noise."""
    return Flow(shift=shift)


def mean_error(video, restored):
    """``[B, T]`` of videos uint8 ``[B, T, H, W, 3]``."""
    return jnp.abs(video.astype(jnp.float32) - restored.astype(jnp.float32)).mean((-3, -2, -1))
