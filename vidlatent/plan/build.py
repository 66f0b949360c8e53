"""The programs that a config's jobs run, with abstract arguments.

Each is built by the code that its job uses, so that the plan is about the same program. Only the
values are missing: arguments are shapes, dtypes and shardings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.checkpoint.layout import find_players
from vidlatent.config import role_of
from vidlatent.errors import VidlatentError
from vidlatent.models.frozen import describe_frozen
from vidlatent.parallel.sharding import batch_sharding, with_shardings
from vidlatent.plan import codec as plan_codec
from vidlatent.plan import generators as plan_generators
from vidlatent.plan import second_half
from vidlatent.plan.distill import build_distill_train
from vidlatent.plan.program import Program, check_batch, format_size
from vidlatent.plan.rewarded import REWARDED, build_reward_train
from vidlatent.registry import did_you_mean
from vidlatent.train.program import describe_length, describe_state, jit_train_step
from vidlatent.train.state import random_key
from vidlatent.train.tasks.tokenizer import TokenizerTask

__all__ = ["PROGRAMS", "build_program", "choose_bucket", "list_programs"]


def choose_bucket(config: ConfigDict, chosen: Sequence[int]) -> tuple[int, int, int, int]:
    """``chosen`` if given, else the bucket of ``config.data.buckets`` with most pixels a batch."""
    if chosen:
        if len(chosen) != 4:
            raise VidlatentError(
                f"config.plan.bucket={tuple(chosen)}: give (frames, height, width, global batch)."
            )
        frames, height, width, batch = chosen
        return frames, height, width, batch
    if not config.data.buckets:
        raise VidlatentError(
            "config.data.buckets is empty: give ((frames, height, width, batch), ...), or "
            "config.plan.bucket."
        )
    frames, height, width, batch = max(config.data.buckets, key=math.prod)
    return frames, height, width, batch


def build_program(config: ConfigDict, what: str, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    """The program of a job. Trace it with ``mesh`` set; do not set it while building.

    Building runs small computations such as making a random key, and devices that a topology only
    describes cannot run any.

    Args:
      config: of the run; ``config.precision.compute`` is a type, not ``auto``.
      what: one of ``PROGRAMS``.
      mesh: of real devices, or of the devices that a topology describes.
      bucket: frames, height, width, global batch.

    Raises:
      DoesNotSpread: the mesh cannot divide the batch.
      VidlatentError: an unknown program, or a size that the model does not accept.
    """
    if what not in PROGRAMS:
        raise VidlatentError(f"no program {what!r} to plan: {did_you_mean(what, PROGRAMS)}")
    if what not in list_programs(config):
        raise VidlatentError(
            f"{what!r} is not a program of {config.name}, which is of the task {config.task!r}: "
            f"choose one of {', '.join(list_programs(config))}."
        )
    return PROGRAMS[what][_kind(config, what)](config, mesh, bucket)


def list_programs(config: ConfigDict) -> tuple[str, ...]:
    """Names of the programs that the config's task, or its model, has."""
    return tuple(name for name, kinds in PROGRAMS.items() if _kind(config, name) in kinds)


def _kind(config: ConfigDict, what: str) -> str:
    # A distilled generator is sampled as any other, whatever task trains it.
    return config.task if what == "train" else role_of(config)


def _build_tokenizer_train(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    task = TokenizerTask(config)
    task.spec.check_video(*bucket[:3])
    *size, batch = bucket
    check_batch(config, mesh, batch)
    state = describe_state(task, config.seed, mesh)
    frozen = describe_frozen(task.frozen, mesh)
    arrays = {
        "video": jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((batch,), jnp.float32),
    }
    parts = {
        "parameters": state["params"],
        "averaged parameters": state["ema"],
        "optimizer": state["opt"],
        "discriminator and loss helpers": {name: state[name] for name in find_players(state)},
        "frozen networks": frozen,
    }
    return Program(
        "train",
        f"step of a batch of {batch} clips {format_size(size)}",
        jit_train_step(task, state, frozen, mesh, config.train.steps),
        (state, with_shardings(arrays, batch_sharding(mesh)), frozen, describe_length(mesh)),
        parts,
        {0: lambda: task.init(random_key(config.seed, "params"))},
        # Result 0, the new state, is argument 0 of the next step.
        (0, 0),
        batch * size[0],
    )


# Tasks that learn from a teacher.
DISTILLATIONS = ("distill_guidance", "distill_progressive", "distill_score")

# Program name -> config.task ("train"), or the model's role -> the function that builds it.
PROGRAMS = {
    "train": {
        "tokenizer": _build_tokenizer_train,
        "generator": plan_generators.build_train,
        "refiner": second_half.build_refiner_train,
        "upsampler": second_half.build_upsampler_train,
        **dict.fromkeys(DISTILLATIONS, build_distill_train),
        **dict.fromkeys(REWARDED, build_reward_train),
    },
    "encode": {"tokenizer": plan_codec.build_encode},
    "decode": {"tokenizer": plan_codec.build_decode},
    "sample": {
        "generator": plan_generators.build_sample,
        "refiner": plan_generators.build_sample,
        "upsampler": second_half.build_upsample,
    },
    "nfe": {"generator": plan_generators.build_nfe, "refiner": plan_generators.build_nfe},
}
