"""Scoring a generator on validation clips: the training loss at fixed noise levels.

The levels have equal weight under the training density, so their mean estimates the loss that is
minimised. The noise of a clip at a level depends on the clip, its start and the level alone: every
evaluation, on any number of processes, asks the same question.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.data.loader import Loader
from vidlatent.diffusion.objective import Draw, add_noise, fixed_levels, sample_loss
from vidlatent.errors import VidlatentError
from vidlatent.latents.inputs import missing_condition_masks
from vidlatent.latents.space import make_noise_schedule
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, replicated

__all__ = [
    "NOISE_SEED",
    "GeneratorScores",
    "LossAt",
    "Question",
    "clip_keys",
    "compile_loss_step",
    "evaluate_loss",
    "make_data_loss",
    "make_loss_step",
    "noise_at_level",
]

NOISE_SEED = 20_240  # seed of the evaluation's noise, the same in every run


class Question(NamedTuple):
    """What an evaluation asks of a batch: the same at every call.

    Attributes:
      x0: standardised latents ``[B, t, h, w, c]``.
      noise: of their shape.
      number: of the noise level, from 0 (the cleanest), traced.
      conditions: all that the clips have; drop: those that they lack.
      clips: a key for each clip.
    """

    x0: jax.Array
    noise: jax.Array
    number: jax.Array
    conditions: Any
    drop: Any
    clips: jax.Array


# ``(params, frozen, question) -> loss [B]``
LossAt = Callable[[Any, Any, Question], jax.Array]


def make_data_loss(config: ConfigDict, model: Any) -> LossAt:
    """The training loss at one of ``config.diffusion.eval_levels`` levels."""
    diffusion = config.diffusion

    def loss(params, frozen, asked):
        del frozen
        drawn = noise_at_level(config, model, asked)
        output = model.apply(
            {"params": params},
            drawn.x,
            drawn.time,
            asked.conditions,
            drop=asked.drop,
            method="denoise",
        )
        schedule = make_noise_schedule(config, model, asked.x0.shape[1:4])
        return sample_loss(
            schedule, drawn, output, asked.x0, diffusion.huber_reduction, diffusion.huber_c0
        )

    return loss


def noise_at_level(config: ConfigDict, model: Any, asked: Question) -> Draw:
    """The latents of a question, noised to its level."""
    schedule = make_noise_schedule(config, model, asked.x0.shape[1:4])
    levels = fixed_levels(schedule, config.diffusion.eval_levels)
    level = jnp.full(asked.x0.shape[:1], levels[asked.number])
    return add_noise(schedule, asked.x0, asked.noise, level)


def make_loss_step(
    config: ConfigDict, model: Any, inputs: Any, loss: LossAt | None = None
) -> Callable[[Any, Any, Any], dict[str, jax.Array]]:
    """``(params, frozen, batch) -> {'loss': [B, levels]}``, with all conditions.

    Args:
      config: of the run.
      model: the generator.
      inputs: makes latents and conditions.
      loss: what is measured; None: the training loss, ``make_data_loss``.
    """
    loss = make_data_loss(config, model) if loss is None else loss

    def step(params, frozen, batch):
        x0, conditions = inputs(batch, frozen, jax.random.key(NOISE_SEED))
        keys = clip_keys(batch)
        # No condition is dropped but those that a clip does not have.
        missing = missing_condition_masks(conditions, model.reads, x0.shape[1])

        def at(number):
            noise = jax.vmap(
                lambda key: jax.random.normal(jax.random.fold_in(key, number), x0.shape[1:])
            )(keys)
            return loss(params, frozen, Question(x0, noise, number, conditions, missing, keys))

        # One level after another: memory is that of one.
        # [levels, B] -> [B, levels]
        return {"loss": jax.lax.map(at, jnp.arange(config.diffusion.eval_levels)).T}

    return step


def clip_keys(batch: Any) -> jax.Array:
    """A key for each sample, of its clip and start alone."""
    key = jax.random.key(NOISE_SEED)

    def one(clip, start):
        mine = jax.random.fold_in(key, clip)
        # fold_in takes whole numbers: milliseconds.
        return jax.random.fold_in(mine, jnp.round(start * 1000).astype(jnp.int32))

    return jax.vmap(one)(batch["clip"], batch["start"])


def compile_loss_step(
    step: Callable, arrays: Sequence[str], frozen: Any, mesh: Mesh, params: Any
) -> Callable[[Any, Any], dict[str, np.ndarray]]:
    """Jit a loss step: ``(params, host batch) -> measurements`` of all processes' rows.

    Args:
      step: from ``make_loss_step``.
      arrays: names of the arrays of a batch that it needs, ``Inputs.arrays``.
      frozen: parameters of ``Inputs.frozen`` on the devices (``models.frozen.load_frozen``).
      mesh: of the run.
      params: the generator's, on the devices.
    """
    places = jax.tree.map(lambda leaf: leaf.sharding, (params, frozen))
    rows, whole = batch_sharding(mesh), replicated(mesh)
    names = (*arrays, "clip", "start")

    def measure(params, frozen, batch):
        # Rows of all processes come back, so what tells them apart must come with them.
        tags = {name: batch[name] for name in ("mask", "clip", "start")}
        return {**step(params, frozen, batch), **tags}

    jitted = jax.jit(measure, in_shardings=(*places, rows), out_shardings=whole)

    def run(params, batch):
        arrays = {name: batch[name] for name in names if name in batch}
        return jax.device_get(jitted(params, frozen, to_global(arrays, rows)))

    return run


@dataclasses.dataclass
class GeneratorScores:
    """Scores of one evaluation.

    Attributes:
      scores: ``loss`` (mean over clips and levels) and ``clips``, their number.
      levels: one row a noise level: its number from the cleanest, and the mean loss there.
      clips: one row a clip: name, start in seconds, loss.
      about_levels, curves: heading of the levels' table in a report, and names of the run's curves
        that it draws.
    """

    about_levels: ClassVar[str] = "Loss by noise level, from clean to noise"
    curves: ClassVar[tuple[str, ...]] = (
        "val/loss",
        "train/loss",
        "train/grad_norm",
        "train/lr",
        "train/data_wait_share",
    )

    scores: dict[str, float]
    levels: list[dict[str, float]]
    clips: list[dict[str, Any]]

    @property
    def definitions(self) -> dict[str, dict[str, Any]]:
        how = "training loss at noise levels of equal weight, over levels and clips"
        return {"loss": {"averaged": how, "levels": len(self.levels), "n": len(self.clips)}}


def evaluate_loss(step: Callable, params: Any, loader: Loader) -> GeneratorScores:
    """Run a compiled loss step over a finite loader.

    Raises:
      VidlatentError: the loader holds no real clip.
    """
    clips, losses = [], []
    for batch in loader:
        measured = step(params, batch)
        for row in np.flatnonzero(measured["mask"]):
            values = np.asarray(measured["loss"][row], np.float64)
            losses.append(values)
            clips.append(
                {
                    "clip": loader.index[int(measured["clip"][row])].path,
                    "start": round(float(measured["start"][row]), 3),
                    "loss": float(values.mean()),
                }
            )
    if not clips:
        raise VidlatentError(
            "no validation clip to score: raise config.data.validation_share or add clips."
        )
    # Exactly rounded sums: the order in which processes deliver rows leaves no trace.
    count = len(losses)
    by_level = [math.fsum(column) / count for column in zip(*losses, strict=True)]
    rows = [{"level": k, "loss": value} for k, value in enumerate(by_level)]
    mean = math.fsum(row["loss"] for row in clips) / count
    return GeneratorScores({"loss": mean, "clips": count}, rows, clips)
