"""A generator's programs with abstract arguments: its training step and its sampling loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.dist.rules import batch_sharding, replicated, shardings
from vidlatent.infer.generate_load import (
    Latents,
    abstract_generator,
    check_generator,
    example,
    generator_of,
    latents_of,
    tokenizer_config,
)
from vidlatent.infer.load import abstract_params, model_of
from vidlatent.infer.sampling import LatentSampler
from vidlatent.tools.plan_program import Program, check_batch, sized
from vidlatent.train.program import abstract_state, jit_train_step, placed
from vidlatent.train.state import random_key
from vidlatent.train.steps.diffusion import make_step

__all__ = ["sampling", "training"]

_CLIP_TOKENS = 257  # of CLIP ViT-H/14, where the generator does not say how many it reads


def training(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    """The diffusion step on a batch of latents, or of videos where that is what the data holds."""
    config, model, latents = _assumed(config)
    *size, batch = bucket
    check_batch(config, mesh, batch)
    step = make_step(config, model, latents)
    state = abstract_state(step, config.seed, mesh)
    known = _arrays(model, latents, tuple(size), batch)
    arrays = placed({name: known[name] for name in step.arrays}, batch_sharding(mesh))
    networks: dict[str, Any] = {}
    if config.data.source != "latents":
        networks["tokenizer"] = abstract_params(model_of(tokenizer_config(config)))
    networks = placed(networks, replicated(mesh))
    return Program(
        name="train",
        about=f"step of a batch of {batch} clips {sized(size)}, latents {_grid(latents, size)}",
        function=jit_train_step(step, state, mesh),
        arguments=(state, arrays, networks),
        parts={
            "parameters": state["params"],
            "averaged parameters": state["ema"],
            "optimizer": state["opt"],
            "frozen networks": networks,
        },
        initial={0: lambda: step.init(random_key(config.seed, "params"))},
        carries=(0, 0),
        frames=batch * size[0],
    )


def sampling(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    """The whole loop from noise to latents, of ``config.sample.size`` unless a bucket is given."""
    config, model, latents = _assumed(config)
    size, batch = tuple(config.sample.size) or bucket[:3], config.sample.batch
    if config.plan.bucket:
        *size, batch = config.plan.bucket
    shape = latents.spec.latent_shape(tuple(size))
    sampler = LatentSampler(
        model, config.diffusion.schedule.to_dict(), config.sampler.to_dict(), shape
    )
    params = abstract_generator(model)
    params = placed(params, shardings(params, mesh))
    whole = replicated(mesh)
    known = _arrays(model, latents, tuple(size), batch)
    conditions = {name: _condition(name, known) for name in model.reads}
    seeds = jax.ShapeDtypeStruct((batch,), jnp.uint32)
    where = jax.tree.map(lambda leaf: leaf.sharding, params)

    def init():
        noisy, time, nothing = example(model)
        noisy, time = (jnp.zeros(leaf.shape, leaf.dtype) for leaf in (noisy, time))
        key = random_key(config.seed, "params")
        return model.init(key, noisy, time, nothing, method="denoise")["params"]

    return Program(
        name="sample",
        about=f"{sampler.nfe} evaluations for {batch} clips {sized(size)}, latents {sized(shape)}",
        function=jax.jit(sampler.run, in_shardings=(where, whole, whole), out_shardings=whole),
        arguments=(params, placed(seeds, whole), placed(conditions, whole)),
        parts={"parameters": params},
        initial={0: init},
        carries=None,
        frames=batch * size[0],
    )


def _assumed(config: ConfigDict) -> tuple[ConfigDict, Any, Latents]:
    """``(config, generator, latents)``; with ``config.plan.tokenizer`` no latents need exist."""
    model = generator_of(config)
    if config.plan.tokenizer:
        spec = model_of(configs.load(config.plan.tokenizer)).latent_spec
        latents = Latents(spec, (0.0,) * spec.channels, (1.0,) * spec.channels)
        config = config.copy_and_resolve_references()
        config.data.source = "latents"
    else:
        latents = latents_of(config)
    check_generator(model, latents)
    return config, model, latents


def _grid(latents: Latents, size: Any) -> str:
    return sized(latents.spec.latent_shape(tuple(size)))


def _arrays(
    model: Any, latents: Latents, size: tuple[int, int, int], batch: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """What a batch of the loader may hold of a generator's conditions."""
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
        tokens = model.image_tokens if hasattr(model, "image_tokens") else _CLIP_TOKENS
        shapes["image"] = ((tokens, model.image_dim), jnp.float32)
    if "content" in model.reads:
        factor = model.content_factor
        content = (h * factor, w * factor, model.content_channels)
        shapes["content_latent"] = (content, jnp.float32)
    return {
        name: jax.ShapeDtypeStruct((batch, *shape), dtype)
        for name, (shape, dtype) in shapes.items()
    }


def _condition(name: str, known: Mapping[str, jax.ShapeDtypeStruct]) -> Any:
    """A condition as the sampler is given it."""
    if name == "text":
        return {"states": known["text"], "length": known["text_length"]}
    if name == "content":
        return known["content_latent"]
    if name == "first":
        batch, _, *rest = known["latent"].shape
        return jax.ShapeDtypeStruct((batch, 1, *rest), jnp.float32)
    return known[name]
