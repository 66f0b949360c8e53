"""Training a generator by rewards of its own samples: GRPO with MixGRPO's window (FSVideo 2.4.3).

Each step draws a group of samples for every prompt of the batch, which differ by the noise of a
few steps alone, compares their rewards, and makes the better ones likelier (``train.rollout``). The
data are prompts: of a latent set's clips nothing is used but what their videos are asked for by,
texts, classes and first frames.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vidlatent.diffusion.sde import NOISES
from vidlatent.diffusion.windows import Windows, find_last_random, make_windows
from vidlatent.errors import VidlatentError
from vidlatent.latents.refiner_inputs import Parts
from vidlatent.latents.space import Latents, abstract_at_rest
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.train.adapters import BASE
from vidlatent.train.rollout import Problem, Rollout, Samples, Tally
from vidlatent.train.state import State, apply_gradients, random_key
from vidlatent.train.tasks.base import MUST_BE_ZERO, SHARE
from vidlatent.train.tasks.rewarded import RewardedTask
from vidlatent.weights.files import load_params

__all__ = ["GrpoTask"]


class GrpoTask(RewardedTask):
    """Raises ``config.rewards.use`` by updates of the policy that ``config.generator`` is.

    Batches hold prompts, ``config.rl.group`` samples are drawn of each. Arguments are those of
    ``RewardedTask``.
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
        super().__init__(config, model, latents, parts, tokenizer)

    @functools.cached_property
    def frozen(self) -> dict[str, FrozenNetwork]:
        """Decoder, rewards, what conditions need, and the starting weights if the KL term does."""
        found = dict(super().frozen)
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

    @functools.cache  # noqa: B019 - as many as there are buckets, and the task lives with the run
    def windows_of(self, shape: tuple[int, ...]) -> Windows:
        """The windows of the steps at a latent's shape ``(t, h, w, c)``."""
        policy, window = self.policy_of(shape), self.config.rl.window
        return make_windows(
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

    def train_step(
        self, state: State, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any]
    ) -> tuple[State, dict[str, jax.Array]]:
        step, rl = state["step"], self.config.rl

        def key(stream, seed=-1, step=step):
            return random_key(self.config.seed if seed < 0 else seed, stream, step)

        latent, conditions = jax.lax.stop_gradient(self.inputs(batch, frozen, key("latent")))
        shape = self.find_shape(latent)
        policy, windows = self.policy_of(shape), self.windows_of(shape)
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
