"""Weights of the frozen networks: from published files, or by an explicit word from a seed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from vidlatent.errors import VidlatentError
from vidlatent.files import read_npz
from vidlatent.models.pretrained import (
    NETWORKS,
    Definition,
    Network,
    network_apply,
    network_shapes,
    random_params,
)
from vidlatent.parallel.multihost import place_as
from vidlatent.paths import as_path, same_place
from vidlatent.weights.files import is_workdir, load_params, read_tensors
from vidlatent.weights.importer import count_known, export_params, import_params
from vidlatent.weights.released import describe_missing, describe_other
from vidlatent.weights.safetensors import save_safetensors
from vidlatent.weights.tables import TABLES

__all__ = [
    "convert_network",
    "load_network",
    "load_network_params",
    "read_network",
    "seed_of",
]


def load_network(name: str, path: str | os.PathLike[str], dtype: Any = jnp.float32) -> Network:
    """A frozen network with its weights.

    Args:
      name: in ``models.pretrained.NETWORKS``.
      path: value of ``config.networks.<name>``: a weights file (or several, with commas between),
        the workdir of a run that trained this network, or ``random`` or ``random:SEED``, which is
        for tests and smoke runs and marks the label.
      dtype: compute dtype.

    Raises:
      VidlatentError: no path; names or shapes that do not fit; an unknown network.
    """
    definition = NETWORKS.get(name)
    path = os.fspath(path)
    if not path:
        raise VidlatentError(_missing(name, definition))
    seed = seed_of(path)
    if seed is None:
        return Network(network_apply(name, dtype), read_network(name, path.split(",")), name, name)
    # Part of every score's name, so that no one takes it for the published network's.
    label = f"{name}_random{seed}"
    logging.warning("%s: random weights (%s); its numbers mean nothing.", name, label)
    return Network(network_apply(name, dtype), random_params(name, seed), name, label)


def load_network_params(name: str, path: str | os.PathLike[str], abstract: Any) -> Any:
    """The parameters of ``load_network`` alone, where and in the types that ``abstract`` says.

    From a workdir each device reads its own part.

    Args:
      name, path: as for ``load_network``.
      abstract: ``network_shapes(name)`` with the wanted types, and with shardings.

    Raises:
      VidlatentError: as ``load_network``.
    """
    if is_workdir(path):
        return _load_workdir(name, path, abstract)
    return place_as(load_network(name, path).params, abstract)


def _load_workdir(name: str, path: str | os.PathLike[str], abstract: Any) -> Any:
    try:
        return load_params(path, abstract, family=name)
    except VidlatentError as error:
        raise VidlatentError(f"config.networks.{name}={os.fspath(path)}: {error}") from error


def seed_of(path: str) -> int | None:
    """The seed that ``random`` or ``random:SEED`` asks for; None for a file.

    Raises:
      VidlatentError: the seed is not a whole number.
    """
    word, colon, seed = path.partition(":")
    if word != "random":
        return None
    if not colon:
        return 0
    if not seed.isdecimal():
        raise VidlatentError(f"{path!r}: random weights are asked for as 'random' or 'random:7'.")
    return int(seed)


def read_network(name: str, paths: Sequence[str | os.PathLike[str]]) -> Any:
    """Parameters of a network from the tensors of all ``paths``, under any of its namings.

    ``.npz`` is read besides what ``weights.files.read_tensors`` reads. A single path may be the
    workdir of a run of ours.

    Raises:
      VidlatentError: a missing file; everything unused, missing and misshaped, named together.
    """
    definition = NETWORKS.get(name)
    if len(paths) == 1 and paths[0] and is_workdir(paths[0]):
        params = _load_workdir(name, paths[0], network_shapes(name))
        return jax.tree.map(np.asarray, params)
    tensors: dict[str, np.ndarray] = {}
    for path in paths:
        # Trunk and heads, or shards, come in files of their own.
        tensors |= _read(path, name)
    stored = tensors
    tensors = definition.prepare(tensors)
    # The naming that knows most names; what then does not fit is reported by its names.
    counts = {table: count_known(tensors, TABLES.get(table)) for table in definition.tables}
    best = max(counts, key=lambda table: counts[table])
    logging.info("%s: weights table %s, %d of %d names", name, best, counts[best], len(tensors))
    try:
        shapes = definition.fit(network_shapes(name), tensors)
        params = import_params(tensors, TABLES.get(best), shapes)
    except VidlatentError as error:
        files = ",".join(map(os.fspath, paths))
        # A file that this network's own names know is named by what does not fit.
        other = "" if 2 * counts[best] > len(tensors) else describe_other(files, stored, name)
        reason = other or str(error)
        raise VidlatentError(f"config.networks.{name}={files}: {reason}") from error
    # Metrics and losses compare small differences; text encoders are too large for float32.
    if definition.keeps_dtype:
        return params
    return jax.tree.map(lambda x: np.asarray(x, np.float32), params)


def convert_network(
    name: str,
    sources: Sequence[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    *,
    template: str = "",
    tokenizer: str = "",
) -> int:
    """Published files into one ``.safetensors`` file that needs no torch; the tensors written.

    Args:
      name: in ``NETWORKS``.
      sources: the files.
      target: the file to write.
      template: file of the text around a prompt, which is stored with the weights; only for
        networks that read one.
      tokenizer: ``tokenizer.json`` that reads it.

    Raises:
      VidlatentError: see ``read_network``; ``target`` has another suffix or is a source; the
        template cannot be read, or the network has none.
    """
    stored = _read_template(name, template, tokenizer)
    if as_path(target).suffix != ".safetensors":
        raise VidlatentError(f"--to={target}: a network's weights are written as .safetensors.")
    if any(same_place(source, target) for source in sources):
        raise VidlatentError(f"--to={target} would overwrite its source: choose another name.")
    params = read_network(name, sources)
    tensors = export_params(params, TABLES.get(NETWORKS.get(name).tables[0])) | stored
    as_path(target).parent.mkdir(parents=True, exist_ok=True)
    save_safetensors(tensors, target, {"network": name})
    return len(tensors)


def _read_template(name: str, template: str, tokenizer: str) -> dict[str, np.ndarray]:
    read = NETWORKS.get(name).template
    if read is None:
        if template:
            raise VidlatentError(f"--template={template}: {name} reads no text around a prompt.")
        return {}
    if template:
        return dict(read(template, tokenizer))
    logging.warning(
        "%s: without --template=FILE its scores are not the published ones, which need the "
        "published text around the prompt; give config.rewards.%s.template when scoring.",
        name,
        name,
    )
    return {}


def _read(path: str | os.PathLike[str], name: str) -> dict[str, np.ndarray]:
    families = (f"networks.{name}",)
    if not as_path(path).exists():
        raise VidlatentError(f"config.networks.{name}: {describe_missing(path, families)}")
    if as_path(path).suffix != ".npz":
        return read_tensors(path, families)
    return read_npz(path, "fetch or export the weights again")


def _missing(name: str, definition: Definition) -> str:
    if not definition.files:
        return (
            f"config.networks.{name} is empty: this stand-in has no published weights, so it takes "
            "'random' (or 'random:SEED') or a file of ours."
        )
    return (
        f"config.networks.{name} is empty: name {name}.safetensors, made from "
        f"{' and '.join(definition.files)} ({definition.source}) by `python -m "
        f"vidlatent.convert.networks --name={name} --from={','.join(definition.files)} "
        f"--to={name}.safetensors`."
    )
