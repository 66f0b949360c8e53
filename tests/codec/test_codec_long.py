"""Several pieces by one call, and long videos: the same result in memory that does not grow."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.helpers.tiny_tokenizers import clip, tokenizer
from vidlatent.codec.codec import Codec
from vidlatent.codec.coded import Coded
from vidlatent.codec.options import CodecOptions

pytestmark = pytest.mark.usefixtures("quick")


def alike(one, two):
    """Rounding to 8 bits may go either way where two float32 results straddle a half."""
    apart = np.abs(one.astype(int) - two.astype(int))
    assert one.shape == two.shape and apart.max() <= 1 and (apart > 0).mean() < 1e-2


@functools.cache
def codec(name, **keys):
    return Codec(*tokenizer(name), CodecOptions.of(**keys))


def check_scan(name, frames):
    """Two runs of two pieces, and what is left over one by one."""
    one, scan = codec(name, groups=1), codec(name, groups=1, scan_groups=2)
    video = clip(frames, 15, 9)
    coded, pieces = one.encode(video), list(scan.encode_stream(iter(video)))
    sizes = [len(piece.latent) for piece in pieces]
    assert sizes[1] == sizes[2] == 2 * sizes[-1]  # runs, and the rest
    other = Coded.join(pieces)
    np.testing.assert_array_equal(other.latent, coded.latent)
    assert other.frames == coded.frames == frames
    np.testing.assert_array_equal(scan.decode(coded), one.decode(coded))
    pairs = list(scan.reconstruct_stream(iter(video)))
    np.testing.assert_array_equal(np.concatenate([before for before, _ in pairs]), video)
    np.testing.assert_array_equal(np.concatenate([after for _, after in pairs]), one.decode(coded))
    if name == "ivvae":
        drawn = one.encode(video, sample=3).latent
        np.testing.assert_allclose(scan.encode(video, sample=3).latent, drawn, atol=1e-6)


def test_several_pieces_by_one_call():
    check_scan("ivvae", 1 + 4 * 6 + 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "frames"), [("fsae_lite", 27), ("fsae", 27), ("promag_grown", 27), ("reducio", 27)]
)
def test_several_pieces_of_every_tokenizer(name, frames):
    check_scan(name, frames)


@pytest.mark.slow
def test_parts_scan_too():
    model, params = tokenizer("fsae")
    keys = {"groups": 1, "space": "tiles", "tile_pixels": 16}
    one, scan = (
        Codec(model, params, CodecOptions.of(**keys, scan_groups=count)) for count in (1, 2)
    )
    video = clip(13, 45, 20)
    coded = one.encode(video)
    np.testing.assert_allclose(scan.encode(video).latent, coded.latent, atol=1e-6)
    alike(scan.decode(coded), one.decode(coded))


EXACT = ("dcae", "fsae", "fsae_standard", "fsae_lite", "ivvae", "promag", "promag_grown")
EXACT += ("promag_joined", "magvit2", "reducio", "reducio_plain")


def keys_of(name, groups):
    return {"window_latents": 4 * groups} if name == "fsae_standard" else {"groups": groups}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_a_thousand_frames(name):
    """In pieces of two lengths alike; the first 121 as they are whole; and nothing piles up.

    Pieces come while the video is drawn, and the memory of arrays between pieces stays as it is.
    """
    short, long = (codec(name, **keys_of(name, groups)) for groups in (5, 12))
    scene = clip(64, 7, 10)

    def frames(count):
        return (scene[i % 64] for i in range(count))

    coded = short.encode(frames(1000))
    assert coded.frames == 1000
    np.testing.assert_allclose(long.encode(frames(1000)).latent, coded.latent, atol=2e-5)
    sizes, held, parts = [], [], []
    for piece in short.decode_stream([coded]):
        sizes.append(len(piece))
        parts.append(np.array(piece))  # what is handed out may be a view of the device's memory
        held.append(sum(array.nbytes for array in jax.live_arrays()))
    video = np.concatenate(parts)
    alike(long.decode(coded), video)
    step = short.spec.rule.step
    assert max(sizes) <= (80 if short.time == "windows" else 5 * step + 1)
    assert max(held[2:-1]) == min(held[2:-1])

    whole = Codec(*tokenizer(name), CodecOptions.of(**keys_of(name, 130), space="whole"))
    start = np.stack(list(frames(121)))
    again = whole.encode(start)
    np.testing.assert_allclose(short.encode(start).latent, again.latent, atol=2e-5)
    # Frames this small are not cut by either, so that Reducio's rule of cutting does not matter.
    alike(short.decode(dataclasses.replace(again, cut=short.cut)), whole.decode(again))
