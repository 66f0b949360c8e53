"""Stages of a recipe: what a run takes over from the run it starts from."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.models.load import open_checkpoints
from vidlatent.train.init_from import starting_params
from vidlatent.weights.files import is_workdir

__all__ = ["check_start", "started"]


def check_start(config: ConfigDict) -> None:
    """Raise unless ``config.train.init_from`` names what this run may start from, or need not."""
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


def started(config: ConfigDict, state: Any, target: Any) -> Any:
    """A new state that begins with what ``config.train.init_from`` holds, after ``check_start``.

    Parameters and their average are its (averaged) weights; a discriminator goes on where it was,
    if ``config.discriminator.inherit`` and both runs have the same.

    Args:
      config: this run's.
      state: newly initialised, on its devices.
      target: the same as ShapeDtypeStructs with shardings.

    Raises:
      VidlatentError: what it holds does not fit.
    """
    source = config.train.init_from
    if not source:
        return state
    params = starting_params(
        source,
        target["params"],
        lambda: state["params"],
        family=(config.generator or config.model).name,
        kind=config.train.init_kind,
        table=config.train.init_table,
    )
    logging.info("starting from %s", source)
    state = {**state, "params": params, "ema": jax.tree.map(jnp.copy, params)}
    discriminator = _discriminator(config, target)
    return state if discriminator is None else {**state, "discriminator": discriminator}


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


def _discriminator(config: ConfigDict, target: Any) -> Any:
    """The discriminator of the run that this one starts from, or None to begin with a new one."""
    if "discriminator" not in target or not config.discriminator.inherit:
        return None
    source = Path(config.train.init_from)
    if not is_workdir(source):
        return None
    former = configs.read(source)
    if former.discriminator.model.to_dict() != config.discriminator.model.to_dict():
        logging.info("%s had no discriminator like this run's: it starts anew", source)
        return None
    with contextlib.closing(open_checkpoints(former, source)) as checkpoints:
        discriminator = checkpoints.restore_params(
            target["discriminator"], which="discriminator"
        ).state
    logging.info("the discriminator goes on from %s", source)
    return discriminator
