"""DDPM and IDDPM: noise schedules as float64 tables, and what the network's output means.

``x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps`` for ``t = 0 .. S - 1`` (DDPM eq. 4). Tables are
built on the host; functions on the device gather from them in float32.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.diffusion.grids import NoiseGrid, make_grid
from vidlatent.diffusion.prediction import (
    check_prediction,
    data_weights,
    per_sample,
    target_weights,
)
from vidlatent.diffusion.samplers import VARIANCES
from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = [
    "SPACINGS",
    "Diffusion",
    "ReverseStep",
    "cosine",
    "even_times",
    "linear",
    "scaled_linear",
    "zero_terminal_snr",
]

SPACINGS = ("even", "stride", "trailing", "continuous")


@dataclasses.dataclass(frozen=True)
class ReverseStep:
    """What the network's output says of the reverse step from ``t`` to ``t - 1``; ``[B, ..., C]``.

    Attributes:
      x0: predicted clean sample, not clipped.
      mean, log_variance: of ``p(x_{t-1} | x_t)``.
    """

    x0: jax.Array
    mean: jax.Array
    log_variance: jax.Array


# eq=False: arrays have no single truth value to compare by, and the object stays hashable.
@dataclasses.dataclass(frozen=True, eq=False)
class Diffusion:
    """A discrete noise schedule with what the network predicts.

    Attributes:
      alphas_cumprod: ``abar``, ``[S]`` float64, falling.
      prediction: ``'epsilon'``, ``'x0'`` or ``'v'``.
      variance: ``'fixed_small'``, ``'fixed_large'`` or ``'learned_range'`` (the network then has
        twice the channels).
      times: the network's time input at each ``t``, ``[S]``; None: ``t`` itself.
    """

    alphas_cumprod: np.ndarray
    prediction: str = "epsilon"
    variance: str = "learned_range"
    times: np.ndarray | None = None

    def __post_init__(self):
        check_prediction(self.prediction)
        if self.prediction == "velocity":
            raise VidlatentError("prediction 'velocity' is flow matching's: choose 'v' here.")
        if self.variance not in VARIANCES:
            hint = did_you_mean(self.variance, VARIANCES)
            raise VidlatentError(
                f"unknown config.diffusion.schedule.variance {self.variance!r}: {hint}"
            )
        if self.prediction == "epsilon" and self.alphas_cumprod[-1] <= 0:
            raise VidlatentError(
                "a network that predicts noise cannot give the sample where no signal is left: "
                "with config.diffusion.schedule.zero_terminal_snr set "
                "config.diffusion.schedule.prediction to 'v' or 'x0'."
            )

    @property
    def steps(self) -> int:
        return len(self.alphas_cumprod)

    @functools.cached_property
    def tables(self) -> dict[str, np.ndarray]:
        """By name ``[S]``: alpha, sigma, beta, and the posterior's weights and variances."""
        abar = self.alphas_cumprod
        # abar of the step before; before the first step there is no noise.
        before = np.append(1.0, abar[:-1])
        # Not the betas that the schedule was made of: a respaced one skips steps.
        beta = 1.0 - abar / before
        variance = beta * (1.0 - before) / (1.0 - abar)
        return {
            "alpha": np.sqrt(abar),
            "sigma": np.sqrt(1.0 - abar),
            "beta": beta,
            # Weights of x0 and x_t in the posterior's mean (DDPM eq. 7).
            "of_data": beta * np.sqrt(before) / (1.0 - abar),
            "of_x": (1.0 - before) * np.sqrt(1.0 - beta) / (1.0 - abar),
            "variance": variance,
            # The first variance is 0, so its logarithm is replaced by the second's (IDDPM's code).
            "log_small": np.log(np.append(variance[1:2], variance[1:])),
            "log_large": np.log(beta),
            # The same replacement; DDPM's code found a better likelihood of the decoder with it.
            "log_fixed_large": np.log(np.append(variance[1:2], beta[1:])),
        }

    def at(self, name: str, t: jax.Array, like: jax.Array) -> jax.Array:
        """Entries ``t [B]`` of a table, float32, shaped to multiply ``like``."""
        return per_sample(jnp.asarray(self.tables[name], jnp.float32)[t], like)

    def network_time(self, t: jax.Array) -> jax.Array:
        """The network's time input: steps ``t`` ``[B] -> [B]`` float32."""
        t = t if self.times is None else jnp.asarray(self.times)[t]
        return t.astype(jnp.float32)

    def sample_times(self, key: jax.Array, batch: int) -> jax.Array:
        """Steps of a training batch, uniform, ``[batch]`` int32."""
        return jax.random.randint(key, (batch,), 0, self.steps)

    def fixed_times(self, count: int) -> np.ndarray:
        """``count`` steps spread evenly, ``[count]`` int64."""
        # The middles of equal shares, so that neither end counts for more.
        return ((np.arange(count) + 0.5) * self.steps / count).astype(np.int64)

    def add_noise(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """``x_t`` (DDPM eq. 4): ``[B, ..., C]`` from ``t`` ``[B]``."""
        x0 = x0.astype(jnp.float32)
        return self.at("alpha", t, x0) * x0 + self.at("sigma", t, x0) * noise

    def target(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """The training target ``[B, ..., C]``: noise, the sample, or ``alpha eps - sigma x0``."""
        x0 = x0.astype(jnp.float32)
        weights = self.at("alpha", t, x0), self.at("sigma", t, x0)
        of_data, of_noise = target_weights(self.prediction, *weights)
        return of_data * x0 + of_noise * noise

    def x0(self, x: jax.Array, output: jax.Array, t: jax.Array) -> jax.Array:
        """The clean sample ``[B, ..., C]`` from the network's output without its variance half."""
        x, output = x.astype(jnp.float32), output.astype(jnp.float32)
        weights = self.at("alpha", t, x), self.at("sigma", t, x)
        of_x, of_output = data_weights(self.prediction, *weights)
        return of_x * x + of_output * output

    def posterior_mean(self, x0: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
        """Mean of ``q(x_{t-1} | x_t, x0)`` (DDPM eq. 7), ``[B, ..., C]``."""
        return self.at("of_data", t, x) * x0 + self.at("of_x", t, x) * x

    def step(self, x: jax.Array, output: jax.Array, t: jax.Array) -> ReverseStep:
        """``p(x_{t-1} | x_t)`` from the network's output ``[B, ..., C or 2 C]``.

        The learned log-variance lies between the posterior's and beta's (IDDPM eq. 15).
        """
        channels = x.shape[-1]
        self.check_channels(output, channels)
        output = output.astype(jnp.float32)
        x0 = self.x0(x, output[..., :channels], t)
        mean = self.posterior_mean(x0, x.astype(jnp.float32), t)
        if self.variance == "learned_range":
            low, high = self.at("log_small", t, x), self.at("log_large", t, x)
            # The network's -1 stands for the least and 1 for the greatest (IDDPM's code).
            log_variance = low + 0.5 * (output[..., channels:] + 1.0) * (high - low)
        else:
            name = "log_small" if self.variance == "fixed_small" else "log_fixed_large"
            log_variance = jnp.broadcast_to(self.at(name, t, x), x0.shape)
        return ReverseStep(x0, mean, log_variance)

    def respace(self, times: np.ndarray) -> Diffusion:
        """The schedule over a rising subset ``times`` ``[N]``; their time inputs stay the same."""
        times = np.asarray(times)
        inputs = times if self.times is None else self.times[times]
        return dataclasses.replace(self, alphas_cumprod=self.alphas_cumprod[times], times=inputs)

    def grid(self, steps: int, spacing: str = "even") -> NoiseGrid:
        """Levels of a sampler.

        Args:
          steps: N, at most ``S``.
          spacing: ``'even'`` (IDDPM: from the last ``t`` to 0, rounded), ``'stride'`` (DDIM: whole
            strides from 0), ``'trailing'`` (strides from the end; for zero terminal SNR) or
            ``'continuous'`` (DPM-Solver: evenly from ``t = 1`` to ``1/S``, where it stops; log
            alpha is interpolated, and times are fractions).
        """
        if spacing not in SPACINGS:
            hint = did_you_mean(spacing, SPACINGS)
            raise VidlatentError(f"unknown config.sampler.spacing {spacing!r}: {hint}")
        if not 1 <= steps <= self.steps:
            raise VidlatentError(f"config.sampler.steps must be in 1..{self.steps}, got {steps}.")
        if spacing == "continuous":
            return self._continuous(steps)
        if spacing == "even":
            times = even_times(self.steps, steps)
        elif spacing == "stride":
            # Stops short of the last step (at 980 of 1000 for 50 steps), as DDIM's code does.
            times = np.arange(steps) * (self.steps // steps)
        else:
            # The first step is the noisiest of all, where zero terminal SNR put pure noise.
            ends = np.round(self.steps - np.arange(steps) * (self.steps / steps))
            times = ends.astype(np.int64)[::-1] - 1
        # The sampler's levels are those of the steps it visits, and after the last one no noise.
        chain = self.respace(times)
        alphas, sigmas = (np.append(chain.tables[k][::-1], 1.0) for k in ("alpha", "sigma"))
        sigmas[-1] = 0.0
        return make_grid(chain.times[::-1], alphas, sigmas)

    def _continuous(self, steps: int) -> NoiseGrid:
        if self.times is not None or self.alphas_cumprod[-1] <= 0:
            raise VidlatentError(
                "config.sampler.spacing 'continuous' needs the whole schedule with signal left at "
                "its end: choose 'trailing'."
            )
        known = np.arange(1, self.steps + 1) / self.steps
        points = np.linspace(1.0, 1.0 / self.steps, steps + 1)
        log_alpha = np.interp(points, known, 0.5 * np.log(self.alphas_cumprod))
        # Continuous time t = (n + 1) / S stands for the discrete step n (DPM-Solver's code).
        times = (points[:-1] - 1.0 / self.steps) * self.steps
        # sigma^2 = 1 - alpha^2, by expm1: near t = 0 the difference would cancel.
        return make_grid(times, np.exp(log_alpha), np.sqrt(-np.expm1(2.0 * log_alpha)))

    def check_channels(self, output: jax.Array, channels: int) -> None:
        """Raise unless the network's output has the channels that the variance needs."""
        want = 2 * channels if self.variance == "learned_range" else channels
        if output.shape[-1] != want:
            raise VidlatentError(
                f"config.diffusion.schedule.variance {self.variance!r} needs {want} output "
                f"channels for {channels} latent channels, but the network has {output.shape[-1]}."
            )


def linear(
    steps: int = 1000,
    start: float = 1e-4,
    end: float = 0.02,
    prediction: str = "epsilon",
    variance: str = "learned_range",
    snr_shift: float = 1.0,
    zero_terminal_snr: bool = False,
) -> Diffusion:
    """Betas rise evenly (DDPM; Reducio-DiT and Latte).

    Args:
      steps: S; ``start`` and ``end`` are those of 1000 steps, and are scaled by ``1000 / steps``.
      prediction, variance: see ``Diffusion``.
      snr_shift: divides the signal-to-noise ratio (CogVideoX's form, 1 for none).
      zero_terminal_snr: the last step is pure noise; see ``zero_terminal_snr``.
    """
    betas = np.linspace(start, end, steps) * (1000.0 / steps)
    return _diffusion(betas, prediction, variance, snr_shift, zero_terminal_snr)


def scaled_linear(
    steps: int = 1000,
    start: float = 0.00085,
    end: float = 0.012,
    prediction: str = "v",
    variance: str = "fixed_small",
    snr_shift: float = 1.0,
    zero_terminal_snr: bool = True,
) -> Diffusion:
    """Roots of betas rise evenly; the defaults are CogVideoX's, which ProMAG's DiT resembles.

    Arguments as in ``linear``.
    """
    betas = np.linspace(start**0.5, end**0.5, steps) ** 2 * (1000.0 / steps)
    return _diffusion(betas, prediction, variance, snr_shift, zero_terminal_snr)


def cosine(
    steps: int = 1000,
    offset: float = 0.008,
    max_beta: float = 0.999,
    prediction: str = "epsilon",
    variance: str = "learned_range",
    snr_shift: float = 1.0,
    zero_terminal_snr: bool = False,
) -> Diffusion:
    """``abar`` follows a squared cosine (IDDPM eq. 17), betas at most ``max_beta``.

    Other arguments as in ``linear``.
    """
    # The offset keeps the first betas from vanishing, and the bound avoids a singularity at the
    # last step (IDDPM, 3.2).
    u = np.arange(steps + 1) / steps
    abar = np.cos((u + offset) / (1.0 + offset) * np.pi / 2.0) ** 2
    betas = np.minimum(1.0 - abar[1:] / abar[:-1], max_beta)
    return _diffusion(betas, prediction, variance, snr_shift, zero_terminal_snr)


def zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """``abar`` ``[S]`` rescaled so that no signal is left at the end (Lin et al. 2023, alg. 1).

    ``sqrt(abar)`` is shifted so that it ends at 0, and scaled so that it starts where it did.
    """
    root = np.sqrt(alphas_cumprod)
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return root**2


def even_times(steps: int, count: int) -> np.ndarray:
    """IDDPM's choice of ``count`` out of ``steps`` steps, ``[count]``: even from 0 to the last."""
    # One step alone stands at 0, as in IDDPM's code.
    stride = (steps - 1) / (count - 1) if count > 1 else 1.0
    return np.round(np.arange(count) * stride).astype(np.int64)


def _diffusion(betas, prediction, variance, snr_shift, zero_end) -> Diffusion:
    if len(betas) < 2 or not (np.all(betas > 0) and np.all(betas < 1)):
        raise VidlatentError(
            "betas of a schedule must lie between 0 and 1 for at least 2 steps: set more "
            "config.diffusion.schedule.steps or a lower config.diffusion.schedule.end."
        )
    if not snr_shift > 0:
        raise VidlatentError(
            f"config.diffusion.schedule.snr_shift must be above 0, got {snr_shift}."
        )
    abar = np.cumprod(1.0 - betas)
    # abar / (1 - abar) divided by snr_shift, solved for abar.
    abar = abar / (snr_shift + (1.0 - snr_shift) * abar)
    if zero_end:
        abar = zero_terminal_snr(abar)
    return Diffusion(abar, prediction, variance)
