"""Rows of ``benchmarks.h200``: evaluations of FSVideo's transformer, FSAE-Lite's decoder.

The transformer's parameters are random, in the types that sampling holds them in, and made on the
device. Keys and values of text and image come from a cache, as in the samplers. States between
sub-layers are bfloat16 (``--config.generator.residual_dtype=bfloat16`` in a run).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.h200_rows import HALF, NO_TRITON, Case, Row, normal, random_key
from vidlatent.bench import run as bench
from vidlatent.config import load
from vidlatent.latents.space import abstract_at_rest
from vidlatent.layers.positions import rope_tables
from vidlatent.models.generators import build_generator
from vidlatent.models.generators.fp8_weights import cast_to_fp8
from vidlatent.models.generators.wan.block import WanBlock
from vidlatent.parallel.mesh import make_mesh

__all__ = ["decoding", "draw_params", "evaluations"]

# Latent grids of 121x384x640 and 121x768x1280. The grid between has 1872 tokens, which are 1860
# padded to a multiple of 16, and belongs to no video.
_BASE, _FILLED, _REFINER = (31, 6, 10), (26, 6, 12), (31, 12, 20)
_IMAGE_TOKENS = 257  # of CLIP ViT-H/14
_SMALL = {"width": 64, "depth": 2, "heads": 4, "hidden": 96, "text_dim": 32, "image_dim": 32}


def evaluations(scale: int) -> Iterator[Row]:
    """Blocks, then evaluations in bfloat16 and in 8 bits.

    Predictions are the kernel study's goals: 0.72 of the ceiling for the base, 0.80 for the
    refiner; in 8 bits the linear layers at 1250 in place of 720 TFLOP/s.
    """
    networks = _Networks(scale)
    base, filled, refiner = (
        (_BASE, _FILLED, _REFINER) if scale == 1 else ((3, 2, 2), (4, 2, 2), (3, 4, 4))
    )
    for name, grid, batch, study in (("base", base, 2, 4.26), ("refiner", refiner, 1, 9.01)):
        title = f"one block, {_title(name, grid, batch)}"
        flops = networks.flops(grid, batch) / networks.model().depth
        make = functools.partial(networks.block, grid, batch)
        yield Row(title, make, flops=flops, study=study, part=(f"{name} blocks", "", 40.0))

    def evaluation(name, grid, batch, study, form="", options=None, counts=True, **how):
        kind = how.get("products", "bfloat16")
        title = f"evaluation, {_title(name, grid, batch)}, {kind}"
        total = (kind, form, {"base": 30.0, "refiner": 8.0}[name])
        if "stack" in how:
            total = (f"{kind} apart", "", total[2])
        return Row(
            title + (f", {form}" if form else ""),
            functools.partial(networks.evaluation, grid, batch, **how),
            flops=networks.flops(grid, batch),
            study=study,
            options=options or {},
            part=total if counts else None,
        )

    yield evaluation("base", base, 2, 170.5)
    yield evaluation("refiner", refiner, 1, 361.0)
    yield evaluation("base", filled, 2, 171.0, counts=False)
    eight = {"products": "8 bits"}
    for form, options in (("", {}), ("without Triton", NO_TRITON)):
        yield evaluation("base", base, 2, 119.0, form, options, **eight)
        yield evaluation("refiner", refiner, 1, 256.0, form, options, **eight)
    # On GPUs fp8 products need a multiple of 16 tokens: others are padded before each product.
    yield evaluation("base", filled, 2, 119.0, counts=False, **eight)
    # Without a scan there is no buffer of all layers' states, half of which a scanned stack reads
    # in vain, and parameters are not copied out of a stack, as the compiled scan does.
    for products, base_ms, refiner_ms in (("bfloat16", 170.5, 361.0), ("8 bits", 119.0, 256.0)):
        how = {"form": "layer by layer", "products": products, "stack": "unrolled"}
        yield evaluation("base", base, 2, base_ms, **how)
        yield evaluation("refiner", refiner, 1, refiner_ms, **how)


def _title(name: str, grid: tuple[int, int, int], batch: int) -> str:
    return f"{name}, {batch} x {math.prod(grid)} tokens"


def draw_params(shapes: Any, seed: int) -> Any:
    """Random parameters of these shapes and types, made on the device."""

    def leaf(key, path, shape):
        if path[-1].key == "scale":  # of a norm
            return jnp.ones(shape.shape, shape.dtype)

        def draw(key, sizes):
            return 0.02 * jax.random.normal(key, sizes, shape.dtype)

        if len(shape.shape) < 3:
            return draw(key, shape.shape)
        # Layer by layer, since making random numbers needs extra memory.
        keys = jax.random.split(key, shape.shape[0])
        return jax.lax.map(lambda key: draw(key, shape.shape[1:]), keys)

    @jax.jit
    def make(key):
        leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
        keys = jax.random.split(key, len(leaves))
        made = [leaf(k, *item) for k, item in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(tree, made)

    return make(random_key(seed))


class _Networks:
    """FSVideo's transformer in its forms; parameters are made once."""

    def __init__(self, scale: int):
        self._small = scale > 1
        self._outputs: dict[Any, jax.Array] = {}
        self._layers: tuple[str, list[Any]] = ("", [])

    def model(self, stack: str = "scanned") -> Any:
        fields = {"name": "wan", "stack": stack, "remat": False, "residual_dtype": "bfloat16"}
        return build_generator({**fields, **(_SMALL if self._small else {})}, HALF)

    def flops(self, grid: tuple[int, int, int], batch: int) -> float:
        """Operations of an evaluation: linear layers, self-attention and cross-attention."""
        model, tokens = self.model(), math.prod(grid)
        linear = tokens * model.width * (12 * model.width + 4 * model.hidden)
        others = tokens + model.text_length + _IMAGE_TOKENS
        return float(batch * model.depth * (linear + 4 * tokens * others * model.width))

    @functools.cached_property
    def params(self) -> Any:
        return draw_params(abstract_at_rest(self.model()), 0)

    @functools.cached_property
    def eighth(self) -> Any:
        return jax.jit(cast_to_fp8)(self.params)

    def _apart(self, products: str) -> list[Any]:
        """Every layer's parameters in separate arrays; only the last ``products`` are kept."""
        if self._layers[0] != products:
            self._layers = ("", [])
            blocks = (self.params if products == "bfloat16" else self.eighth)["blocks"]
            one_by_one = range(self.model().depth)
            layers = [jax.tree.map(lambda leaf, n=n: leaf[n], blocks) for n in one_by_one]
            self._layers = (products, layers)
        return self._layers[1]

    def conditions(self, grid: tuple[int, int, int], batch: int) -> dict[str, Any]:
        model = self.model()
        text = normal(batch, model.text_length, model.text_dim, dtype=jnp.float32)
        return {
            "text": {"states": text, "length": jnp.full((batch,), 77, jnp.int32)},
            "image": normal(batch, _IMAGE_TOKENS, model.image_dim, dtype=jnp.float32),
            "first": normal(batch, 1, *grid[1:], model.condition_channels, dtype=jnp.float32),
        }

    @functools.cached_property
    def _cache_conditions(self) -> Any:
        model = self.model()
        return jax.jit(
            lambda p, given: model.apply({"params": p}, given, method="cache_conditions")
        )

    def evaluation(
        self,
        grid: tuple[int, int, int],
        batch: int,
        products: str = "bfloat16",
        stack: str = "scanned",
    ) -> Case:
        """The network as a sampler calls it; the reference is bfloat16 with scanned layers."""
        model, given = self.model(stack), self.conditions(grid, batch)
        cache = self._cache_conditions(self.params, given)
        params = self.params if products == "bfloat16" else self.eighth
        if stack == "unrolled":
            params = params | {"blocks": self._apart(products)}
        noisy = normal(batch, *grid, model.latent_channels, dtype=jnp.float32)
        first = {"first": given["first"]}

        def run(noisy, params, first, cache):
            if stack == "unrolled":  # the compiler removes this stack and reads its parts
                blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params["blocks"])
                params = params | {"blocks": blocks}
            conditions = {"text": None, "image": None, **first}
            time = jnp.full((batch,), 500.0)
            return model.apply(
                {"params": params}, noisy, time, conditions, condition_cache=cache, method="denoise"
            )

        made = Case(run, (noisy, params, first, cache))
        key = (grid, batch)
        if products == "bfloat16" and stack == "scanned":
            made.keep = functools.partial(self._outputs.__setitem__, key)
        elif key in self._outputs:
            made.reference = functools.partial(self._outputs.__getitem__, key)
        return made

    def block(self, grid: tuple[int, int, int], batch: int) -> Case:
        """A block of the stack with its mixture given."""
        model, tokens = self.model(), math.prod(grid)
        fields = (model.width, model.heads, model.hidden, True)
        block = WanBlock(*fields, residual_dtype=model.residual_dtype, dtype=HALF)
        tables = rope_tables(grid, model.width // model.heads)
        cache = self._cache_conditions(self.params, self.conditions(grid, batch))
        pairs = jax.tree.map(lambda leaf: leaf[:, 0], cache)
        params = jax.tree.map(lambda leaf: leaf[0], self.params["blocks"])
        x, mixture = (normal(batch, tokens, model.width, seed=seed) for seed in range(2))
        time = normal(batch, 6, model.width, dtype=jnp.float32)

        def run(x, params, mixture, time, pairs):
            return block.apply({"params": params}, x, mixture, time, pairs, tables, method="attend")

        return Case(run, (x, params, mixture, time, pairs))


def decoding(scale: int) -> Iterator[Row]:
    """Pieces of FSAE-Lite's decoding of a stream, as the codec runs them; two sizes of a piece.

    The prediction is the kernel study's goal, half of the ceiling: 1.5 s for 121 frames.
    """
    bucket, spec, pieces = (121, 768, 1280, 1), "fsae:lite", (2, 10)
    keys = {"precision.compute": "bfloat16", "bench.warmup": "2"}
    if scale > 1:
        bucket, spec, pieces = (13, 16, 16, 1), "fsae:demo,form=lite", (2,)
        keys |= {
            "model.encoder_widths": "(8, 16, 16)",
            "model.decoder_widths": "(8, 8, 16)",
            "model.latent_channels": "8",
        }
    for groups in pieces:
        frames = min(4 * groups, bucket[0])
        share = frames / bucket[0]
        size = "x".join(map(str, (frames, *bucket[1:3])))
        run = functools.partial(_decode, spec, {**keys, "codec.groups": str(groups)}, bucket)
        part = ("decode", f"pieces of {frames} frames", 1 / share)
        title = f"FSAE-Lite, decoding a piece of {size}"
        yield Row(title, bench=run, flops=590e12 * share, study=1500 * share, part=part)


def _decode(
    spec: str, keys: dict[str, str], bucket: tuple[int, ...], repeats: int
) -> dict[str, Any]:
    """``bench.measure`` of the decode program on one device."""
    config = load(spec, {**keys, "bench.repeats": str(repeats)})
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    # The peaks only matter for shares of them, which ``h200`` computes itself.
    found = bench.measure(config, "decode", mesh, bucket, {"flops": 1.0, "bandwidth": 1.0})
    return {
        "seconds": found["median_s"],
        "spread": found["spread"],
        "flops": 1e12 * found["tflop_of_a_device"],
        "memory": found["program_memory"],
        "compile": found["compile"]["cold_s"],
    }
