"""What a task is: everything that differs between training one kind of model and another.

``config.task`` names an entry of ``TASKS``, a class that is made from the config alone. The loop,
its hooks, checkpoints, plan and bench know of tasks what the protocols here say and nothing else.
A task of another package adds itself by ``TASKS.register("mine", MyTask)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.models.frozen import FrozenNetwork
from vidlatent.registry import Registry
from vidlatent.spec import LatentSpec
from vidlatent.train.state import State

__all__ = ["SHARE", "TASKS", "Player", "Task", "Validation", "make_task"]

# Suffix of a 0/1 indicator beside a metric that only some steps compute (the metric is 0 in the
# others). Average such a metric as the sum of its values over the sum of the indicator.
SHARE = "/share"

TASKS = Registry("task")
TASKS.register("tokenizer", "vidlatent.train.tasks.tokenizer:TokenizerTask")
TASKS.register("generator", "vidlatent.train.tasks.generator:GeneratorTask")


class Player(NamedTuple):
    """A part of the state that is trained beside the model, such as a discriminator.

    Attributes:
      lr_key: config key of its learning rate, named to the user when its parameters diverge.
      whole: each device keeps all of it, instead of a share by the sharding rules.
    """

    lr_key: str
    whole: bool = False


class Validation(Protocol):
    """Evaluation on the validation clips while a run trains, compiled once for that run."""

    def __call__(self, run: Any) -> Any:
        """Evaluate ``run.state`` now (``train.hooks.Run``).

        The result has ``scores``, numbers by name with ``clips``, how many were scored.
        """
        ...

    def pictures(self, result: Any) -> dict[str, bytes]:
        """PNG files for the curves' writers, by name."""
        ...

    def write(self, run: Any, result: Any, folder: Path) -> list[str]:
        """Write a report into ``folder``; returns the names of the files to look at first."""
        ...


class Task(Protocol):
    """One thing that can be trained.

    Which recipes a run may be initialised from stands in ``config.train.init_recipes``.
    """

    def __init__(self, config: ConfigDict) -> None:
        """Raises ``VidlatentError`` where model, data and options do not go together."""
        ...

    @property
    def spec(self) -> LatentSpec:
        """Of the latents that the model makes or learns from."""
        ...

    @property
    def family(self) -> str:
        """Name of the model, as weights files know it (``weights.tables.TABLES``)."""
        ...

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of a batch that the steps need. The first, ``[B, T, ...]``, is what
        is learned from."""
        ...

    @property
    def frozen(self) -> Mapping[str, FrozenNetwork]:
        """Networks that the step computes with and does not train, by name."""
        ...

    @property
    def players(self) -> Mapping[str, Player]:
        """Parts of the state that may be trained beside the model, by name."""
        ...

    @property
    def eval_step(self) -> Callable[..., dict[str, jax.Array]]:
        """Measurements of one batch, ``[B, ...]`` each, as the task's own validation calls it."""
        ...

    @staticmethod
    def abstract_params(config: ConfigDict) -> Any:
        """The model's parameters of any run of this task, as ShapeDtypeStructs."""
        ...

    def init(self, key: jax.Array) -> State:
        """The state at step 0; traced, so that every array is born where it lives."""
        ...

    def train_step(
        self, state: State, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any]
    ) -> tuple[State, dict[str, jax.Array]]:
        """One update: a pure function, the same numbers whatever it is compiled for.

        Args:
          state: training state.
          batch: ``arrays`` by name, ``[B, ...]`` each.
          frozen: parameters of the frozen networks by name.

        Returns:
          The new state, and metrics: float32 scalars, with ``loss`` among them.
        """
        ...

    def make_validation(
        self, run: Any, frozen: Mapping[str, Any], mesh: Mesh, make_loader: Callable[[], Any]
    ) -> Validation:
        """The validation of one run; ``make_loader`` opens the loader of its clips."""
        ...

    def begin(self, workdir: Path, step: int, labels: Sequence[str]) -> None:
        """Check the data, and write what later modes need besides config and checkpoints.

        Args:
          workdir: of the run.
          step: at which it starts or goes on.
          labels: names of the classes in the data.
        """
        ...

    def inherit_players(self, former: ConfigDict) -> tuple[str, ...]:
        """Names of players that go on from the run of config ``former``, which this run is
        initialised from; the others start anew."""
        ...


def make_task(config: ConfigDict) -> Task:
    """The task that ``config.task`` names.

    Raises:
      VidlatentError: an unknown task, or options that do not go together.
    """
    return TASKS.get(config.task)(config)
