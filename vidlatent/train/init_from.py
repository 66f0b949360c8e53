"""Initialising a run from weights that exist: ``config.train.init_from`` and its companions.

The weights are those of an earlier run (the stage before) or of a file, of this model or of one
that ``config.train.init_kind`` turns into it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.models.load import open_checkpoints
from vidlatent.parallel.multihost import place_as
from vidlatent.train.tasks.base import TASKS, Task
from vidlatent.weights.files import choose_table, is_workdir, load_params, read_tensors
from vidlatent.weights.importer import import_params
from vidlatent.weights.tables import initialize_from

__all__ = ["check_init_from", "initialize_state", "load_initial_params"]


def check_init_from(config: ConfigDict) -> None:
    """Check ``config.train.init_from`` by names alone, before anything is made or read.

    Raises:
      VidlatentError: it is empty although this stage follows on another one, or names a run of
        another recipe than ``config.train.init_recipes``.
    """
    source, kind = config.train.init_from, config.train.init_kind
    if source:
        _check_recipe(config)
    elif kind or config.train.init_recipes:
        what = (
            f"config.train.init_kind is {kind!r}"
            if kind
            else f"{config.recipe!r} follows on {' or '.join(config.train.init_recipes)}"
        )
        raise VidlatentError(
            f"{what}: name the weights it starts from by --config.train.init_from=... "
            "(init_kind and init_recipes empty: random ones)."
        )


def _check_recipe(config: ConfigDict) -> None:
    allowed, source = config.train.init_recipes, config.train.init_from
    if not allowed or not is_workdir(source):
        return  # a weights file carries no recipe
    recipe = configs.read(Path(source)).recipe
    if recipe not in allowed:
        raise VidlatentError(
            f"config.train.init_from={source} was trained as {recipe or 'no recipe'!r}, but "
            f"{config.recipe!r} follows on {' or '.join(map(repr, allowed))}: name such a run, or "
            "set --config.train.init_recipes='()' if you mean it."
        )


def initialize_state(task: Task, config: ConfigDict, state: Any, target: Any) -> Any:
    """A new state whose parameters are those that ``config.train.init_from`` names, if any.

    Parameters and EMA both become the (averaged) weights. Players that the task inherits go on with
    all of theirs. Otherwise optimizers and step start anew.

    Args:
      task: what is trained.
      config: of this run, after ``check_init_from``.
      state: newly initialised, on its devices.
      target: the same as ShapeDtypeStructs with shardings.

    Raises:
      VidlatentError: the weights do not fit the model.
    """
    source = config.train.init_from
    if not source:
        return state
    params = load_initial_params(
        source,
        target["params"],
        lambda: state["params"],
        family=task.family,
        kind=config.train.init_kind,
        table=config.train.init_table,
    )
    logging.info("starting from %s", source)
    state = {**state, "params": params, "ema": jax.tree.map(jnp.copy, params)}
    return state | _load_players(task, source, target) if is_workdir(source) else state


def _load_players(task: Task, source: str, target: Any) -> dict[str, Any]:
    """The players that go on from the run in ``source``, by name."""
    former = configs.read(Path(source))
    names = [name for name in task.inherit_players(former) if name in target]
    found = {}
    with contextlib.closing(open_checkpoints(former, Path(source))) as checkpoints:
        for name in names:
            found[name] = checkpoints.restore_params(target[name], which=name).state
            logging.info("the %s goes on from %s", name, source)
    return found


def load_initial_params(
    path: str,
    abstract: Any,
    fresh: Callable[[], Any],
    *,
    family: str,
    kind: str = "",
    table: str = "auto",
    step: int | None = None,
) -> Any:
    """Parameters from the weights at ``path``: this model's, or another's that ``kind`` turns.

    Args:
      path: weights file, or workdir of an earlier run.
      abstract: the wanted parameters as ShapeDtypeStructs, with shardings where they are placed.
      fresh: makes newly initialised parameters; called only if ``kind`` needs them.
      family: ``config.model.name`` or ``config.generator.name``.
      kind: ``''`` when the weights are this model's own, else a name of
        ``weights.tables.INIT_KINDS``.
      table: naming of the file.
      step: checkpoint of a workdir; None for the newest sound one.

    Raises:
      VidlatentError: the weights do not fit.
    """
    if not kind:
        return load_params(path, abstract, family=family, table=table, step=step)
    if is_workdir(path):
        former = configs.read(Path(path))
        shapes = TASKS.get(former.task).abstract_params(former)
        source = load_params(path, shapes, family=family, step=step)
    else:
        tensors = read_tensors(path)
        table = choose_table(tensors, family, table)
        source = import_params(tensors, table, None, hints=abstract)
    # On the host: the two may lie on different devices.
    source, new = (jax.tree.map(np.asarray, tree) for tree in (source, fresh()))
    return place_as(initialize_from(kind, source, new), abstract)
