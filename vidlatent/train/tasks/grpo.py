"""Training a generator by rewards of its own samples: GRPO with MixGRPO's window (FSVideo 2.4.3).

Each step draws a group of samples for every prompt of the batch, which differ by the noise of a
few steps alone, compares their rewards, and makes the better ones likelier (``train.rollout``). The
data are prompts: of a latent set's clips nothing is used but what their videos are asked for by,
texts, classes and first frames.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.diffusion.sde import NOISES
from vidlatent.diffusion.windows import Windows, find_last_random, make_windows
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.held_out_rewards import make_reward_step
from vidlatent.latents.distilled import Distilled
from vidlatent.latents.refiner_inputs import Parts, read_part
from vidlatent.latents.space import Latents, abstract_at_rest
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.models.load import find_step
from vidlatent.paths import as_path
from vidlatent.sample.few_steps import settle_sampler
from vidlatent.sample.judge import Judge
from vidlatent.sample.policy import Policy
from vidlatent.sample.prompts import find_shape, make_prompts
from vidlatent.train.adapters import BASE
from vidlatent.train.freeze import stop_frozen_gradients
from vidlatent.train.reward_validation import RewardValidation
from vidlatent.train.rollout import Problem, Rollout, Samples, Tally
from vidlatent.train.state import State, apply_gradients, random_key
from vidlatent.train.tasks.base import MUST_BE_ZERO, SHARE, select_arrays
from vidlatent.train.tasks.generator import GeneratorTask
from vidlatent.weights.files import is_workdir, load_params

__all__ = ["GrpoTask"]


class GrpoTask(GeneratorTask):
    """Raises ``config.rewards.use`` by updates of the policy that ``config.generator`` is.

    Batches hold prompts, ``config.rl.group`` samples are drawn of each.

    Args:
      config, model, latents: as ``GeneratorTask``.
      parts: base model and upsampler of a refiner; None reads those that the config names.
      tokenizer: config of the tokenizer whose decoder is used, if its run need not be there.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: Any = None,
        latents: Latents | None = None,
        parts: Parts | None = None,
        tokenizer: ConfigDict | None = None,
    ):
        _check(config)
        self.distilled, config = _follow_start(config)
        if configs.role_of(config) == "refiner" and parts is None:
            for name in ("base", "upsampler"):
                read_part(config, name)  # first of all: the commonest slip
        self._parts = parts
        super().__init__(config, model, latents)
        config = self.config
        use, groups = tuple(config.rewards.use), config.rl.decode_groups
        self.judge = Judge(config, self.latents, use, tokenizer, groups)
        watched = tuple(dict.fromkeys((*use, *config.rl.watch)))
        self.watch = Judge(config, self.latents, watched, tokenizer, groups)
        self.weights = tuple(self.judge.rewards.weights[name] for name in self.judge.names)
        if not any(self.weights):
            raise VidlatentError("config.rewards.weights: every score has weight 0.")
        arrays = (*self.inputs.arrays, *self.judge.decoder.arrays)
        self.arrays = tuple(dict.fromkeys(arrays))
        self.labels = self.latents.label_names
        self.eval_step = make_reward_step(self)

    def make_inputs(self, *, augment: bool) -> Any:
        del augment  # conditions are those of sampling
        return make_prompts(self.config, self.model, self.latents, self._parts)

    def read_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays, and the prompts as the rewards' tokenizers make them."""
        tokens = self.watch.read_prompts(batch, self.labels)
        return {**select_arrays(batch, self.arrays), **tokens}

    @functools.cached_property
    def frozen(self) -> dict[str, FrozenNetwork]:
        """Decoder, rewards, what conditions need, and the starting weights if the KL term does."""
        found = {**super().frozen, **self.watch.frozen}
        if self.config.rl.kl_weight and self.config.rl.kl_kind != "log_ratio":
            found["reference"] = self._describe_reference()
        return found

    def _describe_reference(self) -> FrozenNetwork:
        if self.adapters.lora is not None:
            return self.adapters.frozen[BASE]  # what is adapted is what it starts from
        start, kind = self.config.train.init_from, self.config.train.init_kind
        if not start or kind:
            raise VidlatentError(
                "config.rl.kl_weight holds the policy near the weights that it starts from: name "
                "them by config.train.init_from (and no init_kind), or set config.rl.kl_weight=0."
            )

        def load(abstract):
            return load_params(start, abstract, family=self.family)

        return FrozenNetwork(abstract_at_rest(self.model), load)

    def merge(self, trained: Any, frozen: Mapping[str, Any]) -> Any:
        """The model's parameters, of which gradients reach those that are trained."""
        params = self.adapters.merge(trained, frozen)
        return stop_frozen_gradients(params, self.config.optim.freeze)

    @functools.cache  # noqa: B019 - as many as there are buckets, and the task lives with the run
    def policy_of(self, shape: tuple[int, ...]) -> tuple[Policy, Windows]:
        """The policy at a latent's shape ``(t, h, w, c)``, and the windows of its steps."""
        policy, window = Policy(self.model, self.config, shape), self.config.rl.window
        windows = make_windows(
            policy.steps,
            window.size,
            stay=window.stay,
            stride=window.stride,
            order=window.order,
            end=window.end,
            last=find_last_random(policy.random.std, self.config.rl.least_std),
            decay=window.decay,
            threshold=window.threshold,
        )
        return policy, windows

    def find_shape(self, latent: jax.Array) -> tuple[int, ...]:
        """Shape ``(t, h, w, c)`` of what is drawn for prompts whose clips' latents these are."""
        return find_shape(self.config, self.latents, latent.shape[1:])

    def train_step(
        self, state: State, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any]
    ) -> tuple[State, dict[str, jax.Array]]:
        step, rl = state["step"], self.config.rl

        def key(stream, seed=-1, step=step):
            return random_key(self.config.seed if seed < 0 else seed, stream, step)

        latent, conditions = jax.lax.stop_gradient(self.inputs(batch, frozen, key("latent")))
        policy, windows = self.policy_of(self.find_shape(latent))
        first, length = windows.at(step, key("window", step=0))
        problem = Problem(
            conditions,
            self.judge.show(batch, frozen, conditions.get("first")),
            batch["mask"],
            first,
            length,
            key("rollout start", rl.start_seed),
            key("rollout noise", rl.noise_seed),
        )
        rollout = Rollout(policy, self.judge, rl, windows.size, self.weights, self.merge)
        update = functools.partial(self._update, length)
        state, samples, tally, report = rollout.run(state, problem, frozen, update)
        state = {**state, "step": step + 1}
        metrics = self._report(rollout, windows, problem, samples, tally)
        return state, {**metrics, **report}

    def _update(
        self, length: jax.Array, state: State, gradients: Any, loss: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        """One optimizer step; ``step`` stays, as it counts sets of samples."""
        new, report = apply_gradients(
            state,
            gradients,
            loss,
            optimizer=self.optimizer,
            rate=self.rate,
            ema_decay=self.config.optim.ema_decay,
        )
        # An empty window trains nothing, weight decay and averages included.
        new = jax.tree.map(lambda n, o: jnp.where(length > 0, n, o), new, state)
        return {**new, "step": state["step"]}, report

    def _report(
        self,
        rollout: Rollout,
        windows: Windows,
        problem: Problem,
        samples: Samples,
        tally: Tally,
    ) -> dict[str, jax.Array]:
        rl, updates = self.config.rl, self.config.rl.updates
        mask = problem.mask / jnp.maximum(problem.mask.sum(), 1.0)
        rows = jnp.repeat(mask, rl.group // rl.parts) / rl.group
        means = jnp.einsum("nbr,b->r", samples.scores, rows)
        advantage, spreads = rollout.compare(samples.scores)
        reward = jnp.dot(means, jnp.asarray(self.weights, means.dtype))
        found = {
            "loss": tally.loss,
            "reward": reward,
            "advantage_size": jnp.einsum("nb,b->", jnp.abs(advantage), rows),
            "window": problem.first.astype(jnp.float32),
            "clip_share": tally.clipped / updates,
            "log_ratio_size": tally.distance / updates,
            "kl": tally.kl / updates,
            f"first_ratio_error{MUST_BE_ZERO}": jnp.where(
                tally.first_error > rl.ratio_tolerance, tally.first_error, 0.0
            ),
        }
        named = dict(zip(self.judge.names, means, strict=True))
        found |= {f"reward/{k}": v for k, v in self.judge.rewards.label(named).items()}
        spread = dict(zip(self.judge.names, mask @ spreads, strict=True))
        found |= {f"spread/{k}": v for k, v in self.judge.rewards.label(spread).items()}
        total = sum(abs(w) * spread[n] for n, w in self.judge.rewards.weights.items())
        for start in windows.starts:
            # Logged as means over the steps at this position alone.
            here = (problem.first == start).astype(jnp.float32)
            for name, value in (("reward", reward), ("spread", total)):
                found[f"window_{start}/{name}"] = here * value
                found[f"window_{start}/{name}{SHARE}"] = here
        return found

    def make_validation(
        self, run: Any, frozen: Mapping[str, Any], mesh: Mesh, make_loader: Callable[[], Any]
    ) -> Any:
        return RewardValidation(self, run, frozen, mesh, make_loader)

    def begin(self, workdir: Path, step: int, labels: Sequence[str]) -> None:
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
            sampler.spacing, sampler.shift = grid.spacing, grid.shift
        if known.guidance is not None and not known.guidance.scale_range:
            sampler.guidance.scales = ()
    kept = dataclasses.replace(known, grids=((0, grid),) if grid else ())
    return kept, settle_sampler(config, known, step)


def _check(config: ConfigDict) -> None:
    """Raise ``VidlatentError`` for options that do not go together."""
    rl = config.rl
    NOISES.get(rl.noise)
    if rl.group % rl.parts or rl.parts % rl.updates:
        raise VidlatentError(
            f"config.rl.parts={rl.parts} divides the group of {rl.group}, and config.rl.updates="
            f"{rl.updates} the parts: change one of them."
        )
    if config.optim.accumulate != 1:
        raise VidlatentError(
            "config.optim.accumulate has no meaning here: cut groups into parts by config.rl.parts."
        )
    if not config.tokenizer.path:
        raise VidlatentError(
            "config.tokenizer.path is empty, and rewards look at frames: name the workdir of the "
            "tokenizer that decodes."
        )
