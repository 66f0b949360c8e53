"""Every tokenizer through the codec: pieces equal the whole, in any length and size."""

import functools

import jax
import numpy as np
import pytest

from tests.helpers.tiny_tokenizers import MODELS, QUICK, clip, tokenizer
from vidlatent.codec.codec import Codec
from vidlatent.codec.coded import Coded, Sizes
from vidlatent.codec.options import CodecOptions
from vidlatent.errors import VidlatentError
from vidlatent.latents.pixels import from_pixels, to_pixels

pytestmark = pytest.mark.usefixtures("quick")

# Two lengths that are no clip of any of them, and none of a frame that stands alone.
EXACT = [name for name in MODELS if not name.endswith(("_thw", "_pooled"))]
SOON = ("ivvae", "promag_grown", "reducio")


@functools.cache
def program(model):
    return jax.jit(lambda p, x: model.apply({"params": p}, x), compiler_options=QUICK)


def whole(name, video):
    """Latent and restored frames of the padded video in one piece."""
    model, params = tokenizer(name)
    spec = model.latent_spec
    frames, height, width = video.shape[:3]
    pads = (spec.rule.ceil(frames) - frames, -height % spec.h, -width % spec.w)
    padded = np.pad(video, (*((0, pad) for pad in pads), (0, 0)), mode="edge")
    restored, posterior = program(model)(params, from_pixels(padded[None]))
    restored = to_pixels(restored[0, :frames, :height, :width])
    return np.asarray(posterior.mode()[0]), np.asarray(restored)


def check(name, frames):
    codec = Codec(*tokenizer(name), CodecOptions.of(groups=1, window_latents=3))
    video = clip(frames)
    latent, restored = whole(name, video)
    coded = codec.encode(video)
    assert coded.frames == frames and coded.size == (7, 10)
    np.testing.assert_allclose(coded.latent, latent, atol=1e-5)
    decoded = codec.decode(coded)
    assert decoded.dtype == np.uint8 and decoded.shape == video.shape
    # Rounding to 8 bits may go either way where two float32 results straddle a half.
    difference = np.abs(decoded.astype(int) - restored.astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-2
    pairs = list(codec.reconstruct_stream(iter(video)))
    np.testing.assert_array_equal(np.concatenate([original for original, _ in pairs]), video)
    np.testing.assert_array_equal(np.concatenate([again for _, again in pairs]), decoded)


@pytest.mark.parametrize("name", SOON)
def test_pieces_equal_the_whole(name):
    check(name, 10)


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 2, 17, 18])
@pytest.mark.parametrize("name", EXACT)
def test_every_tokenizer_at_every_length(name, frames):
    check(name, frames)


class TestReducio:
    @pytest.fixture
    def codec(self):
        return Codec(*tokenizer("reducio"), CodecOptions.of(groups=1))

    def test_content_frames_travel_beside_the_latent(self, codec, tmp_path):
        video = clip(6)
        coded = codec.encode(video)
        assert coded.latent.shape == (4, 2, 3, 3)
        # The second of four frames; the last clip is filled up with the last frame.
        np.testing.assert_array_equal(coded.content, video[[1, 5]])
        coded.save(tmp_path / "coded.npz")
        again = Coded.load(tmp_path / "coded.npz")
        assert (again.spec, again.frames, again.size) == (codec.spec, 6, (7, 10))
        np.testing.assert_array_equal(codec.decode(again), codec.decode(coded))
        bare = codec.decode(coded.latent, 6, (7, 10), content=coded.content)
        np.testing.assert_array_equal(bare, codec.decode(coded))
        with pytest.raises(VidlatentError, match="needs 1 content frame"):
            codec.decode(coded.latent)
        with pytest.raises(VidlatentError, match="3 latent frames are no clips of 2|1 latent"):
            codec.decode(coded.latent[:3], content=coded.content)

    def test_sizes_count_what_is_kept(self, codec):
        sizes = Sizes()
        for piece in codec.encode_stream(clip(6)):
            sizes.add(piece)
        rgb, latent, content = 6 * 7 * 10 * 3, 4 * 2 * 3 * 3, 2 * 7 * 10 * 3
        assert sizes.report() == {
            "latent_shape": (4, 2, 3, 3),
            "latent_values": latent,
            "content_frames": 2,
            "content_values": content,
            "frames_per_latent_frame": 1.5,
            "values_per_latent_value": rgb / latent,
            "values_per_kept_value": rgb / (latent + content),
        }


def test_a_draw_does_not_depend_on_the_pieces():
    model, params = tokenizer("ivvae")
    video = clip(10)
    small, large = (Codec(model, params, CodecOptions.of(groups=groups)) for groups in (1, 3))
    drawn = small.encode(video, sample=5).latent
    np.testing.assert_allclose(drawn, large.encode(video, sample=5).latent, atol=1e-5)
    assert np.abs(drawn - small.encode(video).latent).max() > 0.1
    assert np.abs(drawn - small.encode(video, sample=6).latent).max() > 0.1


def test_refusals():
    codec = Codec(*tokenizer("dcae"))
    with pytest.raises(VidlatentError, match="no variance to sample from"):
        codec.encode(clip(1), sample=0)
    with pytest.raises(VidlatentError, match=r"frame 0 is float32 \[7, 10, 3\]"):
        codec.encode(clip(1).astype(np.float32))
    with pytest.raises(VidlatentError, match="frame 1 is uint8 .*as before"):
        codec.encode([*clip(1), *clip(1, 8)])
    foreign = Codec(*tokenizer("ivvae")).encode(clip(1))
    with pytest.raises(VidlatentError, match="made by ivvae, 4 channels, not by this dcae"):
        codec.decode(foreign)
