"""How far a few-step student is: score gap, and Fréchet distance of its samples' latents.

The losses of score distillation oscillate around 0 and say nothing of progress. What is measured
here asks the same question at every evaluation: validation clips, noise and levels are fixed.

``score_gap``        root mean square of the difference between the clean samples that teacher and
                     fake score predict from the student's samples with noise. 0: the student's
                     samples have the teacher's distribution, as far as the fake score knows it
``score_pull``       root mean square of the gradient that the generator's loss of the two scores
                     gives the student's samples; 0: nothing reaches the student
``adversarial_pull`` the same of its adversarial loss, at full weight: which of the two moves it
``frechet_latents``  Fréchet distance between patches of the student's latents and of the clips';
                     a patch is what the generator reads as one token
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from vidlatent.data.loader import Loader
from vidlatent.diffusion import sample
from vidlatent.diffusion.distillation import ScoreMatch
from vidlatent.diffusion.flow import fixed_sigmas, interpolate, network_time
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.generator_loss import NOISE_SEED, GeneratorScores, clip_keys
from vidlatent.latents.inputs import missing_condition_masks
from vidlatent.layers.patches import to_patches
from vidlatent.metrics import FeatureSums, frechet_of_sums
from vidlatent.models.generators.trunk import denoise_with_trunk
from vidlatent.sample.sampler import plan_sampler

__all__ = ["StudentScores", "evaluate_student", "make_probe", "sum_patches"]


# What is measured at each level: names there, and of all levels together.
_SQUARES = {"gap": "score_gap", "score": "score_pull", "adversarial": "adversarial_pull"}


class StudentScores(GeneratorScores):
    """Scores of one evaluation, which the module's text lists, and ``clips``, their number.

    Each row of ``levels`` has a noise level, and the score gap and the pulls there; ``clips`` is
    empty.
    """

    about_levels: ClassVar[str] = "Score gap by noise level, from clean to noise"
    curves: ClassVar[tuple[str, ...]] = (
        "val/frechet_latents",
        "val/score_gap",
        "val/score_pull",
        "val/adversarial_pull",
        "train/generator/gap",
        "train/generator/score",
        "train/fake/flow",
        "train/generator/bce",
        "train/fake/bce",
        "train/generator/grad_norm",
        "train/fake/grad_norm",
        "train/images",
    )

    @property
    def definitions(self) -> dict[str, dict[str, Any]]:
        clips = self.scores["clips"]
        gap = "root mean square of teacher's minus fake score's clean sample, at fixed noise"
        patches = "between patches of latents, the student's and the validation clips'"
        pull = "root mean square gradient to the student's samples, at fixed noise"
        pulls = {"averaged": pull, "levels": len(self.levels), "n": clips}
        return {
            "score_pull": pulls,
            "adversarial_pull": pulls,
            "score_gap": {"averaged": gap, "levels": len(self.levels), "n": clips},
            "frechet_latents": {"averaged": patches, "n": clips},
        }


def make_probe(
    config: ConfigDict,
    model: Any,
    inputs: Any,
    teacher: Any,
    merge_fake: Callable[[Any, Any], Any],
    compare: Callable[..., tuple[ScoreMatch, jax.Array, jax.Array]],
) -> Callable[[Any, Any, Any], dict[str, jax.Array]]:
    """``(params, frozen, batch) -> measurements`` of one batch, for ``evaluate_student``.

    ``params`` holds those of ``student`` and ``fake``; ``frozen`` those of the ``teacher``. The
    student samples by ``config.sampler`` from noise that depends on clip and start alone.

    Args:
      config, model, teacher, inputs: of the run; ``inputs`` makes latents and conditions.
      merge_fake: ``(fake, frozen) -> parameters`` of the fake score.
      compare: ``(teacher network, velocity of the fake score, its trunk's tokens, x, eps, sigma)
        -> (match, the generator's loss of the scores [B], its adversarial loss [B])``.

    Returns (of the returned function):
      ``squares`` ``[B, levels, 3]``, the mean squares of the two networks' difference and of both
      pulls, and ``data`` and ``samples``, sums of patches as ``FeatureSums.pack`` has them.
    """
    levels = _levels(config)

    def probe(params, frozen, batch):
        x0, conditions = inputs(batch, frozen, jax.random.key(NOISE_SEED))
        missing = missing_condition_masks(conditions, model.reads, x0.shape[1])
        keys = clip_keys(batch)

        def draw(number):
            return _draw_noise(keys, number, x0.shape[1:])

        def run(network, params, x, time):
            return network.apply(
                {"params": params}, x, time, conditions, drop=missing, method="denoise"
            )

        def act(x, time, index):
            return run(model, params["student"], x, time)

        fake = merge_fake(params["fake"], frozen)
        x = sample(plan_sampler(config, model, x0.shape[1:4]), act, draw(0), keys).x

        def judge(x, eps, sigma):
            noisy, time = interpolate(x, eps, sigma), network_time(sigma)
            velocity, tokens = denoise_with_trunk(model, fake, noisy, time, conditions, missing)

            def teach(noisy, sigma):
                return run(teacher, frozen["teacher"], noisy, time)

            match, *losses = compare(teach, velocity, tokens, x, eps, sigma)
            return jnp.stack([jnp.sum(loss) for loss in losses]), match

        squares = _measure_levels(judge, x, levels, draw)
        both = {"data": x0, "samples": x}
        sums = {name: sum_patches(z, model.patch, batch["mask"]) for name, z in both.items()}
        return {"squares": squares, **sums}

    return probe


def _measure_levels(
    judge: Callable[..., tuple[jax.Array, ScoreMatch]],
    x: jax.Array,
    levels: np.ndarray,
    draw: Callable[[Any], jax.Array],
) -> jax.Array:
    """``[B, levels, 3]``: mean squares of the networks' difference, and of the pulls of two losses.

    ``judge(x, eps, sigma)`` gives both losses, summed over the samples, and the match.
    """

    def at(number):
        sigma = jnp.full(x.shape[:1], jnp.asarray(levels, jnp.float32)[number])
        eps = draw(1 + number)
        # Samples do not see each other, so the gradient of the sum has that of each.
        _, pull, match = jax.vjp(lambda x: judge(x, eps, sigma), x, has_aux=True)
        pulls = (pull(direction)[0] for direction in jnp.eye(2))
        found = (match.teacher - match.fake, *pulls)
        return jnp.stack([jnp.square(z).mean(axis=tuple(range(1, x.ndim))) for z in found], axis=-1)

    # One level after another: memory is that of one.
    # [levels, B, 3] -> [B, levels, 3]
    return lax.map(at, jnp.arange(len(levels))).swapaxes(0, 1)


def _draw_noise(keys: jax.Array, number: Any, shape: tuple[int, ...]) -> jax.Array:
    """Noise ``number`` of each clip, ``[B, *shape]``, from the clips' keys."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(keys)


def _levels(config: ConfigDict) -> np.ndarray:
    """Noise levels of equal weight where the fake score learns, rising."""
    score, count = config.distill.score, config.diffusion.eval_levels
    if score.levels == "logit_normal":
        return fixed_sigmas(count, score.level_mean, score.level_std)
    low, high = score.level_range
    return low + (high - low) * (np.arange(count) + 0.5) / count


def sum_patches(latent: jax.Array, patch: tuple[int, int, int], mask: jax.Array) -> jax.Array:
    """Number, sum and summed outer products of the patches of real samples, one vector."""
    tokens = to_patches(latent, patch)
    weighted = tokens * mask[:, None, None]
    number = jnp.sum(mask) * tokens.shape[1]
    products = jnp.einsum("bnp,bnq->pq", weighted, tokens, precision=lax.Precision.HIGHEST)
    return jnp.concatenate([number[None], weighted.sum(axis=(0, 1)), products.ravel()])


def evaluate_student(
    step: Callable[[Any, Any], dict[str, np.ndarray]],
    params: Any,
    loader: Loader,
    config: ConfigDict,
) -> StudentScores:
    """Run a compiled probe (``generator_loss.compile_loss_step``) over a finite loader.

    Raises:
      VidlatentError: the loader holds no real clip.
    """
    rows: list[np.ndarray] = []
    sums: dict[str, FeatureSums] = {}
    for batch in loader:
        measured = step(params, batch)
        rows += list(np.asarray(measured["squares"], np.float64)[np.asarray(measured["mask"]) > 0])
        for name in ("data", "samples"):
            found = FeatureSums.unpack(np.asarray(measured[name], np.float64))
            if name in sums:
                sums[name].merge(found)
            else:
                sums[name] = found
    if not rows:
        raise VidlatentError(
            "no validation clip to score: raise config.data.validation_share or add clips."
        )
    # Exactly rounded sums: the order in which processes deliver rows leaves no trace.
    squares = [
        [math.fsum(row[level][k] for row in rows) / len(rows) for k in range(len(_SQUARES))]
        for level in range(len(rows[0]))
    ]
    roots = [math.sqrt(math.fsum(column) / len(squares)) for column in zip(*squares, strict=True)]
    scores = {
        "frechet_latents": frechet_of_sums(sums["data"], sums["samples"]),
        **dict(zip(_SQUARES.values(), roots, strict=True)),
        "clips": len(rows),
    }
    table = [
        {"level": float(level), **dict(zip(_SQUARES, map(math.sqrt, found), strict=True))}
        for level, found in zip(_levels(config), squares, strict=True)
    ]
    return StudentScores(scores, table, [])
