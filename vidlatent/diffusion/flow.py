"""Flow matching: the straight path, its velocity, noise levels of training, and the loss.

``z_sigma = (1 - sigma) z0 + sigma eps`` and ``v = eps - z0`` (FSVideo eqs. 10-11). Sigma is 0 for
data and 1 for noise; the network's time input is ``1000 sigma``. Arrays are ``[B, ..., C]``, sigma
is ``[B]``; everything is computed in float32, or in float64 where the inputs are.
"""

from __future__ import annotations

import dataclasses
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.diffusion.grids import NoiseGrid, flow_grid, shift_for_tokens, shift_levels
from vidlatent.diffusion.prediction import per_sample
from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = [
    "HUBER_C0",
    "REDUCTIONS",
    "Flow",
    "fixed_sigmas",
    "interpolate",
    "network_time",
    "sample_sigma",
    "sigma_from_normal",
    "velocity",
    "velocity_loss",
    "x0_from_velocity",
]

REDUCTIONS = ("sample", "token", "element")
# Width of the quadratic part of the pseudo-Huber loss, for each root of a value's dimension: the
# value of improved consistency training (Song & Dhariwal 2023, 3.3), which FSVideo cites.
HUBER_C0 = 0.00054


def interpolate(z0: jax.Array, eps: jax.Array, sigma: jax.Array) -> jax.Array:
    """``z_sigma = (1 - sigma) z0 + sigma eps`` (eq. 10): ``[B, ...]``, from ``sigma`` ``[B]``."""
    z0, eps = _wide(z0), _wide(eps)
    s = per_sample(_wide(sigma), z0)
    return (1.0 - s) * z0 + s * eps


def velocity(z0: jax.Array, eps: jax.Array) -> jax.Array:
    """``v = eps - z0`` ``[B, ...]``, the target: the path's derivative by sigma (eq. 11)."""
    return _wide(eps) - _wide(z0)


def x0_from_velocity(z: jax.Array, v: jax.Array, sigma: jax.Array) -> jax.Array:
    """The clean sample ``z - sigma v`` (eq. 12): ``[B, ...]``, from ``sigma`` ``[B]``."""
    z, v = _wide(z), _wide(v)
    return z - per_sample(_wide(sigma), z) * v


def network_time(sigma: jax.Array) -> jax.Array:
    """The network's time input ``1000 sigma``: ``[B] -> [B]`` float32.

    The factor is the number of training steps of DDPM: Wan2.1 and others embed time on that scale.
    """
    return 1000.0 * _wide(sigma)


def sigma_from_normal(
    z: jax.Array, mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> jax.Array:
    """A noise level for each standard normal ``z``: ``shift_levels(sigmoid(mean + std z))``.

    The shift multiplies the odds ``sigma / (1 - sigma)``, which is the same as adding
    ``log(shift)`` to the mean. The result has the shape of ``z``.
    """
    return shift_levels(jax.nn.sigmoid(mean + std * _wide(z)), shift)


def sample_sigma(
    key: jax.Array,
    batch: int,
    mean: float = 0.0,
    std: float = 1.0,
    shift: float = 1.0,
    least: float = 1e-4,
) -> jax.Array:
    """Logit-normal noise levels of a training batch, ``[batch]`` in [least, 1], float32.

    Esser et al. 2024 (Stable Diffusion 3), 3.1. ``least`` keeps the level away from 0, where there
    is nothing to predict.
    """
    z = jax.random.normal(key, (batch,), jnp.float32)
    return jnp.clip(sigma_from_normal(z, mean, std, shift), least, 1.0)


def fixed_sigmas(count: int, mean: float = 0.0, std: float = 1.0, shift: float = 1.0) -> np.ndarray:
    """Rising noise levels ``[count]`` that split the training density into equal shares.

    For evaluation: the mean of the loss over them estimates the training loss without its noise.
    """
    normal = statistics.NormalDist(mean, std)
    # Quantiles at the middles of equal shares.
    logits = np.array([normal.inv_cdf((k + 0.5) / count) for k in range(count)])
    return shift_levels(1.0 / (1.0 + np.exp(-logits)), shift)


def velocity_loss(
    prediction: jax.Array,
    target: jax.Array,
    reduction: str = "sample",
    c0: float = HUBER_C0,
) -> jax.Array:
    """Pseudo-Huber distance of each sample, ``[B]``.

    ``sqrt(m + c0^2) - c0`` of the mean square ``m`` over a sample, over the channels of a token or
    of a single element, then averaged over the sample. With the published ``c = c0 sqrt(d)`` for
    ``d`` values this is ``(sqrt(|r|^2 + c^2) - c) / sqrt(d)``. For small ``c0`` it is the root mean
    square error, whose gradient has the same length for every sample and noise level.

    Args:
      prediction, target: ``[B, ..., C]``.
      reduction: one of ``REDUCTIONS``.
      c0: above 0 (the root has no slope at 0).
    """
    if reduction not in REDUCTIONS:
        hint = did_you_mean(reduction, REDUCTIONS)
        raise VidlatentError(f"unknown huber reduction {reduction!r}: {hint}")
    if not c0 > 0:
        raise VidlatentError(f"huber c0 must be above 0, got {c0}.")
    square = jnp.square(_wide(prediction) - _wide(target))
    # Whatever is averaged before the root, a sample or a token, has a gradient of the same length.
    if reduction == "token":
        square = square.mean(axis=-1)
    elif reduction == "sample":
        square = square.mean(axis=tuple(range(1, square.ndim)))
    # sqrt(m + c0^2) - c0, written without subtracting two nearly equal numbers.
    value = square / (jnp.sqrt(square + c0**2) + c0)
    return value.mean(axis=tuple(range(1, value.ndim)))


@dataclasses.dataclass(frozen=True)
class Flow:
    """Flow matching as a schedule: noise levels of training and of sampling.

    Attributes:
      shift: of training, and of sampling unless ``config.sampler.shift`` is set.
      mean, std: of the logit of the noise level in training.
      least: smallest noise level in training.
      base_tokens: number of tokens for which ``shift`` holds, see ``for_tokens``; 0: it holds for
        every size.
    """

    shift: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    least: float = 1e-4
    base_tokens: int = 0
    # Not fields: a flow has no choice here, but samplers ask every schedule.
    prediction = "velocity"
    variance = "fixed_small"

    def __post_init__(self):
        if not (self.shift > 0 and self.std > 0 and 0 < self.least < 1):
            raise VidlatentError(
                "config.diffusion.schedule of flow matching needs shift > 0, std > 0 and least in "
                f"(0, 1), got {self.shift}, {self.std}, {self.least}."
            )

    def for_tokens(self, tokens: int) -> Flow:
        """The schedule for clips of another size: the shift grows with the root of the tokens."""
        if not self.base_tokens:
            return self
        shift = shift_for_tokens(tokens, self.base_tokens, self.shift)
        # The new shift holds for the new size, so asking again changes nothing.
        return dataclasses.replace(self, shift=shift, base_tokens=tokens)

    def sample_sigma(self, key: jax.Array, batch: int) -> jax.Array:
        """Noise levels of a training batch, ``[batch]`` float32."""
        return sample_sigma(key, batch, self.mean, self.std, self.shift, self.least)

    def fixed_sigmas(self, count: int) -> np.ndarray:
        """Rising noise levels ``[count]`` of equal weight in training, for evaluation."""
        return fixed_sigmas(count, self.mean, self.std, self.shift)

    def grid(
        self,
        steps: int,
        shift: float | None = None,
        spacing: str = "clean",
        sigmas: tuple[float, ...] | None = None,
    ) -> NoiseGrid:
        """Levels of a sampler; see ``grids.flow_grid``."""
        return flow_grid(steps, self.shift if shift is None else shift, spacing, sigmas)


def _wide(x) -> jax.Array:
    """At least float32: bfloat16 cannot represent small noise levels."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
