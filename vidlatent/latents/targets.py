"""What a student learns: its teacher's guided prediction, or where two of its steps lead.

Both are functions of a noised batch, its conditions and the teacher's parameters, for training and
evaluation alike (FSVideo 2.4.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from vidlatent.diffusion import Diffusion, Flow, NoiseGrid, make_schedule, sampler_options
from vidlatent.diffusion.distillation import (
    Interval,
    check_nested,
    halve_ddim_steps,
    halve_steps,
)
from vidlatent.diffusion.flow import network_time, velocity_loss
from vidlatent.diffusion.guidance import combine, evaluate_branches
from vidlatent.diffusion.prediction import per_sample, target_weights
from vidlatent.errors import VidlatentError
from vidlatent.latents.distilled import BuiltInGuidance, effective_scales
from vidlatent.latents.space import make_noise_schedule

__all__ = ["GuidedTarget", "HalvedTarget", "Stages", "compare_outputs", "sampler_grid"]

Drop = Mapping[str, jax.Array]


def sampler_grid(config: ConfigDict, schedule: Flow | Diffusion, steps: int) -> NoiseGrid:
    """The noise levels of ``config.sampler`` with this many steps."""
    names = ("name", "spacing", "shift")
    options, _ = sampler_options(schedule, {name: config.sampler[name] for name in names})
    return schedule.grid(steps, **{k: v for k, v in options.items() if k != "name"})


def compare_outputs(
    config: ConfigDict, schedule: Flow | Diffusion, output: jax.Array, target: jax.Array
) -> jax.Array:
    """Loss ``[B]`` of a student's output: the flow's pseudo-Huber, else the mean square.

    A learned variance, the second half of the channels, is compared as the prediction is.
    """
    if isinstance(schedule, Flow):
        diffusion = config.diffusion
        return velocity_loss(output, target, diffusion.huber_reduction, diffusion.huber_c0)
    square = jnp.square(output.astype(jnp.float32) - target)
    return square.mean(axis=tuple(range(1, square.ndim)))


class Stages(NamedTuple):
    """The stages of a progressive distillation in one run.

    Attributes:
      steps: of the student in each stage, each half of those before.
      length: training steps of a stage; within a compiled step it may be traced.
    """

    steps: tuple[int, ...]
    length: Any

    @classmethod
    def of(cls, config: ConfigDict) -> Stages:
        """Those of ``config.distill.stages``, which share ``config.train.steps`` evenly."""
        steps = tuple(config.distill.stages)
        return cls(steps, config.train.steps // len(steps))

    def stage_at(self, step: int) -> int:
        """The stage to which training step ``step`` (from 0) belongs."""
        return min(step // self.length, len(self.steps) - 1)

    def stride_at(self, step: Any) -> Any:
        """Steps of the first teacher in one of the student that learns at ``step``, traced."""
        return 2 << jnp.minimum(step // self.length, len(self.steps) - 1)


class GuidedTarget:
    """The teacher's prediction under guidance (specification G.1), as a function of its parameters.

    With a scale of 1 it is the teacher's prediction under all conditions, exactly.

    Args:
      config: of the student's run; read is ``distill``.
      teacher: the generator.

    Attributes:
      guidance: what the student will have built in.
    """

    def __init__(self, config: ConfigDict, teacher: Any):
        distill = config.distill
        self._teacher, self._batched = teacher, distill.batched
        self.guidance = BuiltInGuidance(
            tuple(map(float, distill.scales)),
            tuple(map(float, distill.scale_range)),
            distill.convention,
            _read_drops(config, teacher.reads),
        )
        self._scales = effective_scales(distill.scales, distill.convention)

    def __call__(
        self,
        params: Any,
        x: jax.Array,
        time: jax.Array,
        conditions: Mapping[str, Any],
        drop: Drop,
    ) -> jax.Array:
        """``[B, ..., C or 2 C]`` float32; no gradient flows into it.

        Args:
          params: the teacher's.
          x, time: noised samples ``[B, ..., C]`` and the time input ``[B]``.
          conditions: by name; ``'guidance'`` ``[B]`` holds the scales if they are an input.
          drop: conditions that each sample goes without, in every branch.
        """
        batch = len(x)
        told = conditions.get("guidance")
        scales: Sequence[Any] = self._scales if told is None else (per_sample(told, x),)
        spread = _spread(conditions, batch)
        none = jnp.zeros((batch,), bool)
        known = {name: drop.get(name, none) for name in self._teacher.reads}
        branches = [
            {"conditions": spread, "drop": {**known, **{name: ~none for name in names}}}
            for names in (*self.guidance.drops, ())
        ]

        def network(x, t, index, branch):
            del index
            return self._teacher.apply({"params": params}, x, t, **branch, method="denoise")

        if all(isinstance(scale, float) and scale == 1.0 for scale in scales):
            branches, scales = branches[-1:], ()  # the other branches would be multiplied by 0
        outputs = evaluate_branches(network, branches, x, time, batched=self._batched)
        # The variance that comes with a prediction is not extrapolated.
        channels = x.shape[-1] if self._teacher.learned_variance else None
        return lax.stop_gradient(combine(outputs, scales, channels=channels))


class HalvedTarget:
    """Two of the teacher's steps as one (specification G.2), and the loss against it.

    Args:
      config: of the student's run; read are ``sampler`` and ``diffusion``.
      model: the student and, with other parameters, the teacher.
      steps: of the first teacher; what follows takes every second, fourth, ... of its levels.
    """

    def __init__(self, config: ConfigDict, model: Any, steps: int):
        self._config, self._model, self._steps = config, model, steps
        self._check_solver()

    def _check_solver(self) -> None:
        flow = isinstance(make_schedule(self._config.diffusion.schedule), Flow)
        wanted, sampler = "euler" if flow else "ddim", self._config.sampler
        if sampler.name != wanted:
            raise VidlatentError(
                f"config.sampler.name={sampler.name!r}: steps are halved for the sampler "
                f"{wanted!r}, which the student then needs: set it to {wanted!r}."
            )
        if not flow and sampler.eta:
            raise VidlatentError(
                f"config.sampler.eta={sampler.eta}: steps that add noise cannot be halved: set it "
                "to 0."
            )

    def grids(self, grid: Sequence[int], stages: int) -> list[NoiseGrid]:
        """Levels of the first teacher and of the student of each stage, for latents of ``grid``.

        Raises:
          VidlatentError: levels of one are not every second one of those before.
        """
        schedule = make_noise_schedule(self._config, self._model, grid)
        found = [
            sampler_grid(self._config, schedule, self._steps // 2**k) for k in range(stages + 1)
        ]
        for teacher, student in zip(found, found[1:], strict=False):
            check_nested(student, teacher)
        return found

    def loss(
        self,
        params: Any,
        teacher: Any,
        x0: jax.Array,
        noise: jax.Array,
        interval: Interval,
        conditions: Mapping[str, Any],
        drop: Drop,
    ) -> jax.Array:
        """Loss ``[B]`` of the student at the start of an interval.

        Args:
          params, teacher: of student and teacher.
          x0, noise: clean samples and noise, ``[B, ..., C]``.
          interval: of each sample (``distillation.draw_interval``).
          conditions, drop: as of the generator.
        """
        schedule = make_noise_schedule(self._config, self._model, x0.shape[1:4])
        alpha, sigma = (per_sample(v[0], x0) for v in (interval.alphas, interval.sigmas))
        z = alpha * x0 + sigma * noise

        def network(params, z, time):
            output = self._model.apply(
                {"params": params}, z, time, conditions, drop=drop, method="denoise"
            )
            return output[..., : x0.shape[-1]]  # without a learned variance, which DDIM ignores

        output = network(params, z, interval.times[0])
        if isinstance(schedule, Flow):
            halved = halve_steps(
                lambda z, sigma: network(teacher, z, network_time(sigma)), z, interval.sigmas
            )
            return compare_outputs(self._config, schedule, output, halved.target)
        halved = halve_ddim_steps(
            lambda z, time: network(teacher, z, time), z, interval, schedule.prediction
        )
        # What the network is to predict, from the clean sample and the noise that leads to it.
        of_clean, of_noise = target_weights(schedule.prediction, alpha, sigma)
        target = of_clean * halved.target + of_noise * (z - alpha * halved.target) / sigma
        losses = compare_outputs(self._config, schedule, output, target)
        if self._config.distill.weighting == "output":
            return losses
        return losses * _truncated_snr(schedule.prediction, interval)


def _truncated_snr(prediction: str, interval: Interval) -> jax.Array:
    """``max(SNR, 1)`` of the clean sample's square error, as a factor of the output's: ``[B]``.

    Salimans & Ho 2022, eq. 9: no level has weight 0, which a network of few steps cannot afford.
    """
    alpha, sigma = interval.alphas[0], interval.sigmas[0]
    snr = jnp.square(alpha / sigma)
    # The square error of the clean sample for one of 1 in the output.
    per_output = {"epsilon": 1.0 / snr, "v": jnp.square(sigma), "x0": jnp.ones_like(snr)}
    return jnp.maximum(snr, 1.0) * per_output[prediction]


def _read_drops(config: ConfigDict, reads: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """What the less conditioned side of each link goes without, as in sampling."""
    distill = config.distill
    links = max(1, len(distill.scales))
    drops = tuple(map(tuple, distill.drops))
    if not drops and links == 1:
        drops = (tuple(reads),)
    if len(drops) != links:
        raise VidlatentError(
            f"config.distill.drops has {len(drops)} entries for {links} scales: name for each "
            "scale the conditions that its less conditioned side goes without."
        )
    for name in {name for names in drops for name in names}:
        if name not in reads:
            raise VidlatentError(
                f"config.distill.drops names {name!r}, but the teacher reads "
                f"{', '.join(reads) or 'nothing'}."
            )
    if not any(drops):
        raise VidlatentError(
            "this generator reads no condition, so there is no guidance to distil: use the task "
            "distill_progressive."
        )
    return drops


def _spread(conditions: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """Conditions with a row for each sample: the null text is one for all of them."""
    spread = dict(conditions)
    if "null_text" in spread:
        spread["null_text"] = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (batch, *x.shape[1:])), spread["null_text"]
        )
    return spread
