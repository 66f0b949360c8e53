"""From a config to a tokenizer module, its parameter shapes, and its checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.checkpoint.manager import Checkpointer
from vidlatent.config import is_generator
from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers import build
from vidlatent.parallel.sharding import shardings, with_shardings
from vidlatent.registry import did_you_mean
from vidlatent.spec import LatentSpec
from vidlatent.weights.files import restore_weights

__all__ = [
    "abstract_params",
    "find_step",
    "resolve_dtype",
    "model_of",
    "open_checkpoints",
    "restore_onto",
    "restore_tokenizer",
    "spec_in_chunks",
    "smallest_video",
]


def model_of(config: ConfigDict, dtype: Any = None) -> Any:
    """The tokenizer of ``config.model``, computing in ``dtype`` (see ``resolve_dtype``).

    Raises:
      VidlatentError: the config is that of a generator, or has no tokenizer of a known name.
    """
    if is_generator(config) and not config.model:
        path = config.tokenizer.path
        whose = f" (its own is {path})" if path else ""
        raise VidlatentError(
            f"{config.name} is a generator, and this needs a tokenizer: give the run of one{whose}."
        )
    return build(config.model, resolve_dtype(config, dtype))


def resolve_dtype(config: ConfigDict, dtype: Any = None) -> Any:
    """The compute dtype: ``dtype``, a name or a type; None takes ``config.precision.compute``.

    Raises:
      VidlatentError: unknown name.
    """
    names = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
    # Matrix units of TPUs and GPUs are built for bfloat16; CPUs gain nothing from it.
    names["auto"] = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    if dtype is not None and not isinstance(dtype, str):
        return dtype
    compute = config.precision.compute if dtype is None else dtype
    if compute not in names:
        hint = did_you_mean(compute, names)
        raise VidlatentError(f"config.precision.compute {compute!r} is unknown: {hint}")
    return names[compute]


def open_checkpoints(config: ConfigDict, workdir: Path) -> Checkpointer:
    """The checkpoints of a workdir, kept as ``config.checkpoint`` says."""
    return Checkpointer(workdir / "checkpoints", **config.checkpoint)


def spec_in_chunks(model: Any, chunks: Sequence[int], key: str) -> LatentSpec:
    """The spec of a tokenizer's latents for clips coded in ``chunks`` (``LatentSpec.in_chunks``).

    Raises:
      VidlatentError: the chunks do not fit the tokenizer, or its decoder is conditioned on frames,
        which belong to whole clips.
    """
    spec = model.latent_spec.in_chunks(chunks, key)
    if spec.chunks is not None and model.condition_kind != "none":
        raise VidlatentError(
            f"{key}={tuple(chunks)}: the decoder of {spec.name} looks at frames of the whole clip; "
            f"set {key}=()."
        )
    return spec


def smallest_video(spec: LatentSpec) -> tuple[int, int, int, int, int]:
    """``[B, T, H, W, 3]`` of a smallest legal video, to trace with (any size gives the same)."""
    return (1, spec.rule.first + spec.rule.step, spec.h, spec.w, 3)


def abstract_params(model: Any) -> Any:
    """Parameters of a tokenizer as ShapeDtypeStructs; nothing is allocated."""
    video = jax.ShapeDtypeStruct(smallest_video(model.latent_spec), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), video)["params"]


def restore_tokenizer(config: ConfigDict, workdir: Path, model: Any, mesh: Mesh, step: int) -> Any:
    """The EMA parameters of a workdir's checkpoint, on a mesh (``weights.files.restore_weights``).

    A ``step`` below 0 is the newest valid one.
    """
    return restore_onto(config, workdir, abstract_params(model), mesh, step)


def restore_onto(
    config: ConfigDict, workdir: Path, abstract: Any, mesh: Mesh | None, step: int
) -> Any:
    """As ``restore_tokenizer``, for any model; ``abstract`` are its ShapeDtypeStructs.

    Without a mesh, the parameters stay NumPy arrays in the host's memory.
    """
    target = abstract
    if mesh is not None:
        target = with_shardings(abstract, shardings(abstract, mesh))
    with contextlib.closing(open_checkpoints(config, workdir)) as checkpointer:
        return restore_weights(checkpointer, target, step=None if step < 0 else step)


def find_step(config: ConfigDict, workdir: Path, step: int) -> int:
    """The step that will be tried first: ``step``, or below 0 the newest.

    Raises:
      VidlatentError: there is none.
    """
    with contextlib.closing(open_checkpoints(config, workdir)) as checkpoints:
        steps = checkpoints.all_steps()
    if not steps or (step >= 0 and step not in steps):
        known = f"it has {', '.join(map(str, steps))}" if steps else "train first"
        what = f"no checkpoint of step {step}" if step >= 0 else "no checkpoint"
        raise VidlatentError(f"{workdir} holds {what}: {known}.")
    return step if step >= 0 else max(steps)
