"""Training a generator: add noise to latents, drop conditions, compare with the target, update.

Latents are read from a latent data set, or encoded from videos by the frozen tokenizer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.diffusion.guidance import drop_masks
from vidlatent.diffusion.objective import draw, sample_loss
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.generator_loss import (
    GeneratorScores,
    compile_loss_step,
    evaluate_loss,
    make_loss_step,
)
from vidlatent.evaluate.generator_report import write_generator_report
from vidlatent.latents.channels import follow_latents
from vidlatent.latents.inputs import has_pictures, missing_condition_masks
from vidlatent.latents.refiner_inputs import make_inputs
from vidlatent.latents.space import (
    Latents,
    abstract_at_rest,
    abstract_generator,
    check_generator,
    example,
    generator_of,
    load_latents,
    make_noise_schedule,
    pin_tokenizer,
)
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.parallel.multihost import is_main
from vidlatent.paths import as_path
from vidlatent.registry import did_you_mean
from vidlatent.sample.grid import SampleGrid
from vidlatent.train.adapters import Adapters
from vidlatent.train.freeze import stop_frozen_gradients
from vidlatent.train.optim import make_learning_rate, make_optimizer
from vidlatent.train.state import State, init_state
from vidlatent.train.tasks.base import Player, select_arrays
from vidlatent.train.update import make_slice_keys, update_by_loss
from vidlatent.weights.files import is_workdir

__all__ = ["GeneratorTask", "GeneratorValidation", "open_generator"]


class GeneratorTask:
    """Trains ``config.generator`` by ``config.diffusion`` (``tasks.base.Task``).

    Batches hold ``latent`` float32 ``[B, t, h, w, c]``, not yet standardised (or ``video`` uint8
    ``[B, T, H, W, 3]``), ``mask`` float32 ``[B]`` (0 for padding), and the arrays that conditions
    are made from.

    Args:
      config: config of the run.
      model, latents: the generator and the facts about its latents; None makes them from the
        config.

    Attributes:
      inputs: makes latents and conditions from batches.
    """

    players: Mapping[str, Player] = {}

    def __init__(self, config: ConfigDict, model: Any = None, latents: Latents | None = None):
        if latents is None:
            config, model, latents = open_generator(config, model)
        self.config = config
        self.model, self.latents, self.spec = model, latents, latents.spec
        self._check_drop()
        if not has_pictures(config):
            self.check_prompts()
        self.adapters = Adapters(config, self.family, lambda: abstract_at_rest(self.model))
        self.optimizer = make_optimizer(config)
        self.rate = make_learning_rate(config, config.train.steps)
        self.inputs = self.make_inputs(augment=True)
        self.arrays = self.inputs.arrays
        self.eval_step = make_loss_step(
            config, model, self.make_inputs(augment=False), self.make_eval_loss()
        )

    def make_inputs(self, *, augment: bool) -> Any:
        """What makes latents and conditions of a batch; ``augment`` counts for refiners alone."""
        return make_inputs(self.config, self.model, self.latents, augment=augment)

    def _check_drop(self) -> None:
        reads = self.model.reads
        for name in {n for group in self.config.conditions.drop for n in group.split("+")}:
            if name not in reads:
                hint = did_you_mean(name, reads) if reads else "it reads nothing."
                raise VidlatentError(
                    f"config.conditions.drop names {name!r}, which the generator does not read: "
                    f"{hint}"
                )

    def check_prompts(self) -> None:
        """Called where the data are prompts without pictures, whose latents mean nothing."""
        raise VidlatentError(
            f"config.data.path={self.config.data.path} holds prompts without pictures, and the "
            f"task {self.config.task!r} learns from the clips themselves: name a set of clips."
        )

    def read_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return select_arrays(batch, self.arrays)

    @property
    def family(self) -> str:
        return self.config.generator.name

    @functools.cached_property
    def frozen(self) -> dict[str, FrozenNetwork]:
        """The tokenizer if the data are videos; the states of the empty text if they are used.

        With adapters, the weights that they adapt besides.
        """
        return {**self.inputs.frozen, **self.adapters.frozen}

    @staticmethod
    def abstract_params(config: ConfigDict) -> Any:
        return abstract_generator(generator_of(config))

    def init_params(self, key: jax.Array) -> Any:
        """Random parameters of the model."""
        noisy, time, conditions = example(self.model)
        noisy, time = (jnp.zeros(leaf.shape, leaf.dtype) for leaf in (noisy, time))
        return self.model.init(key, noisy, time, conditions, method="denoise")["params"]

    def init(self, key: jax.Array) -> State:
        return init_state(self.adapters.init(key, self.init_params(key)), self.optimizer)

    def train_step(
        self, state: State, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any]
    ) -> tuple[State, dict[str, jax.Array]]:
        def compute_loss(params, rows, number):
            return self.compute_loss(params, rows, frozen, state["step"], number)

        return update_by_loss(
            state,
            batch,
            compute_loss,
            config=self.config,
            optimizer=self.optimizer,
            rate=self.rate,
        )

    def compute_loss(
        self, params: Any, batch: Mapping[str, jax.Array], frozen: Any, step: Any, number: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean loss over the real (not padding) samples of a slice of the batch, float32 scalar.

        ``number`` is the slice's. With the loss comes what is logged beside it: nothing here.
        """
        config = self.config
        key = make_slice_keys(config.seed, step, number)
        x0, conditions = self.inputs(batch, frozen, key("latent"))
        drop = self.draw_drop_masks(key("drop"), x0, conditions)
        params = self.adapters.merge(params, frozen)
        params = stop_frozen_gradients(params, config.optim.freeze)
        losses = self.compute_losses(params, frozen, x0, conditions, drop, step, key("diffusion"))
        mask = batch["mask"]
        # A slice may hold padding only: 0 and not 0 / 0.
        return jnp.sum(losses * mask) / jnp.maximum(jnp.sum(mask), 1.0), {}

    def compute_losses(
        self,
        params: Any,
        frozen: Any,
        x0: jax.Array,
        conditions: Any,
        drop: Any,
        step: Any,
        key: Any,
    ) -> jax.Array:
        """Loss of each sample ``[B]``: of noised latents ``x0`` ``[B, t, h, w, c]``."""
        del frozen, step
        # Of this bucket: the shift of flow matching may grow with the number of tokens.
        schedule = make_noise_schedule(self.config, self.model, x0.shape[1:4])
        drawn = draw(schedule, key, x0)
        output = self.model.apply(
            {"params": params}, drawn.x, drawn.time, conditions, drop=drop, method="denoise"
        )
        diffusion = self.config.diffusion
        return sample_loss(
            schedule, drawn, output, x0, diffusion.huber_reduction, diffusion.huber_c0
        )

    def make_eval_loss(self) -> Any:
        """The loss of the evaluation (``evaluate.generator_loss.LossAt``); None: of the data."""
        return None

    def pick_evaluated(self, state: State, params: Any) -> Any:
        """What ``eval_step`` takes as parameters; ``params`` are the averaged ones of ``state``."""
        del state
        return params

    def sampling_config(self, step: int) -> ConfigDict:
        """The config by which samples of the parameters after ``step`` steps are drawn."""
        del step
        return self.config

    def draw_drop_masks(self, key: Any, x0: jax.Array, conditions: Any) -> dict[str, jax.Array]:
        """Condition -> bool ``[B]``: True where it is dropped at random or the sample lacks it.

        The rates are those of ``config.conditions.drop``; a name such as ``first+image`` drops both
        conditions together. ``x0`` is ``[B, t, h, w, c]``.
        """
        batch, frames = x0.shape[:2]
        rates, joint = self.config.conditions.drop.to_dict(), self.config.conditions.joint
        drop: dict[str, jax.Array] = {}
        for group, mask in drop_masks(key, batch, rates, joint).items():
            for name in group.split("+"):
                # A name may be in several groups, such as first and first+image.
                drop[name] = drop[name] | mask if name in drop else mask
        missing = missing_condition_masks(conditions, self.model.reads, frames)
        for name, mask in missing.items():
            drop[name] = drop[name] | mask if name in drop else mask
        return drop

    def make_validation(
        self, run: Any, frozen: Mapping[str, Any], mesh: Mesh, make_loader: Callable[[], Any]
    ) -> GeneratorValidation:
        return GeneratorValidation(self, run, frozen, mesh, make_loader)

    def begin(self, workdir: Path, step: int, labels: Sequence[str]) -> None:
        """Store the facts about the latents and the class names, which sampling needs."""
        # The data is opened after the task is made; only now are its class names known.
        named = dataclasses.replace(self.latents, label_names=tuple(labels))
        check_generator(self.model, named)
        named.write_or_check(workdir, step)
        pin_tokenizer(self.config, self.latents.space, f"the generator {workdir}")

    def check_classes(self, labels: Sequence[str], source: str) -> None:
        """Raise unless the data number the classes as the run in ``source`` does."""
        if "label" not in self.model.reads or not source or not is_workdir(source):
            return
        known = Latents.load(as_path(source)).label_names
        if known and tuple(labels) != known:
            raise VidlatentError(
                f"config.data.path={self.config.data.path} has the classes "
                f"{', '.join(labels) or 'none'}, and {source} knows {', '.join(known)}: each would "
                "get another one's number; give the data the same classes in the same order."
            )

    def inherit_players(self, former: ConfigDict) -> tuple[str, ...]:
        del former
        return ()


def open_generator(config: ConfigDict, model: Any = None) -> tuple[ConfigDict, Any, Latents]:
    """The config with its latents' channels, its generator (unless given), and the latents."""
    latents = load_latents(config)
    config = follow_latents(config, latents.spec)
    model = generator_of(config) if model is None else model
    check_generator(model, latents)
    return config, model, latents


class GeneratorValidation:
    """Loss of the EMA weights on validation clips, and a few samples (``tasks.base.Validation``).

    The loss uses fixed noise levels, so that evaluations of a run are comparable. Samples are made
    with the conditions of validation clips.
    """

    def __init__(
        self,
        task: GeneratorTask,
        run: Any,
        frozen: Mapping[str, Any],
        mesh: Mesh,
        make_loader: Callable[[], Any],
    ):
        self._make_loader, self._task = make_loader, task
        self._merge = functools.partial(task.adapters.merge_for_evaluation, frozen=frozen)
        evaluated = task.pick_evaluated(run.state, self._merge(run.state["ema"]))
        self._step = compile_loss_step(task.eval_step, task.arrays, frozen, mesh, evaluated)
        self._make_grid = lambda config: SampleGrid(config, task.latents, frozen, mesh)
        # By number of steps: a student that learns fewer and fewer is drawn with its own.
        self._grids: dict[int, SampleGrid] = {}
        self._sheet = b""
        self._videos: list[np.ndarray] = []

    def measure(self, params: Any, loader: Any) -> GeneratorScores:
        """The scores over a finite loader of what ``pick_evaluated`` has picked."""
        return evaluate_loss(self._step, params, loader)

    def __call__(self, run: Any) -> GeneratorScores:
        config, params = self._task.sampling_config(run.step), self._merge(run.state["ema"])
        steps = config.sampler.steps
        if steps not in self._grids:
            self._grids[steps] = self._make_grid(config)
        with contextlib.closing(self._make_loader()) as loader:
            evaluated = self._task.pick_evaluated(run.state, params)
            result = self.measure(evaluated, loader)
            self._sheet = self._grids[steps](params, loader)
            self._videos = self._grids[steps].videos
        if self._sheet and is_main():
            file = run.workdir / "samples" / f"step_{run.step}.png"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(self._sheet)
        return result

    def pictures(self, result: GeneratorScores) -> dict[str, bytes]:
        del result
        return {"val/samples": self._sheet} if self._sheet else {}

    def videos(self, result: GeneratorScores) -> dict[str, np.ndarray]:
        del result
        return {f"val/samples/{n}": video for n, video in enumerate(self._videos)}

    def write(self, run: Any, result: GeneratorScores, folder: Path) -> list[str]:
        return write_generator_report(
            result,
            folder,
            config=run.config,
            step=run.step,
            workdir=run.workdir,
            sheet=self._sheet,
        )
