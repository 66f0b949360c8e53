"""The contract of a task: everything that differs between training one kind of model and another.

``config.task`` names an entry of ``TASKS``, a class whose only required argument is the config. The
loop, its hooks, checkpoints, plan and bench use nothing of a task but the protocols defined here.
Another package adds its own task with ``TASKS.register("mine", MyTask)``.
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
from vidlatent.train.adapters import Adapters
from vidlatent.train.state import State

__all__ = [
    "MUST_BE_ZERO",
    "SHARE",
    "TASKS",
    "Player",
    "Task",
    "Validation",
    "make_task",
    "select_arrays",
]

# Suffix of a 0/1 indicator logged next to a metric that only some steps compute (the metric is 0 in
# the others). Average such a metric as sum(metric) / sum(indicator).
SHARE = "/share"
# Suffix of a metric that is 0 in every step of a sound run; the loop ends a run in which it is not.
MUST_BE_ZERO = "/must_be_zero"

TASKS = Registry("task")
TASKS.register("reward", "vidlatent.train.tasks.reward:RewardTask")
TASKS.register("tokenizer", "vidlatent.train.tasks.tokenizer:TokenizerTask")
TASKS.register("generator", "vidlatent.train.tasks.generator:GeneratorTask")
TASKS.register("refiner", "vidlatent.train.tasks.refiner:RefinerTask")
TASKS.register("distill_score", "vidlatent.train.tasks.distill_score:ScoreTask")
TASKS.register("upsampler", "vidlatent.train.tasks.upsampler:UpsamplerTask")
_DISTILL = "vidlatent.train.tasks.distill_"
TASKS.register("distill_guidance", _DISTILL + "guidance:GuidanceTask")
TASKS.register("distill_progressive", _DISTILL + "progressive:ProgressiveTask")
TASKS.register("grpo", "vidlatent.train.tasks.grpo:GrpoTask")
TASKS.register("refl", "vidlatent.train.tasks.refl:ReflTask")


class Player(NamedTuple):
    """A part of the state that is trained next to the model, such as a discriminator.

    Attributes:
      lr_key: config key of its learning rate, which the error names if its parameters diverge.
      whole: True to replicate it on every device instead of sharding it by the rules.
      start: workdir of a generator whose averaged weights it starts from, of the model's own shape;
        '' for weights of its own.
      start_step: checkpoint there; below 0 the newest.
    """

    lr_key: str
    whole: bool = False
    start: str = ""
    start_step: int = -1


class Validation(Protocol):
    """Evaluation on the validation clips during training, compiled once per run.

    One that has videos to log, too, has a method ``videos(result)``: uint8 ``[T, H, W, 3]`` by
    name.
    """

    def __call__(self, run: Any) -> Any:
        """Evaluate ``run.state`` now; ``run`` is a ``train.hooks.Run``.

        The result has ``scores``: numbers by name, among them ``clips``, the number of clips.
        """
        ...

    def pictures(self, result: Any) -> dict[str, bytes]:
        """PNG files to log (TensorBoard), by name."""
        ...

    def write(self, run: Any, result: Any, folder: Path) -> list[str]:
        """Write a report into ``folder``; returns the names of the files to look at first."""
        ...


class Task(Protocol):
    """One kind of training.

    The recipes that a run may be initialised from are listed in ``config.train.init_recipes``.
    """

    def __init__(self, config: ConfigDict) -> None:
        """Raises ``VidlatentError`` if model, data and options do not fit together."""
        ...

    @property
    def spec(self) -> LatentSpec:
        """Spec of the latents that the model makes or learns from."""
        ...

    @property
    def family(self) -> str:
        """Name of the model, as weights files know it (``weights.tables.TABLES``)."""
        ...

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of a batch that the step needs.

        The first one, ``[B, T, ...]``, holds what the model learns from: videos or latents.
        """
        ...

    def read_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays of a host batch that go to the devices; see ``select_arrays``.

        Here a task may add what is made from texts, which are no arrays.
        """
        ...

    @property
    def adapters(self) -> Adapters:
        """What is trained of the model: all parameters, or adapters of some kernels."""
        ...

    @property
    def frozen(self) -> Mapping[str, FrozenNetwork]:
        """Networks that the step uses but does not train, by name."""
        ...

    @property
    def players(self) -> Mapping[str, Player]:
        """All players that a state of this task may contain, by name."""
        ...

    @property
    def eval_step(self) -> Callable[..., dict[str, jax.Array]]:
        """The function that measures one batch: arrays ``[B, ...]`` by name.

        Its arguments are the task's own affair, since only the task's validation calls it.
        """
        ...

    @staticmethod
    def abstract_params(config: ConfigDict) -> Any:
        """The model's parameters as ShapeDtypeStructs, for the config of any run of this task."""
        ...

    def init(self, key: jax.Array) -> State:
        """The state at step 0. It is traced, so that every array is created on its own devices."""
        ...

    def train_step(
        self, state: State, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any]
    ) -> tuple[State, dict[str, jax.Array]]:
        """One update: a pure function, the same computation on every mesh.

        Args:
          state: training state.
          batch: of ``read_batch``, ``[B, ...]`` each.
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
          workdir: folder of the run.
          step: step at which the run starts or resumes.
          labels: names of the classes in the data.
        """
        ...

    def inherit_players(self, former: ConfigDict) -> tuple[str, ...]:
        """Names of the players whose state is taken over from an earlier run; others start fresh.

        Args:
          former: config of the run that this one is initialised from.
        """
        ...


def make_task(config: ConfigDict) -> Task:
    """The task that ``config.task`` names.

    Raises:
      VidlatentError: an unknown task, or options that do not go together.
    """
    return TASKS.get(config.task)(config)


def select_arrays(batch: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The named arrays of a batch; those that the data lacks are reported by the step."""
    return {name: batch[name] for name in names if name in batch}
