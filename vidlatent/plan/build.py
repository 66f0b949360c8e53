"""The programs that a config's jobs run, with abstract arguments.

Each is built as its job builds it, but for values: arguments are shapes, dtypes and shardings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.models.load import model_of
from vidlatent.models.pretrained import network_shapes
from vidlatent.parallel.sharding import batch_sharding, replicated
from vidlatent.plan import codec as plan_codec
from vidlatent.plan import generators as plan_generators
from vidlatent.plan.program import Program, check_batch, sized
from vidlatent.registry import did_you_mean
from vidlatent.train.loss_terms import Objective
from vidlatent.train.program import abstract_state, jit_train_step, placed
from vidlatent.train.state import random_key
from vidlatent.train.tasks.tokenizer import make_step

__all__ = ["PROGRAMS", "bucket_of", "build_program", "programs_of"]


def bucket_of(config: ConfigDict, chosen: Sequence[int]) -> tuple[int, int, int, int]:
    """``chosen``, or of ``config.data.buckets`` the one with the most pixels a batch."""
    if chosen:
        if len(chosen) != 4:
            raise VidlatentError(
                f"config.plan.bucket={tuple(chosen)}: give (frames, height, width, global batch)."
            )
        return tuple(chosen)
    if not config.data.buckets:
        raise VidlatentError(
            "config.data.buckets is empty: give ((frames, height, width, batch), ...), or "
            "config.plan.bucket."
        )
    return tuple(max(config.data.buckets, key=math.prod))


def build_program(config: ConfigDict, what: str, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    """The program of a job, to be traced with ``mesh`` set.

    It is built without: a topology's devices cannot even make a random key.

    Args:
      config: of the run; ``config.precision.compute`` names a type.
      what: one of ``PROGRAMS``.
      mesh: of real devices or of a topology's.
      bucket: frames, height, width, global batch.

    Raises:
      DoesNotFit: the batch does not spread over the mesh.
      VidlatentError: an unknown program, or a size that the model does not take.
    """
    if what not in PROGRAMS:
        raise VidlatentError(f"no program {what!r} to plan: {did_you_mean(what, PROGRAMS)}")
    if what not in programs_of(config):
        raise VidlatentError(
            f"{what!r} is no program of {config.name}, a {_kind(config)}: choose one of "
            f"{', '.join(programs_of(config))}."
        )
    return PROGRAMS[what][_kind(config)](config, mesh, bucket)


def programs_of(config: ConfigDict) -> tuple[str, ...]:
    """Names of the programs that a config's model has."""
    return tuple(name for name, kinds in PROGRAMS.items() if _kind(config) in kinds)


def _kind(config: ConfigDict) -> str:
    return "generator" if config.generator else "tokenizer"


def _train(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    model = model_of(config)
    model.latent_spec.check_video(*bucket[:3])
    *size, batch = bucket
    check_batch(config, mesh, batch)
    step = make_step(config, model)
    state = abstract_state(step, config.seed, mesh)
    arrays = {
        "video": jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((batch,), jnp.float32),
    }
    names = Objective(config.loss.to_dict()).networks
    networks = placed({name: network_shapes(name) for name in names}, replicated(mesh))
    parts = {
        "parameters": state["params"],
        "averaged parameters": state["ema"],
        "optimizer": state["opt"],
        "discriminator and loss helpers": {
            k: state[k] for k in ("discriminator", "helpers") if k in state
        },
        "frozen networks": networks,
    }
    return Program(
        "train",
        f"step of a batch of {batch} clips {sized(size)}",
        jit_train_step(step, state, mesh),
        (state, placed(arrays, batch_sharding(mesh)), networks),
        parts,
        {0: lambda: step.init(random_key(config.seed, "params"))},
        (0, 0),
        batch * size[0],
    )


# What there is to plan, for each kind of model.
PROGRAMS = {
    "train": {"tokenizer": _train, "generator": plan_generators.training},
    "encode": {"tokenizer": plan_codec.encoding},
    "decode": {"tokenizer": plan_codec.decoding},
    "sample": {"generator": plan_generators.sampling},
    "nfe": {"generator": plan_generators.evaluation},
}
