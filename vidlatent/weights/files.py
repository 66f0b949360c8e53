"""Weights files: read them under any known naming, and write them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import os
import pickle  # for the name of its error alone
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from vidlatent.checkpoint.manager import Checkpointer, Restored
from vidlatent.errors import VidlatentError
from vidlatent.paths import as_path, local_copy
from vidlatent.weights.fp8 import FP8_TYPES, restore_fp8
from vidlatent.weights.identity import identify
from vidlatent.weights.importer import count_known, export_params, import_params
from vidlatent.weights.lora import Lora, describe_adapters, merge_adapters
from vidlatent.weights.released import describe_missing, describe_other
from vidlatent.weights.safetensors import load_safetensors, save_safetensors
from vidlatent.weights.tables import TABLES

__all__ = [
    "choose_table",
    "find_table",
    "is_workdir",
    "load_base",
    "load_params",
    "read_tensors",
    "restore_weights",
    "save_params",
]

_TORCH = (".pt", ".pth", ".ckpt", ".bin")
# Keys under which training code nests the weights in a checkpoint, outermost first.
_NESTS = ("state_dict", "model", "module", "params")


def is_workdir(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is the workdir of a run."""
    return (as_path(path) / "checkpoints").is_dir()


def read_tensors(
    path: str | os.PathLike[str], families: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Tensors by name from a file, or from all ``.safetensors`` files of a folder.

    ``.safetensors`` needs nothing; ``.pt``, ``.pth``, ``.ckpt`` and ``.bin`` need torch, whose
    weights-only loader reads them (no pickled code is run).

    Args:
      path: of the file or folder.
      families: networks that are to read it, for the message on a file that is not there.

    Raises:
      VidlatentError: nothing there (the message says where it is published), another format, or no
        torch.
    """
    path = as_path(path)
    if path.suffix in (".safetensors", *_TORCH) and not path.exists():
        raise VidlatentError(describe_missing(path, families))
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise VidlatentError(f"{path} holds neither a run of vidlatent nor .safetensors files.")
        return {name: array for file in files for name, array in load_safetensors(file).items()}
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    if path.suffix not in _TORCH:
        raise VidlatentError(
            f"{path}: weights come as .safetensors, {', '.join(_TORCH)} or the folder of a run."
        )
    return _read_torch(Path(local_copy(path)))


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    if importlib.util.find_spec("torch") is None:
        raise VidlatentError(
            f"{path} is a torch file, and torch is not installed: install it, or where it is, run "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'out.safetensors')."
        )
    # By name, because torch is no dependency of the package.
    torch = importlib.import_module("torch")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise VidlatentError(f"torch does not read {path} as weights only: {reason}") from error
    for key in _NESTS:
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            data = data[key]
    if not isinstance(data, Mapping):
        raise VidlatentError(f"{path} holds no tensors by name, but a {type(data).__name__}.")
    tensors = {name: x for name, x in data.items() if isinstance(x, torch.Tensor)}
    arrays = {str(name): _to_numpy(torch, x) for name, x in tensors.items()}
    return restore_fp8(arrays, str(path))


def _to_numpy(torch: Any, tensor: Any) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # which torch does not hand to NumPy: as bits, then
        return tensor.contiguous().view(torch.int16).numpy().view(jnp.bfloat16)
    # By their names, which older versions of torch do not have.
    fp8 = {"torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2"}
    if (kind := fp8.get(str(tensor.dtype))) is not None:
        return tensor.contiguous().view(torch.uint8).numpy().view(FP8_TYPES[kind])
    return tensor.contiguous().numpy()


def choose_table(tensors: Mapping[str, Any], family: str, table: str = "auto") -> Any:
    """The rows of ``table``; ``'auto'`` takes those of ``find_table``."""
    # Several models share a naming: in a tie the model's own table knows its other parameters.
    return TABLES.get(find_table(tensors, (family,)) if table == "auto" else table)


def find_table(tensors: Mapping[str, Any], preferred: Sequence[str]) -> str:
    """The name of the table that knows most names of a file, in a tie a ``preferred`` one.

    Raises:
      VidlatentError: no table knows any.
    """
    known = {name: count_known(tensors, TABLES.get(name)) for name in TABLES.names()}
    best = max(known, key=lambda name: (known[name], name in preferred))
    if not known[best]:
        raise VidlatentError(
            f"no known naming has names such as {', '.join(list(tensors)[:3])}: the tables are "
            f"{', '.join(TABLES.names())}."
        )
    logging.info("weights table %s: %d of %d names", best, known[best], len(tensors))
    return best


def load_params(
    path: str | os.PathLike[str],
    abstract: Any,
    *,
    family: str,
    table: str = "auto",
    step: int | None = None,
) -> Any:
    """Parameters for a model from a weights file, or from a run of vidlatent.

    Args:
      path: see ``read_tensors``; or a workdir, of which the EMA parameters are taken.
      abstract: the wanted parameters as ShapeDtypeStructs; leaves with a sharding are put on
        devices by it, the others stay NumPy arrays.
      family: ``config.model.name``.
      table: name in ``TABLES``, or ``'auto'``.
      step: checkpoint of a workdir; None for the newest sound one.

    Raises:
      VidlatentError: no such file; one of another model, which is named; everything unused,
        missing and misshaped, named together.
    """
    if is_workdir(path):
        return load_base(path, abstract, family=family, step=step)[0]
    tensors = read_tensors(path, (family,))
    try:
        params = import_params(tensors, choose_table(tensors, family, table), abstract)
    except VidlatentError as error:
        if other := describe_other(path, tensors, family):
            raise VidlatentError(other) from error
        raise

    def place(array, like):
        # In the type of the model, whatever the file has.
        array = np.asarray(array, like.dtype)
        sharding = like.sharding if isinstance(like, jax.ShapeDtypeStruct) else None
        return array if sharding is None else jax.device_put(array, sharding)

    return jax.tree.map(place, params, abstract)


def load_base(
    path: str | os.PathLike[str],
    abstract: Any,
    *,
    family: str,
    table: str = "auto",
    step: int | None = None,
) -> tuple[Any, int | None]:
    """``load_params``, and the step that was read of a workdir (None for a file)."""
    if not is_workdir(path):
        return load_params(path, abstract, family=family, table=table), None
    with contextlib.closing(Checkpointer(as_path(path) / "checkpoints", every=0)) as checkpoints:
        restored = restore_weights(checkpoints, abstract, step=step)
        return restored.state, restored.step


def restore_weights(
    checkpoints: Checkpointer, abstract: Any, *, step: int | None = None
) -> Restored:
    """The averaged weights of a run's checkpoint; adapters are merged into what they adapt.

    Args:
      checkpoints: of the run.
      abstract: as for ``load_params``.
      step: None for the newest sound one.

    Raises:
      VidlatentError: as ``Checkpointer.restore_params``; or the weights that were adapted are
        missing, or are others than those.
    """

    def describe(about):
        return describe_adapters(abstract, Lora.of(about["lora"]))

    restored = checkpoints.restore_params(abstract, step=step, adapted=describe)
    if restored.adapters is None:
        return restored
    about, workdir = restored.adapters, as_path(checkpoints.directory).parent
    path = _find_base(workdir, about["base"])
    names = {name: about[name] for name in ("family", "table", "step")}
    base, _ = load_base(path, abstract, **names)
    if (found := identify(base)) != about["digest"]:
        raise VidlatentError(
            f"{workdir} holds adapters of the weights {about['digest'][:8]}, but {path} are the "
            f"weights {found[:8]}: put those that were adapted (or a link to them) at "
            f"{workdir / 'base'}."
        )
    merge: Any = functools.partial(merge_adapters, lora=Lora.of(about["lora"]))
    places = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(abstract)]
    if all(place is not None for place in places):
        where = jax.tree.unflatten(jax.tree.structure(abstract), places)
        merge = jax.jit(merge, out_shardings=where, donate_argnums=0)
    return dataclasses.replace(restored, state=merge(base, restored.state))


def _find_base(workdir: Path, stored: str) -> Path:
    """Where the weights are that a run adapts: beside its checkpoints, or where they were."""
    known = [workdir / "base", workdir / "base.safetensors", as_path(stored)]
    for path in (*known, workdir.parent / as_path(stored).name):
        if path.exists():
            return path
    raise VidlatentError(
        f"{workdir} holds adapters of {stored}, which is not there: put those weights (or a link "
        f"to them) at {workdir / 'base'}."
    )


def save_params(
    path: str | os.PathLike[str],
    params: Any,
    *,
    family: str,
    table: str = "auto",
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write parameters as a ``.safetensors`` file under a naming; returns the number of tensors.

    ``table`` ``'auto'`` is the naming called like the model.
    """
    if as_path(path).suffix != ".safetensors":
        raise VidlatentError(f"{path}: weights are written as .safetensors or into a new workdir.")
    rows = TABLES.get(family if table == "auto" else table)
    tensors = export_params(jax.tree.map(np.asarray, params), rows)
    try:
        as_path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VidlatentError(f"{path} cannot be written ({error}): name another file.") from error
    save_safetensors(tensors, path, metadata)
    return len(tensors)
