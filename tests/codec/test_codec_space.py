"""Frames cut up: FSAE's exact tiles, strips, and the choice by memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_tokenizers import clip, tokenizer
from vidlatent.codec import auto as space
from vidlatent.codec import memory
from vidlatent.codec.codec import Codec
from vidlatent.codec.options import CodecOptions, plan_codec
from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.fsvideo import tiling
from vidlatent.models.tokenizers.fsvideo.tiling import ExactTiles, make_grid

pytestmark = pytest.mark.usefixtures("quick")

# Margins of 12 and 8 pixels around tiles of 8, on frames that no tile divides.
SIZE = (53, 38)


@pytest.fixture
def said(monkeypatch):
    """What is logged."""
    lines = []
    monkeypatch.setattr(space.logging, "info", lambda text, *args: lines.append(text % args))
    return lines


def test_tiles_cover_the_whole():
    grid = make_grid((10, 5), 4, 2)
    assert grid.size == (8, 5) and grid.core == (4, 4) and grid.count == 6
    np.testing.assert_array_equal(grid.wanted[::2, 0], [0, 4, 6])
    np.testing.assert_array_equal(grid.read[::2, 0], [0, 2, 2])
    np.testing.assert_array_equal(grid.wanted[:2, 1], [0, 1])
    # Wanted cells are a margin away from every cut side.
    assert ((grid.wanted - grid.read >= 2) | (grid.read == 0)).all()


@pytest.mark.parametrize("name", [pytest.param("fsae", marks=pytest.mark.slow), "fsae_lite"])
def test_tiles_of_a_stream_equal_the_whole(name):
    """Four pieces, whose caches pass from piece to piece for every tile by itself."""
    model, params = tokenizer(name, noise_weight=0.05, noise_stages=(0, 1))
    whole = Codec(model, params, CodecOptions.of(groups=1, space="whole"))
    tiled = Codec(model, params, CodecOptions.of(groups=1, space="tiles", tile_pixels=16))
    video = clip(10, *SIZE)
    expected, got = whole.encode(video), tiled.encode(video)
    np.testing.assert_allclose(got.latent, expected.latent, atol=1e-5)
    cache, other, condition = None, None, None
    if whole._programs.condition_kind == "first":
        frame = whole._pad(video[:1])
        condition = whole._programs.encode_condition(params, frame)
        again = tiled._programs.encode_condition(params, frame)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), again, condition)
    for begin, end in ((0, 1), (1, 2), (2, 4)):
        latent = jnp.asarray(expected.latent[None, begin:end])
        one, cache = whole._programs.decode(params, latent, condition, cache)
        two, other = tiled._programs.decode(params, latent, condition, other)
        np.testing.assert_allclose(two, one, atol=1e-5)
    rows, columns = tiled.tile_borders(*SIZE)
    assert rows == (16, 32, 40) and columns == (16, 24)


@pytest.mark.slow
def test_tiles_of_windows_equal_the_whole():
    model, params = tokenizer("fsae_standard")
    whole, tiled = (
        Codec(model, params, CodecOptions.of(window_latents=3, **keys))
        for keys in ({"space": "whole"}, {"space": "tiles", "tile_pixels": 16})
    )
    coded = whole.encode(clip(10, *SIZE))
    apart = whole.decode(coded).astype(int) - tiled.decode(coded)
    assert np.abs(apart).max() <= 1 and (apart != 0).mean() < 1e-3


def test_strips_equal_the_whole():
    model, params = tokenizer("ivvae")
    codecs = [
        Codec(model, params, CodecOptions.of(groups=1, **keys))
        for keys in ({"space": "whole"}, {"space": "strips", "strip_mb": 0.02})
    ]
    latent = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 24, 4, 4)), jnp.float32)
    one, two = (codec._programs.decode(params, latent, None, None)[0] for codec in codecs)
    np.testing.assert_allclose(two, one, atol=1e-5)
    assert codecs[1].model.strips_anywhere


class TestAuto:
    def choose(self, name, gigabytes, kind="decode", shape=(9, 256, 256), **keys):
        model, params = tokenizer(name)
        programs = plan_codec(CodecOptions.of(memory_gb=gigabytes, **keys), model).programs
        return programs._choose(kind, params, shape)

    def test_what_fits_is_whole(self, said):
        assert type(self.choose("fsae", 10.0).coder) is not ExactTiles
        assert "whole frames for decoding of 9 frames of 256x256, which certainly fit" in said[0]

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("fsae", "pixels (the same result)"),
            pytest.param("ivvae", "strips of rows", marks=pytest.mark.slow),
        ],
    )
    def test_what_does_not_is_cut(self, name, words, said):
        """With memory for a little less than whole frames take by the estimate."""
        model, params = tokenizer(name)
        shape = (9, 512, 512)
        whole = space.estimate_bytes(model.make_frame_coder(), "decode", params, shape)
        room = whole / space._SHARE / 2**30
        programs = self.choose(name, 0.8 * room, shape=shape)
        assert programs.model != model or type(programs.coder) is not type(model.make_frame_coder())
        assert words in said[0] and "whole frames would need" in said[0]
        assert "that config.codec.memory_gb allows" in said[0]
        with pytest.raises(VidlatentError, match="lower config.codec.groups"):
            self.choose(name, room / 1e3, shape=shape)

    def test_nothing_known_is_whole(self, said, monkeypatch):
        monkeypatch.setattr(space, "find_free_memory", lambda gigabytes: (None, ""))
        assert type(self.choose("fsae", 0.0).coder) is not ExactTiles
        assert "nothing says how much memory" in said[0]

    @pytest.mark.slow
    def test_a_stream_keeps_to_its_choice(self, monkeypatch, said):
        """What is chosen tile by tile codes like whole frames, piece after piece."""
        monkeypatch.setattr(tiling, "_SIDES", (32,))
        model, params = tokenizer("fsae")
        video = clip(10, 140, 132)
        room = 0.9 * space.estimate_bytes(model.make_frame_coder(), "decode", params, (5, 140, 132))
        free = Codec(model, params, CodecOptions.of(groups=1, space="whole"))
        tight = Codec(
            model, params, CodecOptions.of(groups=1, memory_gb=room / space._SHARE / 2**30)
        )
        coded = free.encode(video)
        np.testing.assert_allclose(tight.encode(video).latent, coded.latent, atol=1e-5)
        apart = free.decode(coded).astype(int) - tight.decode(coded)
        assert np.abs(apart).max() <= 1 and (apart != 0).mean() < 1e-3
        assert [line.split()[1] for line in said] == ["whole", "tiles"]  # to encode, to decode
        assert tight.tile_borders(140, 132)[0] == (32, 64, 96, 108)


def test_memory_is_read_from_this_host():
    size, whose = memory.find_free_memory()
    assert 2**26 < size < 2**45 and whose == "available on this host"
    assert memory.find_free_memory(2.5) == (2.5 * 2**30, "that config.codec.memory_gb allows")


def test_a_program_needs_what_lives_together():
    """Two arrays are alive at a time in a chain of products, and broadcasts take nothing."""

    def chain(x):
        for _ in range(4):
            x = jnp.tanh(x @ x) + jnp.ones(64)
        return x

    size = 64 * 64 * 4
    found = memory.estimate_peak_bytes(jax.make_jaxpr(chain)(jnp.zeros((64, 64))))
    assert size <= found <= 3 * size
    loop = jax.make_jaxpr(lambda x: jax.lax.fori_loop(0, 3, lambda i, y: chain(y), x))
    assert size <= memory.estimate_peak_bytes(loop(jnp.zeros((64, 64)))) <= 5 * size


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encode", "decode"])
@pytest.mark.parametrize("name", ["fsae", "fsae_lite", "ivvae", "promag", "reducio"])
def test_estimates_are_of_the_size_that_the_compiler_finds(name, kind):
    """Not below 0.85 of what is allocated, and within three times of it."""
    widths = {"ivvae": {"width": 16}, "promag": {"width": 16}, "reducio": {"width": 16}}
    fsae = {"encoder_widths": (16, 32, 32), "decoder_widths": (16, 32, 32)}
    model, params = tokenizer(name, **widths.get(name, fsae))
    shape = (4 if name == "reducio" else 5, 64, 96)
    coder = model.make_frame_coder()
    estimate = space.estimate_bytes(coder, kind, jax.tree.map(jnp.asarray, params), shape)
    spec = model.latent_spec
    x = jax.ShapeDtypeStruct((1, *shape, 3), jnp.float32)
    if kind == "encode":
        lowered = jax.jit(coder.encode).lower(params, x)
    else:
        latent = jax.ShapeDtypeStruct((1, *spec.latent_shape(shape)), jnp.float32)
        condition = space._condition(coder, params, x)
        lowered = jax.jit(coder.decode).lower(params, latent, condition)
    memory_used = lowered.compile().memory_analysis()
    allocated = memory_used.temp_size_in_bytes + memory_used.output_size_in_bytes
    print(name, kind, estimate / allocated)
    assert 0.85 < estimate / allocated < 3
