"""Tiled convolutions against the whole map; chunks of long videos."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.chunks import join_chunks
from tests.helpers.nets import fast_jit
from tests.helpers.promag_nets import CONFIG, Net
from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers import build
from vidlatent.models.tokenizers.chunks import (
    compute_fade,
    cut_chunks,
    map_chunks,
    plan_chunks,
)
from vidlatent.models.tokenizers.promag.blocks import CausalConv
from vidlatent.models.tokenizers.promag.tiling import (
    LayerTiles,
    cut_line,
    make_blend_weights,
    map_tiles,
)

SMALL = {"multipliers": (1, 2), "temporal_down": (0,)}
PLAN = build({**CONFIG, **SMALL}).layer_config


@functools.cache
def conv_case(cache):
    """A convolution of a normalised map of unit noise, 13x18, and its untiled result."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    x, kernel = draw(1, 3, 13, 18, 4), draw(3, 3, 3, 4, 5) / 10
    affine = (jnp.full((1, 3, 1, 1, 4), 0.7), jnp.full((1, 3, 1, 1, 4), 0.4))
    given = (
        {"params": {"kernel": kernel, "bias": draw(5)}},
        x,
        x[:, 1:] if cache else None,
        affine,
    )
    return given, fast_jit(CausalConv(PLAN, 5).apply)(*given)


def conv_error(tiles, cache=False):
    """Largest difference between a tiled and a whole convolution."""
    given, (whole, kept) = conv_case(cache)
    conv = CausalConv(dataclasses.replace(PLAN, tiles=tiles), 5, tiled=True)
    got, kept_too = fast_jit(conv.apply)(*given)
    np.testing.assert_allclose(kept, kept_too, atol=1e-6)
    return float(np.abs(whole - got).max())


@pytest.mark.parametrize(("size", "overlap"), [(8, 0), (6, 4), (16, 3)])
def test_halo_tiles_equal_the_whole(size, overlap):
    assert conv_error(LayerTiles(size, overlap)) < 1e-5


def test_halo_tiles_stream():
    assert conv_error(LayerTiles(8), cache=True) < 1e-5


def test_literal_tiles_are_exact_only_behind_a_dead_zone():
    assert conv_error(LayerTiles(8, 2, "literal", 1)) < 1e-5
    assert conv_error(LayerTiles(8, 4, "literal", 1)) < 1e-5
    assert conv_error(LayerTiles(8, 1, "literal", 1)) > 1e-2
    plain = [conv_error(LayerTiles(8, overlap, "literal")) for overlap in (1, 4)]
    assert plain[0] > plain[1] > 1e-2


@pytest.mark.parametrize("fields", [{"grow": 1}, {"name": "magvit2", "blocks": 1}])
def test_whole_decoder(fields):
    """Layer by layer the tiled decoder is the plain one; tiles of the latent are not."""
    some = Net(**SMALL, **fields)
    latent = jax.random.normal(jax.random.key(2), (1, 2, 9, 7, 4))
    whole = some.decode(latent)
    tiled = Net(some.params, **SMALL, **fields, tile_size=5).decode(latent)
    np.testing.assert_allclose(tiled, whole, atol=2e-5)
    if "grow" in fields:

        def by_tiles(model, latent):
            tiles = LayerTiles(5, 2)
            decode = lambda cuts, inside, pad: model.decode(cuts[0])[0]  # noqa: E731
            return map_tiles(decode, (latent,), tiles, 0, model.latent_spec.h)

        pieces = some.apply(by_tiles, latent)
        assert pieces.shape == whole.shape and np.abs(pieces - whole).max() > 1e-2


@functools.cache
def double_conv():
    """As ``conv_case`` in double precision: map, untiled result, and the tiled layer's error."""
    rng = np.random.default_rng(1)
    plan = dataclasses.replace(PLAN, dtype=jnp.float64)
    x, kernel = rng.normal(size=(1, 2, 13, 18, 4)), rng.normal(size=(3, 3, 3, 4, 5)) / 10
    given = ({"params": {"kernel": kernel, "bias": rng.normal(size=5)}}, x)
    whole = CausalConv(plan, 5, use_bias=True).apply(*given)[0]

    def error(tiles):
        conv = CausalConv(dataclasses.replace(plan, tiles=tiles), 5, tiled=True)
        return float(np.abs(fast_jit(conv.apply)(*given)[0] - whole).max())

    return whole, error


@pytest.mark.parametrize(("size", "overlap"), [(4, 0), (5, 1), (9, 8), (16, 5)])
def test_halo_tiles_in_double_precision(size, overlap):
    """Equal to rounding, so nothing but rounding is left of the tiles."""
    with jax.enable_x64(True):
        whole, error = double_conv()
        assert whole.dtype == jnp.float64
        assert error(LayerTiles(size, overlap)) < 1e-12
        if overlap >= 2:
            assert error(LayerTiles(size, overlap, "literal", 1)) < 1e-12


@pytest.mark.slow
def test_whole_decoder_in_double_precision():
    """Halo tiles to 1e-12; literal ones with a plain ramp never, but better with overlap."""
    with jax.enable_x64(True):
        some = Net(**SMALL, grow=1)
        latent = np.random.default_rng(2).normal(size=(1, 2, 9, 7, 4))

        def decode(**tiles):
            model = build({**CONFIG, **SMALL, "grow": 1, **tiles}).clone(dtype=jnp.float64)
            return fast_jit(lambda p, z: model.apply({"params": p}, z, method="decode")[0])(
                some.params, latent
            )

        whole = decode()
        assert whole.dtype == jnp.float64

        def error(size, overlap, mode):
            got = decode(tile_size=size, tile_overlap=overlap, tile_mode=mode)
            return np.abs(got - whole).max()

        assert max(error(5, 0, "halo"), error(6, 3, "halo"), error(4, 2, "halo")) < 1e-12
        literal = [error(6, overlap, "literal") for overlap in (2, 4)]
        assert literal[0] > literal[1] > 1e-2


def test_weights_sum_to_one_and_ramp():
    for length, tile, overlap in ((37, 16, 4), (29, 16, 4), (21, 8, 0), (30, 9, 8)):
        for dead_zone in (0, 1):
            weights = make_blend_weights(length, tile, overlap, dead_zone)
            total = np.zeros(length)
            for (start, end), weight in zip(cut_line(length, tile, overlap), weights, strict=True):
                total[start:end] += weight
            np.testing.assert_allclose(total, 1)
    ramp = make_blend_weights(28, 16, 4)[1][:5]
    np.testing.assert_allclose(ramp, [0.125, 0.375, 0.625, 0.875, 1])
    np.testing.assert_allclose(make_blend_weights(28, 16, 4, 1)[1][:4], [0, 0.25, 0.75, 1])


def test_refusals():
    for given in ({"mode": "round"}, {"overlap": 8}, {"dead_zone": -1}):
        with pytest.raises(VidlatentError):
            LayerTiles(8, **given)
    for frames, overlap in ((0, 4), (17, 9)):
        with pytest.raises(VidlatentError):
            plan_chunks(frames, overlap)


@pytest.mark.parametrize(
    ("frames", "overlap"), [*((n, 4) for n in (1, 17, 18, 30, 56, 68, 69, 136)), (18, 0), (68, 0)]
)
def test_chunks_of_an_identity_codec(frames, overlap):
    video = np.random.default_rng(frames).normal(size=(2, frames, 1, 2, 3)).astype(np.float32)
    plan = plan_chunks(frames, overlap)
    joined = fast_jit(lambda x: join_chunks(cut_chunks(x, plan), plan))(video)
    np.testing.assert_allclose(joined, video, atol=1e-6)


def test_neighbours_fade():
    plan = plan_chunks(30, 4)
    chunks = jnp.stack([jnp.zeros((17, 1, 1, 3)), jnp.ones((17, 1, 1, 3))])[None]
    joined = join_chunks(chunks, plan)[0, :, 0, 0, 0]
    np.testing.assert_allclose(joined[12:18], [0, *compute_fade(4), 1], atol=1e-6)


def test_chunked_model():
    """Chunks of the model's own coding: as many latents as planned, frame by frame in place."""
    some = Net(**SMALL, grow=1)
    plan = plan_chunks(8, 2, chunk=5)
    video = jax.random.uniform(jax.random.key(3), (1, 8, 8, 8, 3))
    chunks = cut_chunks(video, plan)

    def code(model, chunks):
        latents = map_chunks(lambda x: model.encode(x)[0].mean, chunks)
        return latents, map_chunks(lambda z: model.decode(z)[0], latents)

    latents, decoded = some.apply(code, chunks)
    assert latents.shape[1] * latents.shape[2] == plan.latents(some.k)
    restored = join_chunks(decoded, plan)
    assert restored.shape == video.shape
    np.testing.assert_allclose(restored[:, :3], decoded[:, 0, :3], atol=1e-5)
