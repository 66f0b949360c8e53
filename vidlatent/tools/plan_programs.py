"""The programs that a config's jobs run, with abstract arguments.

Each is built as its job builds it, but for values: arguments are shapes, dtypes and shardings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from vidlatent.dist.rules import ACTIVATION_AXES, batch_sharding, replicated, shardings
from vidlatent.infer.coding import Coding
from vidlatent.infer.load import abstract_params, model_of, smallest_video
from vidlatent.infer.steps import Steps
from vidlatent.models.frozen import network_shapes
from vidlatent.registry import did_you_mean
from vidlatent.tools import plan_generators
from vidlatent.tools.plan_program import Program, check_batch, sized
from vidlatent.train.program import abstract_state, jit_train_step, placed
from vidlatent.train.state import random_key
from vidlatent.train.steps.objective import Objective
from vidlatent.train.steps.tokenizer import make_step
from vidlatent.typing import VidlatentError

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
        "critic and loss helpers": {k: state[k] for k in ("critic", "helpers") if k in state},
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


def _encode(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    codec = _Codec(config, mesh, bucket)
    first, later = codec.pieces(decoding=False)
    arguments = (codec.params, codec.pixels(first), None)
    if later:
        _, cache = jax.eval_shape(codec.encode, *arguments)
        arguments = (codec.params, codec.pixels(later), _spread(mesh, cache))
    return codec.program("encode", jax.jit(codec.encode, donate_argnums=2), arguments, first, later)


def _decode(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    codec = _Codec(config, mesh, bucket)
    first, later = codec.pieces(decoding=True)
    latent, _ = jax.eval_shape(codec.encode, codec.params, codec.pixels(first), None)
    arguments = (codec.params, _whole(mesh, latent), codec.condition(first, True), None)
    if later:
        _, cache = jax.eval_shape(codec.decode, *arguments)
        shape = (1, later // codec.spec.t, *latent.shape[2:])
        piece = jax.ShapeDtypeStruct(shape, latent.dtype)
        seen = codec.condition(later, False)
        arguments = (codec.params, _whole(mesh, piece), seen, _spread(mesh, cache))
    return codec.program("decode", jax.jit(codec.decode, donate_argnums=3), arguments, first, later)


class _Codec:
    """What the codec runs for one clip: a later piece of a stream, or the whole clip at once."""

    def __init__(self, config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]):
        self.model = model_of(config)
        self.spec, self.mesh, self.size = self.model.latent_spec, mesh, bucket[:3]
        self.spec.check_video(*self.size)
        self.seed = config.seed
        self.plan = Coding.of(config.codec.to_dict()).plan(self.model)
        self.steps = Steps(self.plan.model)
        params = abstract_params(self.model)
        self.params = placed(params, shardings(params, mesh))

    def pieces(self, decoding: bool) -> tuple[int, int]:
        """Frames of a first piece, and of a later one (0 if there is none)."""
        rule, frames = self.spec.rule, self.size[0]
        if self.plan.chunks:
            return min(frames, self.plan.chunks[0]), 0
        if decoding and self.plan.time == "windows":
            return frames, 0
        later = self.plan.groups * rule.step
        first = later + rule.first % rule.step
        return (first, later) if frames > first else (frames, 0)

    def pixels(self, frames: int) -> Any:
        shape = jax.ShapeDtypeStruct((1, frames, *self.size[1:], 3), jnp.uint8)
        return _whole(self.mesh, shape)

    def condition(self, frames: int, first: bool) -> Any:
        """What the decoder looks at for a piece of so many frames."""
        kind = self.steps.content
        if kind == "none" or (kind == "first" and not first):
            return None
        count = frames // self.spec.rule.step if kind == "clip" else 1
        pixels = jax.ShapeDtypeStruct((count, *self.size[1:], 3), jnp.uint8)
        return _spread(self.mesh, jax.eval_shape(self.steps.look, self.params, pixels))

    def encode(self, params: Any, pixels: Any, cache: Any) -> Any:
        return self.steps.encode(params, pixels, cache, None, 0)

    def decode(self, params: Any, latent: Any, condition: Any, cache: Any) -> Any:
        return self.steps.decode(params, latent, condition, cache)

    def program(
        self, name: str, function: Any, arguments: tuple[Any, ...], first: int, later: int
    ) -> Program:
        size = sized((later or first, *self.size[1:]))

        def init():
            video = jnp.zeros(smallest_video(self.spec), jnp.float32)
            return self.model.init(random_key(self.seed, "params"), video)["params"]

        return Program(
            name,
            f"a later piece of a clip, {size}" if later else f"a clip {size}",
            function,
            arguments,
            {"parameters": self.params, "caches": arguments[-1]},
            {0: init},
            (1, len(arguments) - 1),
            later or first,
        )


def _whole(mesh: Mesh, leaf: Any) -> Any:
    return placed(leaf, replicated(mesh))


def _spread(mesh: Mesh, tree: Any) -> Any:
    """Activations ``[B, T, H, W, C]`` or ``[B, H, W, C]`` kept between pieces, by height."""
    axes = ACTIVATION_AXES["height"]
    ways = math.prod(mesh.shape[axis] for axis in axes)

    def where(leaf):
        height = len(leaf.shape) - 3
        split = height > 0 and leaf.shape[height] % ways == 0
        return NamedSharding(mesh, P(*[None] * height, axes) if split else P())

    return placed(tree, jax.tree.map(where, tree))


# What there is to plan, for each kind of model.
PROGRAMS = {
    "train": {"tokenizer": _train, "generator": plan_generators.training},
    "encode": {"tokenizer": _encode},
    "decode": {"tokenizer": _decode},
    "sample": {"generator": plan_generators.sampling},
    "nfe": {"generator": plan_generators.evaluation},
}
