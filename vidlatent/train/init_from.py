"""Initialising a run from existing weights: ``config.train.init_from`` and the keys beside it.

The weights come from an earlier run, such as the previous stage, or from a file. They belong to the
same model, or to another one that ``config.train.init_kind`` says how to convert.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.latents.distilled import Distilled
from vidlatent.models.load import open_checkpoints
from vidlatent.parallel.multihost import place_as
from vidlatent.paths import as_path
from vidlatent.train.tasks.base import TASKS, Task
from vidlatent.weights.files import find_table, is_workdir, load_params, read_tensors
from vidlatent.weights.importer import import_params
from vidlatent.weights.tables import STARTS, TABLES, initialize_from

__all__ = ["check_init_from", "initialize_state", "load_initial_params"]


def check_init_from(config: ConfigDict) -> None:
    """Check ``config.train.init_from`` against the recipe, before any weights are read.

    Raises:
      VidlatentError: it is empty although this stage follows another one, or it names a run whose
        recipe is not in ``config.train.init_recipes``.
    """
    source, kind = config.train.init_from, config.train.init_kind
    if source:
        _check_recipe(config)
        _check_distilled(config)
    elif kind or config.train.init_recipes:
        about = f", for {STARTS[kind].about}" if kind in STARTS else ""
        what = (
            f"config.train.init_kind is {kind!r}{about}"
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
    recipe = configs.read(as_path(source)).recipe
    if recipe not in allowed:
        raise VidlatentError(
            f"config.train.init_from={source} was trained as {recipe or 'no recipe'!r}, but "
            f"{config.recipe!r} follows on {' or '.join(map(repr, allowed))}: name such a run, or "
            "set --config.train.init_recipes='()' if you mean it."
        )


def _check_distilled(config: ConfigDict) -> None:
    """Refuse plain training from a distilled run: it would undo what is built in."""
    known = Distilled.load(config.train.init_from)
    if known is not None and config.task in configs.ROLES and not config.sampler.force:
        before = known.teacher.get("workdir", "the run it was distilled from")
        raise VidlatentError(
            f"config.train.init_from={config.train.init_from} has {known} built in, which training "
            f"on data undoes: start from {before}, or set config.sampler.force=True if you mean it."
        )


def initialize_state(task: Task, config: ConfigDict, state: Any, target: Any) -> Any:
    """``state`` with the weights that ``config.train.init_from`` names; unchanged if it is empty.

    Parameters and EMA both start from the EMA weights of the earlier run (or from the file).
    Inherited players keep their whole state, optimizer included; otherwise optimizers and the step
    start from zero, and players from the weights that they name (``Player.start``).

    Args:
      task: what is trained.
      config: config of this run, already checked by ``check_init_from``.
      state: newly initialised state, on its devices.
      target: the same state as ShapeDtypeStructs with shardings.

    Raises:
      VidlatentError: the weights do not fit the model.
    """
    source = config.train.init_from
    state = _start_players(task, state, target)
    if not source:
        return state
    logging.info("starting from %s", source)
    # Adapters start at nothing: the weights are a frozen network of the task.
    if task.adapters.lora is None:
        params = load_initial_params(
            source,
            target["params"],
            lambda: state["params"],
            family=task.family,
            kind=config.train.init_kind,
            table=config.train.init_table,
        )
        # A copy, because the step donates both, and one buffer cannot be donated twice.
        state = {**state, "params": params, "ema": jax.tree.map(jnp.copy, params)}
    return state | _load_players(task, source, target) if is_workdir(source) else state


def _start_players(task: Task, state: Any, target: Any) -> Any:
    """``state`` with the players' parameters that are another generator's."""
    for name, player in task.players.items():
        if name in state and player.start:
            params = load_params(
                player.start,
                target[name]["params"],
                family=task.family,
                step=None if player.start_step < 0 else player.start_step,
            )
            state = {**state, name: {**state[name], "params": params}}
            logging.info("the player %s starts from %s", name, player.start)
    return state


def _load_players(task: Task, source: str, target: Any) -> dict[str, Any]:
    """State of the players that are inherited from the run in ``source``, by name."""
    former = configs.read(as_path(source))
    names = [name for name in task.inherit_players(former) if name in target]
    found = {}
    with contextlib.closing(open_checkpoints(former, as_path(source))) as checkpoints:
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
    """Parameters from the weights at ``path``, of this model or converted from another's.

    Args:
      path: weights file, or workdir of an earlier run.
      abstract: the wanted parameters as ShapeDtypeStructs, with shardings if they are to be placed
        on devices.
      fresh: makes newly initialised parameters; called only if ``kind`` needs them.
      family: ``config.model.name`` or ``config.generator.name``.
      kind: the conversion, a name of ``weights.tables.INIT_KINDS``; ``''`` if the weights are of
        this same model.
      table: naming scheme of the file's tensors.
      step: checkpoint of a workdir; None for the newest valid one.

    Raises:
      VidlatentError: the weights do not fit.
    """
    if is_workdir(path):
        former = configs.read(as_path(path))
        _check_run(path, former, family, kind)
    if not kind:
        try:
            return load_params(path, abstract, family=family, table=table, step=step)
        except VidlatentError as error:
            told = _explain_misfit(path, family, table, error)
            if told is error:
                raise
            raise told from error
    if is_workdir(path):
        # The source may be another kind of model: its own config says what to read.
        shapes = TASKS.get(former.task).abstract_params(former)
        source = load_params(path, shapes, family=family, step=step)
    else:
        known = STARTS[kind].families if kind in STARTS else (family,)
        tensors = read_tensors(path, known)
        if table == "auto":
            # A weights file has no config, so its tensors tell which naming they follow.
            table = find_table(tensors, STARTS[kind].tables if kind in STARTS else (family,))
            _check_naming(path, table, kind)
        source = import_params(tensors, TABLES.get(table), None, hints=abstract)
    # Combine them on the host, because the two trees may be on different devices.
    source, new = (jax.tree.map(np.asarray, tree) for tree in (source, fresh()))
    return place_as(initialize_from(kind, source, new), abstract)


def _check_run(path: str, former: ConfigDict, family: str, kind: str) -> None:
    """Raise if a workdir is of another family than the kind starts from."""
    name = (former.generator if configs.is_generator(former) else former.model).get("name", family)
    if not kind and name != family:
        raise VidlatentError(
            f"{path} is a run of {name!r}, and config.train.init_kind is empty, which takes the "
            f"weights of {family!r} itself: name such a run{_suggest_kinds(name, family)}."
        )
    if kind in STARTS and name not in STARTS[kind].families:
        raise VidlatentError(
            f"{path} is a run of {name!r}, and config.train.init_kind={kind!r} starts from "
            f"{STARTS[kind].about}: name such weights, or set config.train.init_kind to ''"
            f"{_suggest_kinds(name, family)} for these."
        )


def _check_naming(path: str, table: str, kind: str) -> None:
    """Raise if a file's names are not those of the weights that the kind starts from."""
    if kind in STARTS and table not in STARTS[kind].tables:
        raise VidlatentError(
            f"{path} holds weights with the names of {table!r}, and config.train.init_kind="
            f"{kind!r} starts from {STARTS[kind].about}: name such a file, or change "
            "config.train.init_kind (empty: weights of this same model)."
        )


def _explain_misfit(path: str, family: str, table: str, error: VidlatentError) -> VidlatentError:
    """An error that names what the weights are, and by which kind the model starts from them."""
    if is_workdir(path) or table != "auto":
        return error
    sources = [start.tables for start in STARTS.values() if start.into == family]
    try:
        named = find_table(read_tensors(path), [name for tables in sources for name in tables])
    except VidlatentError:
        return error
    kinds = _suggest_kinds(named, family)
    if named == family or named.startswith(f"{family}_"):  # of this family, such as a smaller one
        return VidlatentError(f"{str(error).rstrip('.')}: name weights that fit{kinds}.")
    return VidlatentError(
        f"{path} holds weights with the names of {named!r}, and config.train.init_kind is empty, "
        f"which takes the weights of {family!r} itself: name such a file{kinds}."
    )


def _suggest_kinds(name: str, family: str) -> str:
    """Kinds by which ``family`` starts from weights of the family or naming ``name``."""
    kinds = [
        kind
        for kind, start in STARTS.items()
        if start.into == family and name in (*start.families, *start.tables)
    ]
    return f", or set config.train.init_kind to {' or '.join(map(repr, kinds))}" if kinds else ""
