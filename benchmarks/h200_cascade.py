"""Rows of ``benchmarks.h200``: FSVideo's cascade from a picture to frames, end to end.

All networks stay on the device, with random parameters: FSAE-Lite, base model, upsampler, refiner.
The chain runs as ``sample.cascade`` runs it: both sizes of the picture are encoded, the base draws
with guidance, the upsampler doubles its sample, the refiner draws and the decoder streams frames.
States of the prompt and the picture's tokens are given; their encoders do not run. Every part waits
for its result, so the parts add up to the whole. The first run compiles and does not count.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.h200_networks import draw_params
from benchmarks.h200_rows import HALF, Row, normal
from vidlatent.bench.device import Times, read_peak_memory
from vidlatent.codec.codec import Codec
from vidlatent.codec.options import CodecOptions
from vidlatent.config import load
from vidlatent.diffusion.refiner_given import give_for_sampling
from vidlatent.latents.channels import follow_latents
from vidlatent.latents.pairs import halve_pixels
from vidlatent.latents.refiner_inputs import abstract_upsampler, read_given_options, upsampler_of
from vidlatent.latents.space import abstract_at_rest, generator_of
from vidlatent.models.load import abstract_params, model_of
from vidlatent.parallel.mesh import local_mesh
from vidlatent.parallel.sharding import replicated
from vidlatent.sample.sampler import LatentSampler

__all__ = ["cascades"]

_MOST_RUNS = 3  # a run takes many seconds
_IMAGE_TOKENS = 257  # of CLIP ViT-H/14
# Operations at full size, as --mode=plan --config.plan.what=cascade counts them.
_FLOPS = {
    "encode": 6.18e12,
    "base": 2923e12,
    "upsampler": 3.17e12,
    "refiner": 1828e12,
    "decode": 547e12,
}
_TOKENIZER = {"encoder_widths": (8, 16, 16), "decoder_widths": (8, 8, 16), "latent_channels": 8}
_NETWORK = {"width": 64, "depth": 2, "heads": 4, "hidden": 96, "text_dim": 32, "image_dim": 32}
_UPSAMPLER = {"width": 16, "groups": 4, "blocks": 1}


def cascades(scale: int) -> Iterator[Row]:
    """The whole, then its parts; all are measured in the same runs. Predictions are bounds."""
    cascade = _Cascade(scale > 1)
    whole = sum(_FLOPS.values())
    size = "121x768x1280" if scale == 1 else "13x16x16"
    title = f"cascade, picture to {size}"
    yield Row(title, bench=cascade.measure, flops=whole)
    for name, flops in _FLOPS.items():
        run = functools.partial(cascade.measure, part=name)
        yield Row(f"{title}: {name}", bench=run, flops=flops)


class _Cascade:
    """The chain at full or toy size; made and run when the first row is measured."""

    def __init__(self, small: bool):
        self._small = small
        self._seconds: dict[str, list[float]] = {}

    def measure(self, repeats: int, part: str = "") -> dict[str, Any]:
        """Seconds of the whole chain, or of a part of it, in the runs after the first."""
        if not self._seconds:
            self._run(max(2, min(repeats, _MOST_RUNS)))
        lists = [self._seconds[part]] if part else list(self._seconds.values())
        first, *rest = (sum(times) for times in zip(*lists, strict=True))
        times = Times(rest)
        return {
            "seconds": times.median,
            "spread": times.to_json()["spread"],
            "memory": read_peak_memory()[0],
            "compile": max(0.0, first - times.median),
        }

    def _run(self, repeats: int) -> None:
        parts = self._make()
        found: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(1 + repeats):
            held: dict[str, Any] = {}
            for name, run in parts.items():
                begin = time.perf_counter()
                held |= jax.block_until_ready(run(held))
                found[name].append(time.perf_counter() - begin)
        self._seconds = found

    def _make(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """Parts by name, in order: each is given the results so far and returns its own."""
        size = (13, 16, 16) if self._small else (121, 768, 1280)
        codec = self._make_codec()
        spec = codec.spec
        low, high = (
            spec.latent_shape((size[0], size[1] // part, size[2] // part)) for part in (2, 1)
        )
        base = self._make_sampler("fsvideo_dit:paper,stage=sft", low, spec, 1)
        refiner = self._make_sampler("fsvideo_refiner:paper,stage=target", high, spec, 2)
        give = self._make_given(spec.channels)
        picture = np.random.default_rng(0).integers(0, 256, (1, *size[1:], 3), dtype=np.uint8)

        def encode(held):
            half = np.asarray(halve_pixels(picture[None]))[0]
            return {
                "first_low": np.asarray(codec.encode(half).latent)[None],
                "first_high": np.asarray(codec.encode(picture).latent)[None],
            }

        def decode(held):
            pieces = codec.decode_stream([held["high"][0]], size[0], size[1:], picture)
            return {"frames": np.concatenate(list(pieces))}

        return {
            "encode": encode,
            "base": lambda held: {"low": base(first=held["first_low"])},
            "upsampler": lambda held: {"given": give(held)},
            "refiner": lambda held: {
                "high": refiner(first=held["first_high"], given=held["given"])
            },
            "decode": decode,
        }

    def _make_codec(self) -> Codec:
        config = load("fsae:demo,form=lite" if self._small else "fsae:lite")
        if self._small:
            with config.unlocked():
                config.model.update(_TOKENIZER)
        model = model_of(config, HALF)
        return Codec(model, _place(abstract_params(model), 0), CodecOptions.of(**config.codec))

    def _make_sampler(
        self, name: str, shape: tuple[int, ...], spec: Any, seed: int
    ) -> Callable[..., np.ndarray]:
        config = load(name)
        if self._small:
            with config.unlocked():
                config.generator.update({**_NETWORK, "latent_channels": spec.channels})
        config = follow_latents(config, spec)
        sampler = LatentSampler(generator_of(config, HALF), config, shape)
        model, params = sampler.model, _place(abstract_at_rest(sampler.model), seed)
        text = normal(1, model.text_length, model.text_dim, dtype=jnp.float32)
        known = {
            "text": {"states": np.asarray(text), "length": np.asarray([77], np.int32)},
            "image": np.asarray(normal(1, _IMAGE_TOKENS, model.image_dim, dtype=jnp.float32)),
        }

        def draw(**conditions):
            return sampler(params, (0,), {**known, **conditions})

        return draw

    def _make_given(self, channels: int) -> Callable[[dict[str, Any]], np.ndarray]:
        config = load("fsvideo_upsampler:paper")
        with config.unlocked():
            config.generator.latent_channels = channels
            if self._small:
                config.generator.update(_UPSAMPLER)
        network = upsampler_of(config, HALF)
        params = _place(abstract_upsampler(network), 3)
        refiner = load("fsvideo_refiner:paper,stage=target")
        options = read_given_options(refiner, generator_of(refiner, HALF))

        @jax.jit
        def give(params, first_high, first_low, low):
            def upsample(latent):
                return network.apply({"params": params}, latent)

            return give_for_sampling(first_high, first_low, low, upsample, options).join()

        return lambda held: np.asarray(
            give(params, held["first_high"], held["first_low"], held["low"])
        )


def _place(shapes: Any, seed: int) -> Any:
    """Random parameters on one device, with the mesh that samplers ask for."""
    return jax.device_put(draw_params(shapes, seed), replicated(local_mesh([1])))
