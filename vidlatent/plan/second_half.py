"""Programs of FSVideo's second half, upsampler and refiner, with abstract arguments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.latents.channels import follow_latents
from vidlatent.latents.pairs import LOW, check_halves
from vidlatent.latents.refiner_inputs import Parts, abstract_upsampler, read_part, upsampler_of
from vidlatent.latents.space import Latents, abstract_at_rest, cover_size, generator_of
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.models.load import resolve_dtype
from vidlatent.parallel.sharding import replicated, shardings, with_shardings
from vidlatent.plan.generators import (
    assume_latents,
    assume_space,
    batch_shapes,
    make_step_program,
)
from vidlatent.plan.program import Program, format_size
from vidlatent.train.state import random_key
from vidlatent.train.tasks.refiner import RefinerTask
from vidlatent.train.tasks.upsampler import UpsamplerTask

__all__ = [
    "assume_parts",
    "build_refiner_train",
    "build_upsample",
    "build_upsampler_train",
    "low_shape",
]


def build_upsampler_train(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    """The step on pairs of latents, or on the videos that they are made of.

    With ``config.plan.tokenizer``, videos are encoded and latents decoded by that tokenizer.
    """
    config, latents, tokenizer = assume_space(config)
    task = UpsamplerTask(config, latents, tokenizer)
    frames, height, width, batch = bucket
    size = (frames, height, width)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "video": ((*size, 3), jnp.uint8),
        "mask": ((), jnp.float32),
        "content": ((1, *size[1:], 3), jnp.uint8),
        "latent": (latents.spec.latent_shape(size), jnp.float32),
    }
    known = {
        name: jax.ShapeDtypeStruct((batch, *shape), dtype)
        for name, (shape, dtype) in shapes.items()
    }
    known |= low_shape(latents, bucket)
    return make_step_program(task, mesh, bucket, known, task.frozen)


def build_upsample(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    """Upsampling latents, as a cascade does it between base model and refiner.

    ``config.plan.bucket`` or ``config.sample.size`` is the size of the videos after it.
    """
    config, latents, _ = assume_space(config)
    # Two latents of the large video for each of the small one.
    size = cover_size(latents.spec, (1, 2, 2), tuple(config.sample.size) or bucket[:3])
    batch = config.sample.batch
    if config.plan.bucket:
        frames, height, width, batch = config.plan.bucket
        size = frames, height, width
    model = upsampler_of(config)
    params = abstract_upsampler(model)
    params, whole = with_shardings(params, shardings(params, mesh)), replicated(mesh)
    (low,) = low_shape(latents, (*size, batch)).values()

    def run(params, latent):
        return model.apply({"params": params}, latent)

    def init():
        latent = jnp.zeros((1, 1, 2, 2, model.latent_channels), jnp.float32)
        return model.init(random_key(config.seed, "params"), latent)["params"]

    where = jax.tree.map(lambda leaf: leaf.sharding, params)
    shapes = [format_size(s) for s in (low.shape[1:], latents.spec.latent_shape(size))]
    return Program(
        name="sample",
        about=f"latents of {batch} clips {format_size(size)}, {shapes[0]} to {shapes[1]}",
        function=jax.jit(run, in_shardings=(where, whole), out_shardings=whole),
        arguments=(params, with_shardings(low, whole)),
        parts={"parameters": params},
        initial={0: init},
        carries=None,
        frames=batch * size[0],
    )


def build_refiner_train(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    """The step with its frozen base model and upsampler.

    Where ``config.refiner.base`` is empty, the base model is a copy of the refiner, which the
    refiner starts from; where ``config.refiner.upsampler`` is, ``config.plan.upsampler``.
    """
    config, model, latents = assume_latents(config)
    parts = assume_parts(config, latents)
    task = RefinerTask(config, model, latents, parts)
    known = batch_shapes(model, latents, bucket) | low_shape(latents, bucket)
    # As for a generator: the states of an empty text are left out.
    known_parts = {**parts.frozen, **task.adapters.frozen}
    frozen = task.frozen if config.data.source != "latents" else known_parts
    return make_step_program(task, mesh, bucket, known, frozen)


def low_shape(latents: Latents, bucket: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape of the latents of half the size that a refiner's batch holds, by name."""
    frames, height, width, batch = bucket
    check_halves(latents.spec.whole, [(frames, height, width)], "the plan")
    shape = latents.spec.latent_shape((frames, height // 2, width // 2))
    return {LOW: jax.ShapeDtypeStruct((batch, *shape), jnp.float32)}


def assume_parts(config: ConfigDict, latents: Latents, base: ConfigDict | None = None) -> Parts:
    """Base model and upsampler of a refiner, by the runs it names or as ``build_refiner_train``.

    ``base`` is the config of the base model if the refiner names no run; None: a copy of it.
    """
    base = config if base is None else follow_latents(base, latents.spec)
    upsampler = configs.load(config.plan.upsampler)
    if config.refiner.base:
        base = read_part(config, "base")
    if config.refiner.upsampler:
        upsampler = read_part(config, "upsampler")
    upsampler = follow_latents(upsampler, latents.spec)
    held = {
        "base": abstract_at_rest(generator_of(base, resolve_dtype(config, None))),
        "upsampler": abstract_upsampler(upsampler_of(upsampler)),
    }
    return Parts(
        base, upsampler, {name: FrozenNetwork(tree, _refuse) for name, tree in held.items()}
    )


def _refuse(abstract: Any) -> Any:
    raise VidlatentError(
        "a plan has no weights of base model and upsampler: train by --mode=train with "
        "config.refiner.base and config.refiner.upsampler."
    )
