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

from vidlatent.codec.auto import AutoSteps
from vidlatent.codec.options import Coding
from vidlatent.codec.programs import PartSteps, Steps, TiledSteps
from vidlatent.models.load import abstract_params, model_of, smallest_video
from vidlatent.models.tokenizers.fsvideo import patches
from vidlatent.parallel.sharding import ACTIVATION_AXES, replicated, shardings
from vidlatent.plan.program import Program, format_size
from vidlatent.train.program import placed
from vidlatent.train.state import random_key

__all__ = ["build_decode", "build_encode"]


def build_encode(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    """Encode a clip, or a later piece of it where clips are streamed."""
    codec = _Codec(config, mesh, bucket)
    first, later = codec.pieces()
    arguments = (codec.params, codec.pixels(first), None)
    if later:
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
    model, mesh = codec.model, codec.mesh
    stage = patches.outer_stage(model)
    before, after, inner = patches.window_margins(model)
    latent = codec.latent(codec.size[0])
    total = latent.shape[1]
    new = min(codec.plan.window_latents, total)
    count = min(total, before + new + after)
    new = total if new + after >= total else new
    read = min(total, count + inner.left + inner.right)
    latent = jax.ShapeDtypeStruct((1, read, *latent.shape[2:]), latent.dtype)
    condition = codec.condition(codec.size[0], True)
    made = codec.spec.t * new - (codec.spec.t - 1)
    if not isinstance(codec.steps, PartSteps):

        def whole(params, latent, condition):
            x = patches.decode_inner(model, params, latent, stage, condition)
            size = (count, *x.shape[2:4])
            return patches.decode_part(model, params, x, stage, size, (0, 0, 0), condition)

        arguments = (codec.params, _replicate(mesh, latent), condition)
        about = f"a window of {made} frames and those around it, {count} latents of"
        run = _Run(made, words=f"{about} {format_size(codec.size[1:])}")
        return codec.program("decode", jax.jit(whole), arguments, run)

    x = jax.eval_shape(
        lambda *args: patches.decode_inner(model, *args[:2], stage, args[2]),
        *(codec.params, latent, condition),
    )
    core = codec.steps.core // 2**stage
    rows, columns = patches.decoder_tiles(model, x.shape[2:4], core)
    size = (count, rows[0], columns[0])

    def tile(params, x, condition, start):
        return patches.decode_part(model, params, x, stage, size, tuple(start), condition)

    start = jax.ShapeDtypeStruct((3,), jnp.int32)
    arguments = (codec.params, _replicate(mesh, x), condition, _replicate(mesh, start))
    number = len(rows[1]) * len(columns[1])
    pixels = format_size(2**stage * side for side in size[1:])
    about = f"outer stages of one of {number} tiles, {pixels} with margins, of a window of {made}"
    run = _Run(made / number, words=f"{about} frames and those around it, {count} latents")
    return codec.program("decode", jax.jit(tile), arguments, run)


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
        self.model = model_of(config)
        self.spec, self.mesh, self.size = self.model.latent_spec, mesh, bucket[:3]
        self.spec.check_video(*self.size)
        self.seed = config.seed
        self.plan = Coding.of(config.codec.to_dict()).plan(self.model, mesh.size)
        self.model, self.steps, self.tiles = self.plan.model, self.plan.steps, 1
        if isinstance(self.steps, AutoSteps):  # begins with whole frames; tiles are tried later
            self.steps = Steps(self.model)
        if isinstance(self.steps, TiledSteps):  # one program, called once a tile
            self._take_tile(self.steps)
        self.windows = self.plan.time == "windows"
        params = abstract_params(self.model)
        self.params = placed(params, shardings(params, mesh))

    def _take_tile(self, steps: TiledSteps) -> None:
        frames, height, width = self.size
        self.steps = Steps(self.model)
        if steps.cuts(height, width):
            core, read = steps.tiles.core, steps.tiles.read
            self.size = (frames, min(height, read), min(width, read))
            self.tiles = -(-height // core) * -(-width // core)

    def pieces(self) -> tuple[int, int]:
        """Frames of the first piece and of every later one; 0 if there is no later one."""
        rule, frames = self.spec.rule, self.size[0]
        if self.plan.chunks:
            return min(frames, self.plan.chunks[0]), 0
        later = self.plan.groups * rule.step
        first = later + rule.first % rule.step
        return (first, later) if frames > first else (frames, 0)

    def pixels(self, frames: int) -> Any:
        shape = jax.ShapeDtypeStruct((1, frames, *self.size[1:], 3), jnp.uint8)
        return _replicate(self.mesh, shape)

    def latent(self, frames: int) -> Any:
        return jax.eval_shape(self.encode, self.params, self.pixels(frames), None)[0]

    def condition(self, frames: int, first: bool) -> Any:
        """The condition that the decoder reads for a piece of ``frames`` frames, or None."""
        kind = self.steps.content
        if kind == "none" or (kind == "first" and not first):
            return None
        count = frames // self.spec.rule.step if kind == "clip" else 1
        pixels = jax.ShapeDtypeStruct((count, *self.size[1:], 3), jnp.uint8)
        return _shard_height(self.mesh, jax.eval_shape(self.steps.look, self.params, pixels))

    def encode(self, params: Any, pixels: Any, cache: Any) -> Any:
        return self.steps.encode(params, pixels, cache, None, 0)

    def decode(self, params: Any, latent: Any, condition: Any, cache: Any) -> Any:
        return self.steps.decode(params, latent, condition, cache)

    def program(self, name: str, function: Any, arguments: tuple[Any, ...], run: _Run) -> Program:
        """The program; where clips are streamed, the cache is the last argument."""
        what = "a later piece of a clip" if run.streamed else "a clip"
        if self.tiles > 1:
            what = f"one of {self.tiles} tiles of {what}"

        def init():
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
            (1, len(arguments) - 1) if run.streamed else None,
            run.frames / self.tiles,
        )


def _replicate(mesh: Mesh, leaf: Any) -> Any:
    return placed(leaf, replicated(mesh))


def _shard_height(mesh: Mesh, tree: Any) -> Any:
    """Shard cached activations ``[B, T, H, W, C]`` or ``[B, H, W, C]`` by height if it divides."""
    axes = ACTIVATION_AXES["height"]
    ways = math.prod(mesh.shape[axis] for axis in axes)

    def where(leaf):
        height = len(leaf.shape) - 3
        split = height > 0 and leaf.shape[height] % ways == 0
        return NamedSharding(mesh, P(*[None] * height, axes) if split else P())

    return placed(tree, jax.tree.map(where, tree))
