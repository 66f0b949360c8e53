"""Pieces give what the whole clip gives, for any length and size."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.codec.codec import Codec
from vidlatent.codec.options import CodecOptions
from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.latents.pixels import from_pixels, to_pixels
from vidlatent.models.load import model_of, smallest_video

pytestmark = pytest.mark.usefixtures("quick")
TINY = Path(__file__).parent.parent / "tiny.py"


@pytest.fixture(scope="module")
def tokenizer():
    model = model_of(load(str(TINY)))
    video = jnp.zeros(smallest_video(model.latent_spec))
    return model, jax.jit(model.init)(jax.random.key(0), video)["params"]


def clip(frames, height=13, width=18):
    return np.random.default_rng(frames).integers(0, 256, (frames, height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def codec_of(tokenizer):
    """One codec for each number of groups: what it has compiled serves every length."""
    made = {}

    def codec(groups):
        if groups not in made:
            made[groups] = Codec(*tokenizer, CodecOptions.of(groups=groups))
        return made[groups]

    return codec


def whole(tokenizer, video):
    """Latent and restored frames of the padded clip in one piece."""
    model, params = tokenizer
    spec = model.latent_spec
    frames, height, width = video.shape[:3]
    pads = (spec.rule.ceil(frames) - frames, -height % spec.h, -width % spec.w)
    padded = np.pad(video, (*((0, pad) for pad in pads), (0, 0)), mode="edge")
    restored, posterior = jax.jit(model.apply)({"params": params}, from_pixels(padded[None]))
    return np.asarray(posterior.mean[0]), np.asarray(restored[0, :frames, :height, :width])


@pytest.mark.parametrize("frames", [1, 2, 9, 18])
@pytest.mark.parametrize("groups", [1, 2])
def test_pieces_equal_whole(tokenizer, codec_of, frames, groups):
    codec, video = codec_of(groups), clip(frames)
    latent, restored = whole(tokenizer, video)
    coded = codec.encode(video)
    np.testing.assert_allclose(coded.latent, latent, atol=1e-5)
    decoded = codec.decode(coded)
    assert decoded.dtype == np.uint8 and decoded.shape == video.shape
    # Rounding to 8 bits may go either way where two float32 results straddle a half.
    difference = np.abs(decoded.astype(int) - np.asarray(to_pixels(restored)).astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    pairs = list(codec.reconstruct_stream(iter(video)))
    np.testing.assert_array_equal(np.concatenate([original for original, _ in pairs]), video)
    both = np.concatenate([restored for _, restored in pairs])
    assert np.abs(both.astype(int) - decoded.astype(int)).max() <= 1


def test_latents_may_come_in_any_pieces(codec_of):
    codec, video = codec_of(2), clip(17)
    latent = codec.encode(video).latent
    one_by_one = np.concatenate(list(codec.decode_stream(latent[i : i + 1] for i in range(5))))
    np.testing.assert_array_equal(one_by_one, codec.decode(latent))


def test_frames_are_drawn_only_as_needed(codec_of):
    codec, drawn = codec_of(1), []

    def frames():
        for frame in clip(400):
            drawn.append(1)
            yield frame

    stream = codec.reconstruct_stream(frames())
    next(stream)
    next(stream)
    assert len(drawn) <= 3 * codec.spec.rule.step + 1


def test_nothing_to_encode(codec_of):
    codec = codec_of(1)
    with pytest.raises(VidlatentError, match="no frame"):
        list(codec.encode_stream([]))
    with pytest.raises(VidlatentError, match="axis C"):
        codec.encode(np.zeros((5, 8, 8, 4), np.uint8))
    with pytest.raises(VidlatentError, match="axis c"):
        codec.decode(np.zeros((1, 2, 2, 3), np.float32))
