"""The codec's programs with abstract arguments: a piece of a stream, a window, or one tile."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from vidlatent.codec.auto import AutoPrograms
from vidlatent.codec.options import CodecOptions, plan_codec
from vidlatent.models.load import abstract_params, model_of, smallest_video
from vidlatent.parallel.sharding import ACTIVATION_AXES, replicated, shardings, with_shardings
from vidlatent.plan.program import Program, format_size
from vidlatent.train.state import random_key

__all__ = ["build_decode", "build_encode"]


def build_encode(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    """Encode a clip, or a later piece of it where clips are streamed."""
    codec = _Codec(config, mesh, bucket)
    first, later = codec.pieces()
    arguments = (codec.params, codec.pixels(first), None)
    if later:
        # A later piece takes the cache that the first one leaves; only its shapes are needed.
        _, cache = jax.eval_shape(codec.encode, *arguments)
        arguments = (codec.params, codec.pixels(later), _shard_height(mesh, cache))
    run = _Run(later or first, bool(later))
    return codec.program("encode", jax.jit(codec.encode, donate_argnums=2), arguments, run)


def build_decode(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    """Decode a latent, or a later piece of it; for a decoder that looks ahead, a window."""
    codec = _Codec(config, mesh, bucket)
    if codec.windows:
        return _build_window(codec)
    first, later = codec.pieces()
    latent = codec.latent(first)
    arguments = (codec.params, _replicate(mesh, latent), codec.condition(first, True), None)
    if later:
        _, cache = jax.eval_shape(codec.decode, *arguments)
        shape = (1, later // codec.spec.t, *latent.shape[2:])
        piece = jax.ShapeDtypeStruct(shape, latent.dtype)
        seen = codec.condition(later, False)
        arguments = (codec.params, _replicate(mesh, piece), seen, _shard_height(mesh, cache))
    run = _Run(later or first, bool(later))
    return codec.program("decode", jax.jit(codec.decode, donate_argnums=3), arguments, run)


def _build_window(codec: _Codec) -> Program:
    """Decode the first window of a clip; with tiles, the outer stages of one tile.

    Those are nearly all of the work: the inner stages run once a window at low resolution.
    """
    frames = codec.size[0]
    condition = codec.condition(frames, True)
    latent, size = codec.latent(frames), codec.plan.window_latents
    window = codec.programs.coder.plan_window(codec.params, latent, size, condition)
    arguments = (codec.params, *(_place_missing(codec.mesh, leaf) for leaf in window.arguments))
    about = f"a window of {window.frames} frames and those around it, {window.latents} latents"
    words = f"{about} of {format_size(window.size)}"
    if window.tiles > 1:
        pixels = f"{format_size(window.size)} with margins"
        words = f"outer stages of one of {window.tiles} tiles, {pixels}, of {about}"
    run = _Run(window.frames / window.tiles, words=words)
    return codec.program("decode", jax.jit(window.function), arguments, run)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What one call processes.

    Attributes:
      frames: of video; for one of several tiles, its share of them.
      streamed: it continues from the cache of the piece before.
      words: line for the report; by default made from the sizes.
    """

    frames: float
    streamed: bool = False
    words: str = ""


class _Codec:
    """The codec's operations on one clip, with abstract arguments."""

    def __init__(self, config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]):
        model = model_of(config)
        self.spec, self.mesh, self.size = model.latent_spec, mesh, bucket[:3]
        self.spec.check_video(*self.size)
        self.seed = config.seed
        self.plan = plan_codec(CodecOptions.of(**config.codec), model, mesh.size)
        programs, self.tiles = self.plan.programs, 1
        if isinstance(programs, AutoPrograms):  # the largest parts, mostly whole frames
            programs = programs.first
        self.programs, self.model = programs, programs.model
        frames, height, width = self.size
        # Tiles are one program, called once for each.
        if tiles := programs.coder.cut_into_tiles(height, width):
            self.tiles, (height, width) = tiles
            self.size = (frames, height, width)
        self.windows = self.plan.time == "windows"
        params = abstract_params(self.model)
        self.params = with_shardings(params, shardings(params, mesh))

    def pieces(self) -> tuple[int, int]:
        """Frames of the first piece and of every later one; 0 if there is no later one."""
        rule, frames = self.spec.rule, self.size[0]
        if self.plan.chunks:
            return min(frames, self.plan.chunks[0]), 0
        later = self.plan.groups * rule.step
        # The first piece also has the frame that stands before the groups (1 in the rule 1+4k).
        first = later + rule.first % rule.step
        return (first, later) if frames > first else (frames, 0)

    def pixels(self, frames: int) -> Any:
        shape = jax.ShapeDtypeStruct((1, frames, *self.size[1:], 3), jnp.uint8)
        return _replicate(self.mesh, shape)

    def latent(self, frames: int) -> Any:
        return jax.eval_shape(self.encode, self.params, self.pixels(frames), None)[0]

    def condition(self, frames: int, first: bool) -> Any:
        """The condition that the decoder reads for a piece of ``frames`` frames, or None."""
        kind = self.model.condition_kind
        if kind == "none" or (kind == "first" and not first):
            return None
        # Content frames: one for each window of the rule.
        count = frames // self.spec.rule.step if kind == "content" else 1
        pixels = jax.ShapeDtypeStruct((count, *self.size[1:], 3), jnp.uint8)
        return _shard_height(
            self.mesh, jax.eval_shape(self.programs.encode_condition, self.params, pixels)
        )

    def encode(self, params: Any, pixels: Any, cache: Any) -> Any:
        return self.programs.encode(params, pixels, cache, None, 0)

    def decode(self, params: Any, latent: Any, condition: Any, cache: Any) -> Any:
        return self.programs.decode(params, latent, condition, cache)

    def program(self, name: str, function: Any, arguments: tuple[Any, ...], run: _Run) -> Program:
        """The program; where clips are streamed, the cache is the last argument."""
        what = "a later piece of a clip" if run.streamed else "a clip"
        if self.tiles > 1:
            what = f"one of {self.tiles} tiles of {what}"

        def init():
            # Parameters do not depend on the size of the clip: the smallest is the quickest.
            video = jnp.zeros(smallest_video(self.spec), jnp.float32)
            return self.model.init(random_key(self.seed, "params"), video)["params"]

        parts = {"parameters": self.params}
        if run.streamed:
            parts["caches"] = arguments[-1]
        return Program(
            name,
            run.words or f"{what}, {format_size((run.frames, *self.size[1:]))}",
            function,
            arguments,
            parts,
            {0: init},
            # Result 1, the cache, is the last argument of the next call.
            (1, len(arguments) - 1) if run.streamed else None,
            run.frames / self.tiles,
        )


def _replicate(mesh: Mesh, leaf: Any) -> Any:
    return with_shardings(leaf, replicated(mesh))


def _place_missing(mesh: Mesh, tree: Any) -> Any:
    """Replicate the leaves that have no sharding yet."""
    return jax.tree.map(lambda leaf: leaf if leaf.sharding else _replicate(mesh, leaf), tree)


def _shard_height(mesh: Mesh, tree: Any) -> Any:
    """Shard cached activations ``[B, T, H, W, C]`` or ``[B, H, W, C]`` by height if it divides."""
    axes = ACTIVATION_AXES["height"]
    ways = math.prod(mesh.shape[axis] for axis in axes)

    def where(leaf):
        # Third axis from the end, with a time axis or without. Smaller leaves are replicated.
        height = len(leaf.shape) - 3
        split = height > 0 and leaf.shape[height] % ways == 0
        return NamedSharding(mesh, P(*[None] * height, axes) if split else P())

    return with_shardings(tree, jax.tree.map(where, tree))
