"""Distilling a generator to few steps by scores (FSVideo 2.4.3): SiD, SiDA and DMD2.

Three networks share one state and one set of conditions: the generator (the student) is the model,
the fake score is the player ``fake``, the teacher is frozen. A step of the run updates one of the
two that learn; ``fake_updates`` of the fake score come before each of the generator, so a run may
be stopped between them. ``train.score_losses`` has the losses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.diffusion import Flow, SamplerPlan
from vidlatent.diffusion.distillation import fake_score_loss
from vidlatent.diffusion.few_steps import draw_step, last_step, run_steps
from vidlatent.diffusion.flow import interpolate, network_time, sample_sigma
from vidlatent.diffusion.grids import shift_levels
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.student import StudentScores, evaluate_student, make_probe
from vidlatent.latents.distilled import Distilled, describe_grid
from vidlatent.latents.space import make_noise_schedule
from vidlatent.losses.trunk import binary_cross_entropy, pool_logits
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.models.generators.trunk import denoise_with_trunk
from vidlatent.sample.sampler import plan_sampler
from vidlatent.train.freeze import stop_frozen_gradients
from vidlatent.train.microbatches import accumulate_gradients
from vidlatent.train.optim import make_learning_rate, make_optimizer
from vidlatent.train.score_losses import find_losses, tidy_gradients
from vidlatent.train.state import (
    PlayerUpdate,
    State,
    apply_gradients,
    apply_player_gradients,
    init_player,
    init_state,
    random_key,
)
from vidlatent.train.tasks.base import SHARE, Player
from vidlatent.train.tasks.distill import DistillTask
from vidlatent.train.tasks.generator import GeneratorValidation
from vidlatent.train.update import make_slice_keys
from vidlatent.weights.lora import Lora, init_adapters, merge_adapters

__all__ = ["ScoreTask"]

# Samplers whose steps a student can learn: each puts noise on a clean sample in another way.
_SAMPLERS = ("euler", "ddim", "fresh", "fixed")


class Drawn(NamedTuple):
    """What a step draws, and the student's sample before its last step.

    Attributes:
      real: standardised latents of the data, ``[B, t, h, w, c]``.
      conditions, drop: of all three networks.
      student: the parameters that made ``z``.
      plan: the student's sampler for this size.
      number: the student's step, int32 scalar in 1 to N.
      z: the student's sample after ``number - 1`` steps, like ``real``.
      eps, sigma: noise and its level ``[B]`` at which the scores are compared.
      mask: ``[B]``, 0 for padding.
    """

    real: jax.Array
    conditions: Any
    drop: Any
    student: Any
    plan: SamplerPlan
    number: jax.Array
    z: jax.Array
    eps: jax.Array
    sigma: jax.Array
    mask: jax.Array


class ScoreTask(DistillTask):
    """Distils ``config.generator`` by ``config.distill.score`` (``tasks.base.Task``).

    The student's steps are those of ``config.sampler``. ``state['extra']['images']`` counts the
    samples that the fake score has learned from. Arguments as of ``DistillTask``.
    """

    def __init__(self, config: ConfigDict, *parts: Any, **more: Any):
        super().__init__(config, *parts, **more)
        self.eval_step = make_probe(
            self.config,
            self.model,
            self.make_inputs(augment=False),
            self.teacher.model,
            self.merge_fake,
            self.compare,
        )

    def prepare(self, config: ConfigDict, model: Any) -> None:
        self.options = config.distill.score
        self.losses = find_losses(self.options)
        self._check_student(config, model)
        self._check_teacher(config)
        self.fake_optimizer = make_optimizer(config.distill)
        self.fake_rate = make_learning_rate(config.distill, config.train.steps)
        lora = config.distill.optim.lora
        self.fake_lora = Lora.of(lora) if lora.rank else None
        fake = Player("config.distill.optim.lr")
        if self.fake_lora is None:
            # From the checkpoint of the frozen teacher; adapters stay beside it.
            fake = fake._replace(
                start=self.teacher.place.get("workdir", ""),
                start_step=self.teacher.place.get("step", -1),
            )
        self.players = {"fake": fake}

    def _check_student(self, config: ConfigDict, model: Any) -> None:
        options = self.options
        if model.learned_variance or config.diffusion.schedule.name != "flow":
            raise VidlatentError(
                "the task distill_score needs a generator of flow matching "
                "(config.diffusion.schedule.name=flow, without learned variance), and "
                f"{config.generator.name} of this config predicts noise: train the teacher by flow "
                "matching."
            )
        if config.sampler.name not in _SAMPLERS:
            raise VidlatentError(
                f"config.sampler.name is {config.sampler.name!r}: a student learns the steps of "
                f"{', '.join(_SAMPLERS)}."
            )
        if options.adversarial_weight and not options.discriminator_weight:
            raise VidlatentError(
                "config.distill.score.adversarial_weight is above 0 and discriminator_weight is 0: "
                "the discriminator would learn nothing. Set both, or both to 0."
            )
        low, high = options.level_range
        if not 0 < low < high < 1:
            raise VidlatentError(
                f"config.distill.score.level_range={tuple(options.level_range)}: give two levels "
                "between 0 and 1 that rise, such as (0.02, 0.98)."
            )

    def _check_teacher(self, config: ConfigDict) -> None:
        teacher, named = self.teacher, f"config.distill.teacher={config.distill.teacher}"
        usual = teacher.config.sampler.guidance.scales
        if usual and teacher.guidance is None and not config.distill.unguided:
            raise VidlatentError(
                f"{named} is usually sampled with guidance {tuple(usual)}, which its scores do not "
                "have: build it in first (task distill_guidance), or set "
                "config.distill.unguided=True to distil it without."
            )
        if teacher.guidance is not None and teacher.guidance.scale_range:
            raise VidlatentError(
                f"{named} takes its guidance scale as an input, and the task distill_score has one "
                "distribution to match: build in one scale (config.distill.scales)."
            )

    @functools.cached_property
    def frozen(self) -> dict[str, FrozenNetwork]:
        """Those of the inputs and of the adapters, and the teacher."""
        return {**self.inputs.frozen, **self.adapters.frozen, "teacher": self.teacher.network}

    def describe(self) -> Distilled:
        config = self.config
        shape = self.spec.latent_shape(tuple(config.sample.size or config.data.buckets[-1][:3]))
        plan = plan_sampler(config, self.model, shape[:3])
        grid = describe_grid(config, plan.nfe, tuple(plan.grid.sigmas))
        return Distilled(self.teacher.guidance, ((0, grid),), self.teacher.place)

    def pick_evaluated(self, state: State, params: Any) -> dict[str, Any]:
        return {"student": params, "fake": state["fake"]["params"]}

    def init(self, key: jax.Array) -> State:
        params = self.init_params(key)
        fake = jax.tree.map(jnp.copy, params)
        if self.fake_lora is not None:
            fake = init_adapters(jax.random.fold_in(key, 1), params, self.fake_lora)
        state = init_state(self.adapters.init(key, params), self.optimizer)
        extra = {**state["extra"], "images": jnp.zeros((), jnp.int32)}
        return {**state, "extra": extra, "fake": init_player(fake, self.fake_optimizer)}

    def merge_fake(self, trained: Any, frozen: Mapping[str, Any]) -> Any:
        """The fake score's parameters; adapters of it adapt the frozen teacher."""
        if self.fake_lora is None:
            return trained
        return merge_adapters(frozen["teacher"], trained, self.fake_lora)

    def train_step(
        self, state: State, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any]
    ) -> tuple[State, dict[str, jax.Array]]:
        # A branch, and not two updates of which one is thrown away: only one of them runs.
        return lax.cond(
            self.is_generators_turn(state),
            self.update_generator,
            self.update_fake,
            state,
            batch,
            frozen,
        )

    def is_generators_turn(self, state: State) -> jax.Array:
        """Whether the next step updates the generator, bool scalar.

        Every step is the fake score's until it has learned from ``generator_after`` samples.
        """
        place = state["step"] % (self.options.fake_updates + 1)
        begun = state["extra"]["images"] >= self.options.generator_after
        return begun & (place == self.options.fake_updates)

    def update_generator(
        self, state: State, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any]
    ) -> tuple[State, dict[str, jax.Array]]:
        """One update of the generator; the fake score stays as it is."""
        (loss, report), grads = self._differentiate(
            self.compute_generator_loss, state["params"], state, batch, frozen
        )
        state, more = apply_gradients(
            state,
            tidy_gradients(grads, self.options.clip_value),
            loss,
            optimizer=self.optimizer,
            rate=self.rate,
            ema_decay=self.config.optim.ema_decay,
        )
        return state, self._report(state, "generator", loss, report, more)

    def update_fake(
        self, state: State, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any]
    ) -> tuple[State, dict[str, jax.Array]]:
        """One update of the fake score; the generator stays as it is."""
        (loss, report), grads = self._differentiate(
            self.compute_fake_loss, state["fake"]["params"], state, batch, frozen
        )
        update = PlayerUpdate(
            tidy_gradients(grads, self.options.clip_value),
            self.fake_optimizer,
            self.fake_rate(state["step"]),
        )
        state, more = apply_player_gradients(state, "fake", update, loss)
        seen = state["extra"]["images"] + jnp.sum(batch["mask"]).astype(jnp.int32)
        state = {**state, "extra": {**state["extra"], "images": seen}}
        return state, self._report(state, "fake", loss, report, more)

    def _differentiate(self, compute: Callable, params: Any, state: State, batch: Any, frozen: Any):
        """``((loss, report), gradient)``, averaged over ``config.optim.accumulate`` slices."""

        def run(rows, number):
            return jax.value_and_grad(compute, has_aux=True)(params, state, rows, frozen, number)

        return accumulate_gradients(run, batch, self.config.optim.accumulate)

    def compute_generator_loss(
        self, params: Any, state: State, batch: Mapping[str, jax.Array], frozen: Any, number: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean loss over a slice of the batch, and scalars to log.

        Gradients flow to ``params`` alone, through what teacher and fake score see.
        """
        drawn = self._draw(state, batch, frozen, number)
        params = self.adapters.merge(params, frozen)
        x = self._finish(stop_frozen_gradients(params, self.config.optim.freeze), drawn)
        noisy = interpolate(x, drawn.eps, drawn.sigma)
        fake = self.merge_fake(state["fake"]["params"], frozen)
        velocity, bce = self._judge(fake, noisy, drawn, real=True)
        match = self.losses.match(
            self._make_network(self.teacher.model, frozen["teacher"], drawn),
            lambda noisy, sigma: velocity,  # it has been evaluated just now
            x,
            drawn.eps,
            drawn.sigma,
        )
        size = x[0].size
        weight = self._find_adversarial_weight(state, self.options.adversarial_weight)
        loss, lost = average_losses(self.losses.generator(match, bce, size, weight), drawn.mask)
        gap = jnp.square(match.teacher - match.fake).mean(axis=tuple(range(1, x.ndim)))
        return loss, {
            "score": average_losses(match.loss / size, drawn.mask)[0],
            "bce": average_losses(bce, drawn.mask)[0],
            "gap": jnp.sqrt(average_losses(gap, drawn.mask)[0]),
            "lost": lost,
            "step": drawn.number.astype(jnp.float32),
        }

    def compute_fake_loss(
        self, params: Any, state: State, batch: Mapping[str, jax.Array], frozen: Any, number: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As ``compute_generator_loss``, of the fake score's parameters."""
        drawn = self._draw(state, batch, frozen, number)
        params = self.merge_fake(params, frozen)
        params = stop_frozen_gradients(params, self.config.distill.optim.freeze)
        x = lax.stop_gradient(self._finish(drawn.student, drawn))
        noisy = interpolate(x, drawn.eps, drawn.sigma)
        velocity, bce = self._judge(params, noisy, drawn, real=False)
        if self.options.discriminator_weight:
            # Real and generated samples at the same levels with the same noise (published).
            real = interpolate(drawn.real, drawn.eps, drawn.sigma)
            bce = 0.5 * (bce + self._judge(params, real, drawn, real=True)[1])
        flow = fake_score_loss(lambda noisy, sigma: velocity, x, drawn.eps, drawn.sigma)
        size = x[0].size
        weight = self._find_adversarial_weight(state, self.options.discriminator_weight)
        loss, lost = average_losses(self.losses.fake(flow, bce, size, weight), drawn.mask)
        return loss, {
            "flow": average_losses(flow / size, drawn.mask)[0],
            "bce": average_losses(bce, drawn.mask)[0],
            "lost": lost,
            "step": drawn.number.astype(jnp.float32),
        }

    def compare(
        self,
        teacher: Callable,
        velocity: jax.Array,
        tokens: jax.Array,
        x: jax.Array,
        eps: jax.Array,
        sigma: jax.Array,
    ) -> tuple[Any, jax.Array, jax.Array]:
        """``(match, loss of the scores [B], adversarial loss [B])`` of a generator's samples.

        Args:
          teacher: ``(noisy, sigma) -> velocity``.
          velocity, tokens: what the fake score predicts from ``x`` with noise, and its trunk.
          x, eps, sigma: as of ``score_identity_loss``.
        """
        match = self.losses.match(teacher, lambda noisy, sigma: velocity, x, eps, sigma)
        bce = binary_cross_entropy(pool_logits(tokens, self.options.pooling), True)
        size, weight = x[0].size, self.options.adversarial_weight
        score = self.losses.generator(match, bce, size, 0.0)
        # What is common to both is subtracted, so that no gradient of the scores is left.
        return match, score, self.losses.generator(match, bce, size, weight) - score

    def _draw(self, state: State, batch: Any, frozen: Any, number: Any) -> Drawn:
        """Random numbers depend on the seed, the stream's name, the step and ``number`` alone."""
        config, step = self.config, state["step"]
        key = make_slice_keys(config.seed, step, number)
        real, conditions = self.inputs(batch, frozen, key("latent"))
        plan = plan_sampler(config, self.model, real.shape[1:4])
        drop = self.draw_drop_masks(key("drop"), real, conditions)
        # Of the whole step: every device and process, and every slice, takes the same one.
        chosen = draw_step(random_key(config.seed, "student_step", step), plan.nfe)

        student = self.adapters.merge(state["params"], frozen)

        def denoise(x, time, index):
            del index
            return self.model.apply(
                {"params": student}, x, time, conditions, drop=drop, method="denoise"
            )

        noise, eps = (
            jax.random.normal(key(stream), real.shape, jnp.float32) for stream in ("start", "score")
        )
        z = run_steps(plan, denoise, noise, chosen - 1, key("renoise"))
        sigma = self.draw_levels(key("level"), real.shape[0], real.shape[1:4])
        return Drawn(real, conditions, drop, student, plan, chosen, z, eps, sigma, batch["mask"])

    def draw_levels(self, key: jax.Array, batch: int, grid: Sequence[int]) -> jax.Array:
        """Noise levels ``[batch]`` for latents of ``grid`` (frames, rows, columns)."""
        options = self.options
        if options.levels == "logit_normal":
            return sample_sigma(key, batch, options.level_mean, options.level_std)
        schedule = make_noise_schedule(self.config, self.model, tuple(grid))
        assert isinstance(schedule, Flow)  # checked at the start
        low, high = options.level_range
        shift = self.config.sampler.shift or schedule.shift
        return shift_levels(jax.random.uniform(key, (batch,), minval=low, maxval=high), shift)

    def _finish(self, params: Any, drawn: Drawn) -> jax.Array:
        """The student's clean sample in its drawn step."""

        def network(x, time):
            return self.model.apply(
                {"params": params}, x, time, drawn.conditions, drop=drawn.drop, method="denoise"
            )

        return last_step(drawn.plan, network, drawn.z, drawn.number)

    def _make_network(self, model: Any, params: Any, drawn: Drawn) -> Callable:
        def network(noisy, sigma):
            time = network_time(sigma)
            return model.apply(
                {"params": params}, noisy, time, drawn.conditions, drop=drawn.drop, method="denoise"
            )

        return network

    def _judge(
        self, params: Any, noisy: jax.Array, drawn: Drawn, *, real: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Velocity of the fake score, and cross-entropy ``[B]`` of its trunk for that answer."""
        velocity, tokens = denoise_with_trunk(
            self.model, params, noisy, network_time(drawn.sigma), drawn.conditions, drawn.drop
        )
        return velocity, binary_cross_entropy(pool_logits(tokens, self.options.pooling), real)

    def _find_adversarial_weight(self, state: State, weight: float) -> jax.Array:
        begun = state["extra"]["images"] >= self.options.adversarial_after
        return jnp.where(begun, weight, 0.0)

    def _report(
        self, state: State, player: str, loss: jax.Array, report: Any, more: Any
    ) -> dict[str, jax.Array]:
        """Scalars to log: both branches report the same names, with a share of 0 for the other's.

        ``loss`` is that of the network that was updated; neither says how far the student is.
        """
        found = {
            "images": state["extra"]["images"].astype(jnp.float32),
            "student_step": report["step"],
        }
        for name, parts in _PARTS.items():
            own = {**report, "grad_norm": more["grad_norm"], "lr": more["lr"], "loss": loss}
            for part in parts:
                mine = name == player
                found[f"{name}/{part}"] = own[part] if mine else jnp.float32(0)
                found[f"{name}/{part}{SHARE}"] = jnp.float32(mine)
        return {"loss": loss, **more, **found}

    def make_validation(
        self, run: Any, frozen: Mapping[str, Any], mesh: Mesh, make_loader: Callable[[], Any]
    ) -> StudentValidation:
        return StudentValidation(self, run, frozen, mesh, make_loader)

    def inherit_players(self, former: ConfigDict) -> tuple[str, ...]:
        """The fake score of a run of the same task; else it starts from the teacher."""
        return ("fake",) if former.task == self.config.task else ()


class StudentValidation(GeneratorValidation):
    """How far the student is, which its loss does not tell (``evaluate.student``)."""

    def measure(self, params: Any, loader: Any) -> StudentScores:
        return evaluate_student(self._step, params, loader, self._task.config)


_ALL = ("loss", "bce", "grad_norm", "lr", "lost")
_PARTS = {"generator": (*_ALL, "score", "gap"), "fake": (*_ALL, "flow")}


def average_losses(losses: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean over the samples that are no padding, and the share of them that is not finite.

    Those count as 0 (published); if all are such, so is the mean, and the step is skipped.
    """
    finite = jnp.isfinite(losses)
    real = jnp.maximum(jnp.sum(mask), 1.0)
    lost = jnp.sum(jnp.where(finite, 0.0, mask)) / real
    mean = jnp.sum(jnp.where(finite, losses, 0.0) * mask) / real
    return jnp.where(lost < 1.0, mean, jnp.nan), lost
