"""The programs that a config's jobs run, with abstract arguments.

Each is built as its job builds it, but for values: arguments are shapes, dtypes and shardings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
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
from vidlatent.train.program import abstract_state, jit_train_step, placed
from vidlatent.train.state import random_key
from vidlatent.train.steps.objective import Objective
from vidlatent.train.steps.tokenizer import make_step
from vidlatent.typing import VidlatentError

__all__ = ["PROGRAMS", "DoesNotFit", "Program", "bucket_of", "build_program"]


class DoesNotFit(VidlatentError):
    """A program that a machine has no place for.

    Attributes:
      needed: bytes of a device it asked for; NaN where that is not known.
    """

    def __init__(self, message: str, needed: float = math.nan):
        super().__init__(message)
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and what it is called with.

    Attributes:
      name: ``'train'``, ``'encode'``, ``'decode'``.
      about: what one run of it does, in a few words.
      function: jitted; called with the mesh set.
      arguments: pytrees of ShapeDtypeStructs with shardings.
      parts: names for parts of the arguments, such as the optimizer's moments.
      initial: for an argument that is not free, what makes it (under ``jit``); by position.
      carries: ``(result, argument)``: what a run hands to the next, given up by donation.
      frames: video frames that a run turns over, on all devices.
    """

    name: str
    about: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    parts: Mapping[str, Any]
    initial: Mapping[int, Callable[[], Any]]
    carries: tuple[int, int]
    frames: int


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
    """The program of a job, for a mesh that is set.

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
    return PROGRAMS[what](config, mesh, bucket)


def _train(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    model = model_of(config)
    model.latent_spec.check_video(*bucket[:3])
    *size, batch = bucket
    _check_batch(config, mesh, batch)
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
        f"step of a batch of {batch} clips {_sized(size)}",
        jit_train_step(step, state, mesh),
        (state, placed(arrays, batch_sharding(mesh)), networks),
        parts,
        {0: lambda: step.init(random_key(config.seed, "params"))},
        (0, 0),
        batch * size[0],
    )


def _check_batch(config: ConfigDict, mesh: Mesh, batch: int) -> None:
    """A batch, and each piece of it that is accumulated, is spread evenly over the mesh."""
    ways = math.prod(mesh.shape[axis] for axis in ACTIVATION_AXES["batch"])
    pieces = config.optim.accumulate
    if batch % (ways * pieces):
        each = f" in {pieces} pieces" if pieces > 1 else ""
        raise DoesNotFit(
            f"a batch of {batch}{each} does not spread over data {mesh.shape['data']} x fsdp "
            f"{mesh.shape['fsdp']}: change the batch of config.data.buckets or config.mesh."
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
        size = _sized((later or first, *self.size[1:]))

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


def _sized(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


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


PROGRAMS = {"train": _train, "encode": _encode, "decode": _decode}
