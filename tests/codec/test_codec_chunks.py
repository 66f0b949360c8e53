"""Chunks that fade into each other, tiles, and requests that cannot be met."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.chunks import join_chunks
from tests.helpers.tiny_tokenizers import QUICK, clip, tokenizer
from vidlatent.codec import reconstruct as jobs
from vidlatent.codec.codec import Codec
from vidlatent.codec.options import CodecOptions, plan_codec
from vidlatent.config import get_defaults
from vidlatent.errors import VidlatentError
from vidlatent.latents.pixels import from_pixels, to_pixels
from vidlatent.models.tokenizers.chunks import (
    compute_fade,
    cut_chunks,
    fade_in,
    plan_chunks,
    stream_chunks,
)
from vidlatent.models.tokenizers.reducio import tiling

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("overlap", [0, 4, 8])
def test_a_stream_is_cut_as_planned(overlap):
    for frames in (1, 2, 16, 17, 18, 30, 31, 56, 68, 69, 136):
        plan = plan_chunks(frames, overlap)
        pieces = list(stream_chunks(range(frames), overlap))
        assert [piece[0] for piece, _ in pieces] == list(plan.starts)
        assert sum(new for _, new in pieces) == frames
        for start, (piece, _) in zip(plan.starts, pieces, strict=True):
            assert piece == list(range(start, min(start + plan.chunk, frames)))


@pytest.mark.parametrize("overlap", [0, 2])
def test_fading_one_by_one_is_joining(overlap):
    plan = plan_chunks(14, overlap, chunk=5)
    chunks = jax.random.normal(jax.random.key(0), (1, len(plan.starts), 5, 2, 2, 3))
    parts, tail = [], None
    for i in range(len(plan.starts)):
        part, tail = fade_in(chunks[:, i], tail, overlap)
        parts.append(part)
    got = jnp.concatenate([*parts, tail], axis=1)[:, : plan.frames]
    np.testing.assert_allclose(got, join_chunks(chunks, plan), atol=1e-6)
    np.testing.assert_allclose(compute_fade(overlap) + compute_fade(overlap)[::-1], 1)


@functools.cache
def thw(**coding):
    return Codec(*tokenizer("promag_thw"), CodecOptions.of(chunk_frames=5, **coding))


@pytest.mark.parametrize("frames", [1, 4, 12])
def test_chunks_by_index_arithmetic(frames):
    """Norms over time: each chunk is coded by itself, and neighbours fade over two frames."""
    codec, video = thw(overlap_frames=2), clip(frames)
    assert codec.time == "chunks"  # what 'auto' comes to
    plan = plan_chunks(frames, 2, chunk=5)
    padded = np.pad(video, ((0, 0), (0, 1), (0, 0), (0, 0)), mode="edge")
    chunks = cut_chunks(from_pixels(padded[None]), plan)[0]
    apply = jax.jit(lambda p, x: codec.model.apply({"params": p}, x), compiler_options=QUICK)
    done = [apply(codec.params, chunk[None]) for chunk in chunks]
    coded = codec.encode(video)
    assert len(coded.latent) == plan.latents(2) and coded.frames == frames
    latents = jnp.concatenate([posterior.mean[0] for _, posterior in done])
    np.testing.assert_allclose(coded.latent, latents, atol=1e-5)
    joined = to_pixels(join_chunks(jnp.stack([y[0] for y, _ in done])[None], plan))[0, :, :7]
    decoded = codec.decode(coded)
    assert decoded.shape == video.shape
    np.testing.assert_allclose(decoded.astype(int), np.asarray(joined).astype(int), atol=1)
    pairs = list(codec.reconstruct_stream(video))
    np.testing.assert_array_equal(np.concatenate([b for _, b in pairs]), decoded)
    np.testing.assert_array_equal(np.concatenate([a for a, _ in pairs]), video)


@pytest.mark.parametrize(("overlap", "jump"), [(0, 40), (4, 8)])
def test_fading_lowers_the_seams(overlap, jump):
    """Chunks of one brightness each: a jump at each border becomes a ramp of equal small steps."""
    codec = Codec(*tokenizer("promag"), CodecOptions.of(time="chunks", overlap_frames=overlap))
    levels = iter([100, 140] * 3)
    flat = lambda *_: (jnp.full((1, 17, 2, 2, 3), next(levels) / 127.5 - 1), None)  # noqa: E731
    codec._programs.decode = flat
    video = codec.decode(np.zeros((9 * 4, 1, 1, 4), np.float32)).astype(int)
    # As many frames as a generator's latents come to (ProMAG, appendix D).
    assert len(video) == {0: 68, 4: 56}[overlap]
    moved = np.abs(np.diff(video[:, 0, 0, 0]))
    starts = plan_chunks(len(video), overlap).starts[1:]
    borders = {t for start in starts for t in range(start - 1, start + overlap)}
    assert {moved[t] for t in borders} == {jump}
    assert not any(moved[t] for t in range(len(moved)) if t not in borders)
    # What --mode=reconstruct reports of it: a fade over four frames has two kinks in six frames.
    meter = jobs._Borders(codec)
    meter.add(np.full_like(video, 120, np.uint8), video.astype(np.uint8))
    found = meter.scores()["chunk_borders"]
    assert "frames, 8-bit levels" in found["measure"]
    assert found["near"] == pytest.approx({0: 40, 4: 8 * 2 / 6}[overlap])
    assert found["far"] == found["near_original"] == found["far_original"] == 0


def test_a_codec_asks_for_the_same_chunks():
    coded = thw(overlap_frames=2).encode(clip(9))
    with pytest.raises(VidlatentError, match="chunks of 5 frames sharing 2, .* sharing 0"):
        thw(overlap_frames=0).decode(coded)
    with pytest.raises(VidlatentError, match="1 latent frames are left over"):
        thw(overlap_frames=2).decode(coded.latent[:-2])


def test_reducio_clips_may_fade_too():
    model, params = tokenizer("reducio")
    codec = Codec(model, params, CodecOptions.of(time="chunks", chunk_frames=4, overlap_frames=2))
    video = clip(9)
    coded = codec.encode(video)
    np.testing.assert_array_equal(coded.content, video[[1, 3, 5, 7]])
    decoded = codec.decode(coded)
    assert decoded.shape == video.shape
    plain = Codec(model, params, CodecOptions.of(groups=1))
    first = plain.decode(plain.encode(video[:4]))
    np.testing.assert_array_equal(decoded[:2], first[:2])


@pytest.mark.parametrize("name", ["promag", "magvit2"])
def test_layer_tiles_equal_the_whole(name):
    model, params = tokenizer(name)
    latent = jax.random.normal(jax.random.key(1), (1, 2, 6, 5, 4))
    decode = {}
    for space, positions in (("whole", 0), ("layers", 4), ("layers_literal", 6)):
        codec = Codec(model, params, CodecOptions.of(space=space, layer_positions=positions))
        decode[space], _ = codec._programs.decode(params, latent, None, None)
    np.testing.assert_allclose(decode["layers"], decode["whole"], atol=1e-5)
    # Behind a dead zone of half a kernel the paper's wording is exact too; a plain ramp is not.
    np.testing.assert_allclose(decode["layers_literal"], decode["whole"], atol=1e-5)
    keys = {"layer_positions": 6, "layer_overlap_positions": 2, "layer_dead_positions": 0}
    plain = Codec(model, params, CodecOptions.of(space="layers_literal", **keys))
    other, _ = plain._programs.decode(params, latent, None, None)
    assert np.abs(other - decode["whole"]).max() > 0.01


@pytest.mark.parametrize("way", ["tiles", "tiles_published"])
def test_reducio_tiles(way, monkeypatch):
    def compiled(model, method):
        call = lambda p, *a, **k: model.apply({"params": p}, *a, **k, method=method)  # noqa: E731
        return jax.jit(call, compiler_options=QUICK)

    monkeypatch.setattr(tiling, "_compiled", functools.cache(compiled))
    model, params = tokenizer("reducio")
    codec = Codec(model, params, CodecOptions.of(space=way, tile_pixels=8, tile_overlap_pixels=4))
    video = clip(4, 15, 7)
    coded = codec.encode(video)
    cut = tiling.FrameTiles(8, 0.5)
    pixels = from_pixels(np.pad(video, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")[None])
    manner = "evenly" if way == "tiles" else "published"
    encode, condition, decode = (
        getattr(tiling, f"{part}_{manner}") for part in ("encode", "condition", "decode")
    )
    posterior = encode(model, params, pixels, cut)
    np.testing.assert_allclose(coded.latent, posterior.mode()[0], atol=1e-5)
    restored = decode(
        model, params, posterior.mode(), condition(model, params, pixels[:, 1], cut), cut
    )
    expected = np.asarray(to_pixels(restored)[0, :, :15, :7]).astype(int)
    np.testing.assert_allclose(codec.decode(coded).astype(int), expected, atol=1)
    # A frame no larger than a tile is not cut.
    small = video[:, :7]
    plain = Codec(model, params)
    np.testing.assert_array_equal(
        codec.decode(codec.encode(small)), plain.decode(plain.encode(small))
    )


def test_runs_of_tiled_pieces_are_pieces_one_by_one():
    """Where a piece takes a program for each tile, a run of pieces is a loop of calls."""
    model, params = tokenizer("reducio")
    keys = {"groups": 1, "space": "tiles", "tile_pixels": 8, "tile_overlap_pixels": 4}
    one, run = (
        Codec(model, params, CodecOptions.of(**keys, scan_groups=count)) for count in (1, 2)
    )
    video = clip(12, 15, 7)
    coded = one.encode(video)
    np.testing.assert_array_equal(run.encode(video).latent, coded.latent)
    np.testing.assert_array_equal(run.decode(coded), one.decode(coded))


@pytest.mark.parametrize(
    ("name", "keys", "says"),
    [
        ("promag", {"time": "chunk"}, "did you mean 'chunks'"),
        ("promag", {"space": "tile"}, "config.codec.space 'tile' is unknown"),
        ("promag", {"groups": 0}, "config.codec.groups=0"),
        ("promag", {"overlap_frames": 4}, "overlap_frames=4 does nothing while time is 'stream'"),
        ("promag", {"time": "chunks", "chunk_frames": 4}, "use 3 or 5"),
        ("promag", {"time": "chunks", "overlap_frames": 9}, "use 0 to 8"),
        ("promag_thw", {"time": "stream"}, "use 'chunks'"),
        ("magvit2_pooled", {"time": "stream"}, "use 'chunks'"),
        ("fsae_standard", {"time": "stream"}, "use 'windows'"),
        ("ivvae", {"time": "windows"}, "use 'stream'"),
        ("ivvae", {"space": "layers"}, "is for ProMAG's and MAGVIT-v2's decoders, not for ivvae"),
        (
            "promag",
            {"space": "tiles"},
            "not for promag-2x: use 'auto', 'layers', which keeps the norms",
        ),
        ("promag", {"layer_positions": 4}, "does nothing while space is 'auto'"),
        ("promag", {"space": "strips"}, "is for IV-VAE, not for promag"),
        ("promag", {"space": "whole", "memory_gb": 1.0}, "does nothing while space is 'whole'"),
        ("promag", {"scan_groups": -1}, "scan_groups=-1: use 0 or more"),
        ("promag", {"time": "chunks", "scan_groups": 2}, "does nothing while time is 'chunks'"),
        ("fsae", {"space": "tiles", "tile_pixels": 30}, "cells of 4 pixels; use a multiple"),
        ("fsae", {"space": "tiles", "tile_overlap_pixels": 4}, "read 12 pixels beyond each side"),
        ("promag", {"space": "layers", "layer_dead_positions": 1}, "exact without it"),
        ("promag", {"space": "layers", "layer_positions": 2, "layer_overlap_positions": 2}, "0 to"),
        ("reducio", {"space": "tiles", "tile_pixels": 6}, "do not fall on the latent's grid"),
        ("reducio", {"space": "tiles", "tile_pixels": 8, "tile_overlap_pixels": 9}, "0 to"),
        ("reducio", {"tile_pixels": 8}, "does nothing while space is 'auto'"),
    ],
)
def test_what_cannot_be_met_is_refused(name, keys, says):
    with pytest.raises(VidlatentError, match=says):
        plan_codec(CodecOptions.of(**keys), tokenizer(name)[0])


def test_unknown_key_and_defaults():
    with pytest.raises(VidlatentError, match="did you mean 'overlap_frames'"):
        CodecOptions.of(overlap_frame=4)
    assert CodecOptions.of(**get_defaults("any", "demo").codec) == CodecOptions.of()


def test_defaults_are_the_papers():
    chunked = CodecOptions.of(time="chunks")
    assert plan_codec(chunked, tokenizer("promag")[0]).chunks == (17, 4)
    assert plan_codec(chunked, tokenizer("reducio", frames=16)[0]).chunks == (16, 4)
    tiled = plan_codec(CodecOptions.of(space="tiles"), tokenizer("reducio")[0])
    tiles = tiled.programs.coder.tiles
    assert (tiles.core, tiles.read) == (256, 320)
