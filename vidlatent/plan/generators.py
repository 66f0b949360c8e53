"""A generator's programs with abstract arguments: training step, sampling, one network call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.checkpoint.layout import find_players
from vidlatent.latents.channels import follow_latents
from vidlatent.latents.contract import LatentSpace
from vidlatent.latents.space import (
    Latents,
    abstract_at_rest,
    check_generator,
    cover_size,
    describe_latents,
    example,
    generator_of,
)
from vidlatent.models.frozen import FrozenNetwork, describe_frozen
from vidlatent.models.generators.fp8_weights import cast_to_fp8
from vidlatent.models.load import model_of, spec_in_chunks
from vidlatent.parallel.sharding import batch_sharding, replicated, shardings, with_shardings
from vidlatent.plan.program import Program, check_batch, format_size
from vidlatent.sample.sampler import LatentSampler
from vidlatent.train.program import describe_length, describe_state, jit_train_step
from vidlatent.train.state import random_key
from vidlatent.train.tasks.generator import GeneratorTask

__all__ = [
    "SamplingJob",
    "assume_latents",
    "assume_space",
    "batch_shapes",
    "build_nfe",
    "build_sample",
    "build_train",
    "make_step_program",
]


def build_train(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    """The training step on a batch of latents, or of videos where ``config.data`` holds those."""
    config, model, latents = assume_latents(config)
    task = GeneratorTask(config, model, latents)
    # With a latent set that is at most the states of an empty text: small, and perhaps not there.
    frozen = task.frozen if config.data.source != "latents" else task.adapters.frozen
    return make_step_program(task, mesh, bucket, batch_shapes(model, latents, bucket), frozen)


def make_step_program(
    task: Any,
    mesh: Mesh,
    bucket: tuple[int, ...],
    known: Mapping[str, jax.ShapeDtypeStruct],
    networks: Mapping[str, FrozenNetwork],
    also: Sequence[str] = (),
) -> Program:
    """The training step of a task of generators.

    Args:
      task: made without its data.
      mesh: of real devices, or of the devices that a topology describes.
      bucket: frames, height, width, global batch.
      known: shapes of all arrays that a batch may hold, by name.
      networks: the frozen networks.
      also: names of arrays beside ``task.arrays`` that the step reads.

    Raises:
      DoesNotSpread: the mesh cannot divide the batch.
    """
    config, latents = task.config, task.latents
    *size, batch = bucket
    check_batch(config, mesh, batch)
    state, frozen = describe_state(task, config.seed, mesh), describe_frozen(networks, mesh)
    names = (*task.arrays, *also)
    arrays = with_shardings({name: known[name] for name in names}, batch_sharding(mesh))
    about = f"step of a batch of {batch} clips {format_size(size)}"
    return Program(
        name="train",
        about=f"{about}, latents {format_size(latents.spec.latent_shape(tuple(size)))}",
        function=jit_train_step(task, state, frozen, mesh, config.train.steps),
        arguments=(state, arrays, frozen, describe_length(mesh)),
        parts={
            "parameters": state["params"],
            "averaged parameters": state["ema"],
            "optimizer": state["opt"],
            "networks beside it": {name: state[name] for name in find_players(state)},
            "frozen networks": frozen,
        },
        initial={0: lambda: task.init(random_key(config.seed, "params"))},
        carries=(0, 0),
        frames=batch * size[0],
    )


def build_sample(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    """The loop from noise to latents, at ``config.plan.bucket`` or ``config.sample.size``."""
    job = SamplingJob(config, mesh, bucket)
    seeds = jax.ShapeDtypeStruct((job.batch,), jnp.uint32)
    about = f"{job.sampler.nfe} evaluations for {job.about}"
    return job.program("sample", about, job.sampler.run, seeds, job.conditions(job.batch))


def build_nfe(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    """One call of the network in a guided step of the sampling loop.

    As in the sampler, the branches of guidance are one batch (``sampler.guidance.batched``), and
    keys and values of conditions come from a cache (``sampler.cache_conditions``).
    """
    job = SamplingJob(config, mesh, bucket)
    model, branches = job.model, job.sampler.drops
    if not config.sampler.guidance.batched:
        # Branches are separate calls then: plan the last one, which has all conditions.
        branches = branches[-1:]
    samples = len(branches) * job.batch
    # [branches * batch], one branch after another.
    dropped = {
        name: np.repeat([name in names for names in branches], job.batch) for name in model.reads
    }
    conditions = job.conditions(samples)

    def run(params, noisy, time, conditions, cache):
        given = {} if cache is None else {"condition_cache": cache}
        drop = jax.tree.map(jnp.asarray, dropped)
        return model.apply(
            {"params": params}, noisy, time, conditions, drop, **given, method="denoise"
        )

    def cache_conditions(params, conditions):
        drop = jax.tree.map(jnp.asarray, dropped)
        return model.apply({"params": params}, conditions, drop, method="cache_conditions")

    caches = config.sampler.cache_conditions and model.caches_conditions and model.reads
    cache = jax.eval_shape(cache_conditions, job.params, conditions) if caches else None
    noisy = jax.ShapeDtypeStruct((samples, *job.sampler.shape), jnp.float32)
    time = jax.ShapeDtypeStruct((samples,), jnp.float32)
    guided = f", {len(branches)} branches of guidance in one batch" if len(branches) > 1 else ""
    about = f"one evaluation for {job.about}{guided}"
    return job.program("nfe", about, run, noisy, time, conditions, cache)


class SamplingJob:
    """What the programs ``sample`` and ``nfe`` have in common.

    Attributes:
      model: the generator.
      sampler: the sampling loop at this size.
      batch: number of videos.
      params: abstract parameters on the mesh, in the types that sampling holds them in.
      about: number and size of the videos, for the report.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]):
        config, model, latents = assume_latents(config)
        # As sampling, which cuts off what goes beyond the size asked for.
        size = cover_size(latents.spec, model.patch, tuple(config.sample.size) or bucket[:3])
        self.batch = config.sample.batch
        if config.plan.bucket:
            frames, height, width, self.batch = config.plan.bucket
            size = frames, height, width
        self._latents, self._size, self._seed = latents, size, config.seed
        shape = latents.spec.latent_shape(self._size)
        self.sampler = LatentSampler(model, config, shape)
        self.model = self.sampler.model
        self._eight_bits = config.sampler.fp8
        # Of what a refiner is given; other generators make theirs of the first frame.
        refines = configs.role_of(config) == "refiner"
        self._mask_channels = config.generator.mask_channels if refines else 0
        params = abstract_at_rest(self.model, self._eight_bits)
        self.params = with_shardings(params, shardings(params, mesh))
        self._whole = replicated(mesh)
        self.about = f"{self.batch} clips {format_size(self._size)}, latents {format_size(shape)}"

    def conditions(self, batch: int) -> dict[str, Any]:
        known = batch_shapes(self.model, self._latents, (*self._size, batch))
        found = {name: _condition_shape(name, known) for name in self.model.reads}
        if self._mask_channels and self._size[0] > 1:
            *shape, channels = known["latent"].shape
            given = (*shape, self._mask_channels + channels)
            found["given"] = jax.ShapeDtypeStruct(given, jnp.float32)
        return found

    def program(self, name: str, about: str, run: Any, *rest: Any) -> Program:
        """The program ``run(params, *rest)``; everything but the parameters is replicated."""
        if self._eight_bits:
            about += "; large products in fp8 (8 bits), rates compared with the bfloat16 peak"
        model, fp8 = self.model, self._eight_bits
        where = jax.tree.map(lambda leaf: leaf.sharding, self.params)

        def init():
            noisy, time, nothing = example(model)
            noisy, time = (jnp.zeros(leaf.shape, leaf.dtype) for leaf in (noisy, time))
            key = random_key(self._seed, "params")
            params = model.init(key, noisy, time, nothing, method="denoise")["params"]
            held = abstract_at_rest(model)
            # Large kernels are stored in the compute type, as when sampling.
            params = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, held)
            return cast_to_fp8(params) if fp8 else params

        shares = (where, *(self._whole for _ in rest))
        return Program(
            name=name,
            about=about,
            function=jax.jit(run, in_shardings=shares, out_shardings=self._whole),
            arguments=(self.params, *(with_shardings(part, self._whole) for part in rest)),
            parts={"parameters": self.params},
            initial={0: init},
            carries=None,
            frames=self.batch * self._size[0],
        )


def assume_space(config: ConfigDict) -> tuple[ConfigDict, Latents, ConfigDict | None]:
    """``(config, latents, config of the tokenizer)``.

    With ``config.plan.tokenizer``, the config of a tokenizer, neither a latent set nor a trained
    tokenizer need exist: the latents are what that tokenizer would give. Without it, the tokenizer
    is None, and the latents are those of the config.
    """
    tokenizer = None
    if config.plan.tokenizer:
        tokenizer = configs.load(config.plan.tokenizer)
        chunks = config.tokenizer.chunks
        spec = spec_in_chunks(model_of(tokenizer), chunks, "config.tokenizer.chunks")
        # The statistics of a data set do not matter to costs.
        latents = Latents(LatentSpace.of_spec(spec, "none"))
    else:
        latents = describe_latents(config)
    return follow_latents(config, latents.spec), latents, tokenizer


def assume_latents(config: ConfigDict) -> tuple[ConfigDict, Any, Latents]:
    """``(config, generator, latents)``; those of ``config.plan.tokenizer`` come from a set."""
    if config.plan.tokenizer:
        config = config.copy_and_resolve_references()
        # Then batches hold latents, whatever the config reads.
        config.data.source = "latents"
    config, latents, _ = assume_space(config)
    model = generator_of(config)
    check_generator(model, latents)
    return config, model, latents


def batch_shapes(
    model: Any, latents: Latents, bucket: tuple[int, ...]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of all arrays that a batch may hold for a generator, by name."""
    frames, height, width, batch = bucket
    size = (frames, height, width)
    t, h, w, c = latents.spec.latent_shape(size)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "video": ((*size, 3), jnp.uint8),
        "latent": ((t, h, w, c), jnp.float32),
        "mask": ((), jnp.float32),
        "label": ((), jnp.int32),
        "content": ((1, *size[1:], 3), jnp.uint8),
    }
    if "text" in model.reads:
        shapes["text"] = ((model.text_length, model.text_dim), jnp.float32)
        shapes["text_length"] = ((), jnp.int32)
    if "image" in model.reads:
        shapes["image"] = ((model.image_tokens, model.image_dim), jnp.float32)
    if "content" in model.reads:
        factor = model.content_factor
        content = (h * factor, w * factor, model.content_channels)
        shapes["content_latent"] = (content, jnp.float32)
    return {
        name: jax.ShapeDtypeStruct((batch, *shape), dtype)
        for name, (shape, dtype) in shapes.items()
    }


def _condition_shape(name: str, known: Mapping[str, jax.ShapeDtypeStruct]) -> Any:
    """Shape of a condition in the form in which the sampler reads it."""
    if name == "text":
        return {"states": known["text"], "length": known["text_length"]}
    if name == "content":
        return known["content_latent"]
    if name == "first":
        batch, _, *rest = known["latent"].shape
        return jax.ShapeDtypeStruct((batch, 1, *rest), jnp.float32)
    return known[name]
