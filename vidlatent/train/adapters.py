"""Training low-rank adapters in place of a model's parameters (``config.optim.lora``).

The weights that are adapted, those of ``config.train.init_from``, become a frozen network of the
task: sharded, in the compute dtype, and in no checkpoint. A task that holds the same weights, such
as a distillation whose teacher they are, lends them. ``params``, ``ema`` and the optimizer of the
state are those of the adapters alone, and the step merges them before it calls the model. With
rank 0, the default, everything here hands parameters through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.paths import absolute
from vidlatent.weights.files import load_base
from vidlatent.weights.identity import identify
from vidlatent.weights.lora import Lora, init_adapters, merge_adapters

__all__ = ["BASE", "Adapters"]

BASE = "adapted"  # name of the frozen network


class Adapters:
    """What a task trains of its model: all parameters, or adapters of some kernels.

    Args:
      config: of the run.
      family: name of the model, as weights files know it.
      held: makes the parameters as the step holds them when they are frozen, ShapeDtypeStructs
        (``models.frozen.hold_in``); called only if there are adapters.

    Attributes:
      lora: the options; None if all parameters are trained.
      base: name of the frozen network that is adapted.
    """

    def __init__(self, config: ConfigDict, family: str, held: Callable[[], Any]):
        self._config, self._family, self._held = config, family, held
        options = config.optim.lora
        if not options.rank and (options.full or options.rows):
            raise VidlatentError(
                "config.optim.lora.full and rows say what is trained beside adapters, and "
                "config.optim.lora.rank=0 is without them: give a rank, or choose what is trained "
                "by config.optim.freeze."
            )
        self.lora = Lora.of(options) if options.rank else None
        self._step: int | None = None
        self.base = BASE

    def borrow(self, name: str, step: int) -> None:
        """Adapt the task's frozen network ``name``, whose weights are those of ``init_from``.

        Args:
          step: of the checkpoint that it is read from.
        """
        self.base, self._step = name, step

    @property
    def frozen(self) -> dict[str, FrozenNetwork]:
        """The weights that are adapted; nothing without adapters, or if they are borrowed."""
        if self.lora is None or self.base != BASE:
            return {}
        return {BASE: FrozenNetwork(self._held(), self._load)}

    def _load(self, abstract: Any) -> Any:
        options = self._config.train
        if not options.init_from:
            raise VidlatentError(
                "config.optim.lora adapts weights that are there already: name them by "
                "--config.train.init_from=... (a run or a weights file)."
            )
        if options.init_kind:
            raise VidlatentError(
                f"config.optim.lora adapts weights of this same model, and config.train.init_kind "
                f"is {options.init_kind!r}: convert them first (--mode=convert --start="
                f"{options.init_kind}), or train all parameters once."
            )
        params, self._step = load_base(
            options.init_from, abstract, family=self._family, table=options.init_table
        )
        return params

    def init(self, key: jax.Array, params: Any) -> Any:
        """What is trained, at step 0; values of ``params`` are read only without adapters."""
        return params if self.lora is None else init_adapters(key, params, self.lora)

    def merge(self, trained: Any, frozen: Mapping[str, Any], key: jax.Array | None = None) -> Any:
        """The model's parameters, from what is trained and the frozen networks of the step.

        ``key``: of the adapters' dropout in training; None: without.
        """
        if self.lora is None:
            return trained
        drawn = key if self.lora.dropout else None
        return merge_adapters(frozen[self.base], trained, self.lora, drawn)

    def open(self, trained: Any, frozen: Mapping[str, Any]) -> tuple[Any, Callable]:
        """``merge``, and what pulls gradients of the merged parameters back: ``jax.vjp``."""
        return jax.vjp(lambda trained: self.merge(trained, frozen), trained)

    def merge_for_evaluation(self, trained: Any, frozen: Mapping[str, Any]) -> Any:
        """``merge`` outside the step: merged kernels lie where those they adapt do."""
        if self.lora is None:
            return trained
        where = jax.tree.map(lambda leaf: leaf.sharding, frozen[self.base])
        return jax.jit(lambda t, base: self.merge(t, {self.base: base}), out_shardings=where)(
            trained, frozen[self.base]
        )

    def describe(self, frozen: Mapping[str, Any]) -> dict[str, Any] | None:
        """What a checkpoint says about its adapters, as JSON; None without adapters.

        It names the weights that ``frozen`` holds by path, step and digest, and the options.
        """
        if self.lora is None:
            return None
        options = self._config.train
        return {
            "base": absolute(options.init_from),
            "step": self._step,
            "family": self._family,
            "table": options.init_table,
            "digest": identify(frozen[self.base]),
            "lora": self.lora._asdict(),
        }

    @staticmethod
    def check_resumed(ours: Mapping[str, Any] | None, saved: Mapping[str, Any] | None) -> None:
        """Raise ``VidlatentError`` unless a checkpoint's adapters are those of this run.

        Args:
          ours: from ``describe``.
          saved: what the checkpoint says.
        """
        if ours is None or saved is None:
            return  # the arrays are others: whoever restores them has said so
        if ours["digest"] != saved["digest"]:
            raise VidlatentError(
                f"the adapters of this workdir belong to the weights {saved['digest'][:8]} of "
                f"{saved['base']}, but config.train.init_from={ours['base']} holds "
                f"{ours['digest'][:8]}: name the weights that were adapted, or use another "
                "--workdir."
            )
        if Lora.of(ours["lora"]) != Lora.of(saved["lora"]):
            raise VidlatentError(
                f"this workdir was trained with config.optim.lora {saved['lora']}, now it is "
                f"{ours['lora']}: keep it, or use another --workdir."
            )
