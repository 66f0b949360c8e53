"""Training a reward on judged pairs of videos, by Bradley-Terry with ties (VideoAlign 3.2)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.evaluate.rewards.pairs import PairScores, compile_pairs, score_pairs, write_pairs
from vidlatent.losses.preference import count_agreement, preference_loss
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.models.pretrained import init_network, network_shapes
from vidlatent.parallel.paths import path_name
from vidlatent.rewards import make_rewards
from vidlatent.rewards.pairs import PairJudge
from vidlatent.train.adapters import Adapters
from vidlatent.train.freeze import stop_frozen_gradients
from vidlatent.train.microbatches import accumulate_gradients
from vidlatent.train.optim import make_learning_rate, make_optimizer
from vidlatent.train.state import State, apply_gradients, init_state
from vidlatent.train.tasks.base import Player
from vidlatent.train.update import make_slice_keys
from vidlatent.weights.lora import Lora, describe_adapters

__all__ = ["RewardTask"]

_WITH_DROPOUT = "text/blocks/"


class RewardTask:
    """Trains the network of ``config.rewards.use`` (``tasks.base.Task``).

    Batches hold pairs (``data.sources.pairs``). The run starts from ``config.train.init_from``; its
    workdir is then a value of ``config.networks.<network>``.
    """

    players: Mapping[str, Player] = {}
    spec = PairJudge.spec

    def __init__(self, config: ConfigDict):
        self.config = config
        self.judge = PairJudge(config)
        self.arrays = self.judge.arrays
        self.adapters = Adapters(config, self.family, self._describe_held)
        lora = self.adapters.lora
        self._drops = lora is not None and bool(lora.dropout)
        if lora is not None and lora.dropout:
            self._check_dropout(lora)
        self.optimizer = make_optimizer(config)
        self.rate = make_learning_rate(config, config.train.steps)
        self.eval_step = self.judge.score

    def _check_dropout(self, lora: Lora) -> None:
        """Raise unless all adapters lie where layers apply the dropout."""
        found = jax.tree_util.tree_leaves_with_path(describe_adapters(self._describe_held(), lora))
        names = [path_name(path) for path, _ in found]
        others = [n for n in names if n.endswith("lora_a") and not n.startswith(_WITH_DROPOUT)]
        if others or not self.family.startswith("videoalign"):
            where = others[0].removesuffix("/lora_a") if others else self.family
            raise VidlatentError(
                f"config.optim.lora.dropout is of adapters in VideoAlign's {_WITH_DROPOUT}, and "
                f"{where} would be adapted without it: set dropout=0, or choose other targets."
            )

    def _describe_held(self) -> Any:
        frozen = self.judge.reward.frozen
        assert frozen is not None  # it has a network
        return frozen.abstract

    def read_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return self.judge.read_batch(batch)

    @property
    def family(self) -> str:
        return self.judge.reward.network

    @functools.cached_property
    def frozen(self) -> dict[str, FrozenNetwork]:
        """The weights that adapters adapt."""
        return dict(self.adapters.frozen)

    @staticmethod
    def abstract_params(config: ConfigDict) -> Any:
        (reward,) = make_rewards(config.rewards.use, config).rewards.values()
        return network_shapes(reward.network)

    def init(self, key: jax.Array) -> State:
        return init_state(self.adapters.init(key, init_network(self.family, key)), self.optimizer)

    def train_step(
        self, state: State, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any]
    ) -> tuple[State, dict[str, jax.Array]]:
        def compute(rows, number):
            key = make_slice_keys(self.config.seed, state["step"], number)("lora")
            return jax.value_and_grad(self.compute_loss, has_aux=True)(
                state["params"], rows, frozen, key
            )

        if self.config.optim.accumulate == 1:
            (loss, report), gradients = compute(batch, 0)
        else:
            (loss, report), gradients = accumulate_gradients(
                compute, batch, self.config.optim.accumulate
            )
        state, more = apply_gradients(
            state,
            gradients,
            loss,
            optimizer=self.optimizer,
            rate=self.rate,
            ema_decay=self.config.optim.ema_decay,
        )
        return state, {"loss": loss, **report, **more}

    def compute_loss(
        self,
        params: Any,
        batch: Mapping[str, jax.Array],
        frozen: Mapping[str, Any],
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean over all pairs and scores, as VideoAlign's: those nobody judged count as 0.

        ``key``: of the adapters' dropout, which is another one for each of the two videos.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        merged = [
            stop_frozen_gradients(
                self.adapters.merge(params, frozen, own), self.config.optim.freeze
            )
            for own in (keys if self._drops else keys[:1])
        ]
        found = self.judge.score(merged[0], batch, merged[-1])
        sides = found["first"], found["second"], found["judged"]
        mask = batch["mask"][:, None]
        losses = preference_loss(*sides, self.config.rewards.ties) * mask
        count = jnp.maximum(mask.sum(), 1.0) * losses.shape[1]
        right, decided = count_agreement(*sides)
        share = (right * mask).sum() / jnp.maximum((decided * mask).sum(), 1.0)
        return losses.sum() / count, {"accuracy": share}

    def make_validation(
        self, run: Any, frozen: Mapping[str, Any], mesh: Mesh, make_loader: Callable[[], Any]
    ) -> RewardValidation:
        return RewardValidation(self, run, frozen, mesh, make_loader)

    def begin(self, workdir: Path, step: int, labels: Sequence[str]) -> None:
        del workdir, step, labels

    def inherit_players(self, former: ConfigDict) -> tuple[str, ...]:
        del former
        return ()


class RewardValidation:
    """Agreement of the EMA weights with held-out judgements (``tasks.base.Validation``)."""

    def __init__(
        self,
        task: RewardTask,
        run: Any,
        frozen: Mapping[str, Any],
        mesh: Mesh,
        make_loader: Callable[[], Any],
    ):
        self._make_loader, self._judge = make_loader, task.judge
        self._merge = functools.partial(task.adapters.merge_for_evaluation, frozen=frozen)
        self._score = compile_pairs(task.judge, self._merge(run.state["ema"]), mesh)

    def __call__(self, run: Any) -> PairScores:
        with contextlib.closing(self._make_loader()) as loader:
            params = self._merge(run.state["ema"])
            return score_pairs(self._judge, self._score, params, loader, run.config.rewards.ties)

    def pictures(self, result: PairScores) -> dict[str, bytes]:
        del result
        return {}

    def write(self, run: Any, result: PairScores, folder: Path) -> list[str]:
        return write_pairs(result, folder, config=run.config, step=run.step, workdir=run.workdir)
