"""Parameters that a model starts from instead of random ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidlatent import config as configs
from vidlatent.latents.space import abstract_generator, generator_of
from vidlatent.models.load import abstract_params, model_of
from vidlatent.weights.files import choose_table, is_workdir, load_params, read_tensors
from vidlatent.weights.importer import import_params
from vidlatent.weights.tables import graft

__all__ = ["starting_params"]


def starting_params(
    path: str,
    abstract: Any,
    fresh: Callable[[], Any],
    *,
    family: str,
    kind: str = "",
    table: str = "auto",
    step: int | None = None,
) -> Any:
    """Parameters from the weights at ``path``, of this model or of the form it is made from.

    Args:
      path: weights file, or workdir of an earlier run.
      abstract: the wanted parameters as ShapeDtypeStructs, with shardings where they are placed.
      fresh: makes newly initialised parameters; called only if ``kind`` needs them.
      family: ``config.model.name``, or of ``config.generator``.
      kind: '' when the weights are this model's own; else a name of ``weights.tables.GRAFTS``.
      table: naming of the file.
      step: checkpoint of a workdir; None for the newest sound one.

    Raises:
      VidlatentError: the weights do not fit.
    """
    if not kind:
        return load_params(path, abstract, family=family, table=table, step=step)
    if is_workdir(path):
        former = configs.read(Path(path))
        if former.generator:
            shapes = abstract_generator(generator_of(former))
        else:
            shapes = abstract_params(model_of(former))
        source = load_params(path, shapes, family=family, step=step)
    else:
        tensors = read_tensors(path)
        table = choose_table(tensors, family, table)
        source = import_params(tensors, table, None, hints=abstract)
    # On the host: the two may lie on different devices.
    params = graft(kind, *(jax.tree.map(np.asarray, tree) for tree in (source, fresh())))

    def place(leaf, like):
        leaf = np.asarray(leaf, like.dtype)
        return leaf if like.sharding is None else jax.device_put(leaf, like.sharding)

    return jax.tree.map(place, params, abstract)
