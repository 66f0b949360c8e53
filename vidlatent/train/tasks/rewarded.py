"""What all fine-tuning by rewards of a generator's own samples has: prompts, judges, validation.

The data are prompts: of a latent set's clips the samples are asked for by texts, classes and first
frames.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.held_out_rewards import make_reward_step
from vidlatent.latents.distilled import Distilled
from vidlatent.latents.inputs import has_pictures
from vidlatent.latents.refiner_inputs import Parts, read_part
from vidlatent.latents.space import Latents
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.models.load import find_step
from vidlatent.paths import as_path
from vidlatent.sample.few_steps import settle_sampler
from vidlatent.sample.judge import Judge
from vidlatent.sample.policy import Policy
from vidlatent.sample.prompts import find_shape, make_prompts
from vidlatent.train.freeze import stop_frozen_gradients
from vidlatent.train.reward_validation import RewardValidation
from vidlatent.train.tasks.base import select_arrays
from vidlatent.train.tasks.generator import GeneratorTask
from vidlatent.weights.files import is_workdir

__all__ = ["RewardedTask"]


class RewardedTask(GeneratorTask):
    """Raises ``config.rewards.use`` of the samples of ``config.generator``.

    Args:
      config, model, latents: as ``GeneratorTask``.
      parts: base model and upsampler of a refiner; None reads those that the config names.
      tokenizer: config of the tokenizer whose decoder is used, if its run need not be there.

    Attributes:
      judge: decoder and rewards that train.
      watch: these and ``config.rl.watch``, for held-out prompts.
      weights: of the judge's scores.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: Any = None,
        latents: Latents | None = None,
        parts: Parts | None = None,
        tokenizer: ConfigDict | None = None,
    ):
        if not config.tokenizer.path and tokenizer is None:
            raise VidlatentError(
                "config.tokenizer.path is empty, and rewards look at frames: name the workdir of "
                "the tokenizer that decodes."
            )
        self.distilled, config = _follow_start(config)
        if configs.role_of(config) == "refiner" and parts is None:
            for name in ("base", "upsampler"):
                read_part(config, name)  # first of all: the commonest slip
        self._parts = parts
        super().__init__(config, model, latents)
        config = self.config
        use, groups = tuple(config.rewards.use), config.rl.decode_groups
        self.judge = self.make_judge(use, tokenizer)
        watched = tuple(dict.fromkeys((*use, *config.rl.watch)))
        self.watch = Judge(config, self.latents, watched, tokenizer, groups)
        self.weights = tuple(self.judge.rewards.weights[name] for name in self.judge.names)
        if not any(self.weights):
            raise VidlatentError("config.rewards.weights: every score has weight 0.")
        if not has_pictures(config) and self.judge.decoder.arrays:
            raise VidlatentError(
                f"the decoder of {config.tokenizer.path} reads a picture, and config.data.path="
                f"{config.data.path} holds prompts without: list them with pictures."
            )
        arrays = (*self.inputs.arrays, *self.judge.decoder.arrays)
        self.arrays = tuple(dict.fromkeys(arrays))
        self.labels = self.latents.label_names
        self.eval_step = make_reward_step(self)

    def check_prompts(self) -> None:
        seen = [name for name in self.model.reads if name not in ("text", "label")]
        if seen or configs.role_of(self.config) == "refiner":
            raise VidlatentError(
                f"config.data.path={self.config.data.path} holds prompts without pictures, and "
                f"this generator starts from one ({', '.join(seen) or 'the first frame'}): list "
                "pictures with captions, or take a generator of texts or classes."
            )

    def make_judge(self, names: Sequence[str], tokenizer: ConfigDict | None) -> Judge:
        """The judge that trains, of rewards by name."""
        return Judge(self.config, self.latents, names, tokenizer, self.config.rl.decode_groups)

    def make_inputs(self, *, augment: bool) -> Any:
        del augment  # conditions are those of sampling
        return make_prompts(self.config, self.model, self.latents, self._parts)

    def read_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays, and the prompts as the rewards' tokenizers make them."""
        tokens = self.watch.read_prompts(batch, self.labels)
        return {**select_arrays(batch, self.arrays), **tokens}

    @functools.cached_property
    def frozen(self) -> dict[str, FrozenNetwork]:
        """Decoder, rewards, and what conditions need."""
        return {**super().frozen, **self.watch.frozen}

    def merge(self, trained: Any, frozen: Mapping[str, Any]) -> Any:
        """The model's parameters, of which gradients reach those that are trained."""
        params = self.adapters.merge(trained, frozen)
        return stop_frozen_gradients(params, self.config.optim.freeze)

    @functools.cache  # noqa: B019 - as many as there are buckets, and the task lives with the run
    def policy_of(self, shape: tuple[int, ...]) -> Policy:
        """The sampler's steps at a latent's shape ``(t, h, w, c)``."""
        return self.make_policy(shape)

    def make_policy(self, shape: tuple[int, ...]) -> Policy:
        """What ``policy_of`` keeps; a task may refuse a sampler here."""
        return Policy(self.model, self.config, shape)

    def find_shape(self, latent: jax.Array) -> tuple[int, ...]:
        """Shape ``(t, h, w, c)`` of what is drawn for prompts whose clips' latents these are."""
        return find_shape(self.config, self.latents, latent.shape[1:])

    def make_validation(
        self, run: Any, frozen: Mapping[str, Any], mesh: Mesh, make_loader: Callable[[], Any]
    ) -> Any:
        return RewardValidation(self, run, frozen, mesh, make_loader)

    def begin(self, workdir: Path, step: int, labels: Sequence[str]) -> None:
        if not step:
            self.check_classes(labels, self.config.train.init_from)
        self.labels = tuple(labels)
        super().begin(workdir, step, labels)
        if self.distilled is not None:
            self.distilled.write_or_check(workdir, step)


def _follow_start(config: ConfigDict) -> tuple[Distilled | None, ConfigDict]:
    """What is built into the generator that a run starts from, and the config for its samples.

    Such a generator knows no steps but its own and is not guided again, whatever the config says.
    """
    source = config.train.init_from
    known = Distilled.load(source) if source and is_workdir(source) else None
    if known is None:
        return None, config
    step = find_step(configs.read(as_path(source)), as_path(source), -1)
    grid = known.grid_at(step)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        sampler = config.sampler
        if grid is not None:
            sampler.name, sampler.steps = grid.solver, grid.steps
            sampler.spacing, sampler.shift, sampler.eta = grid.spacing, grid.shift, grid.eta
        # A scale is asked for only where it is an input.
        if known.guidance is None or not known.guidance.scale_range:
            sampler.guidance.scales = ()
    kept = dataclasses.replace(known, grids=((0, grid),) if grid else ())
    return kept, settle_sampler(config, known, step)
