"""The protocol of tokenizers: all that are registered keep it, and three members are enough."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_tokenizers import MODELS, clip
from vidlatent.codec.codec import Codec
from vidlatent.codec.options import CodecOptions, plan_codec
from vidlatent.errors import VidlatentError
from vidlatent.latents.pixels import from_pixels, to_pixels
from vidlatent.models.load import spec_in_chunks
from vidlatent.models.tokenizers import build
from vidlatent.models.tokenizers.base import Posterior, Tokenizer, TokenizerModule
from vidlatent.spec import FrameRule, LatentSpec

MEMBERS = {name for name in vars(Tokenizer) if not name.startswith("_")}


class Minimal(TokenizerModule):
    """Averages blocks of 2x2 pixels, frame by frame, and paints them again."""

    dtype: object = jnp.float32

    @property
    def latent_spec(self):
        return LatentSpec("minimal", 3, 1, 2, 2, FrameRule(1, 1))

    def setup(self):
        self.gain = nn.Dense(3)

    def encode(self, video, *, cache=None):
        return Posterior(nn.avg_pool(self.gain(video), (1, 2, 2), strides=(1, 2, 2))), None

    def decode(self, latent, *, condition=None, cache=None):
        return latent.repeat(2, axis=2).repeat(2, axis=3), None


@pytest.mark.parametrize("name", MODELS)
def test_every_tokenizer_keeps_the_protocol(name):
    model = build(MODELS[name])
    assert not MEMBERS - set(dir(type(model)))
    times = model.list_time_ways()
    assert times[-1].name == "chunks" and not times[-1].exact
    assert model.streams == (times[0].name == "stream")
    assert model.condition_kind in ("none", "first", "content")
    names = [way.name for way in model.list_space_ways()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["fsae_lite", "reducio", "ivvae"])
def test_content_frames_are_taken_without_parameters(name):
    model = build(MODELS[name])
    video = clip(8)[None]
    if model.condition_kind == "none":
        with pytest.raises(VidlatentError, match="reads no frame"):
            model.apply({}, video, method="pick_content_frames")
        return
    frames = np.asarray(model.apply({}, video, method="pick_content_frames"))
    assert frames.dtype == np.uint8
    places = [0] if model.condition_kind == "first" else [1, 5]
    np.testing.assert_array_equal(frames, video[0, places])


class TestMinimal:
    @pytest.fixture(scope="class")
    def given(self):
        model = Minimal()
        return model, model.init(jax.random.key(0), jnp.zeros((1, 1, 2, 2, 3)))["params"]

    def test_it_reconstructs(self, given):
        model, params = given
        video, posterior = model.apply({"params": params}, from_pixels(clip(3, 4, 6)[None]))
        assert video.shape == (1, 3, 4, 6, 3) and posterior.mean.shape == (1, 3, 2, 3, 3)

    def test_a_codec_codes_it_in_chunks(self, given):
        model, params = given
        codec = Codec(model, params, CodecOptions.of(chunk_frames=4, overlap_frames=2))
        video = clip(9, 4, 6)
        coded = codec.encode(video)
        assert codec.time == "chunks" and coded.content is None
        whole, _ = model.apply({"params": params}, from_pixels(video[None]))
        apart = codec.decode(coded).astype(int) - np.asarray(to_pixels(whole)[0])
        assert np.abs(apart).max() <= 1  # frames know nothing of each other

    @pytest.mark.parametrize(
        ("keys", "says"),
        [
            ({"time": "stream"}, "this minimal does: use 'chunks'"),
            ({"time": "windows"}, "not for minimal: use 'chunks'"),
            ({"space": "tiles"}, "not for minimal: use 'auto' or 'whole'"),
        ],
    )
    def test_what_it_cannot_do_is_refused(self, given, keys, says):
        with pytest.raises(VidlatentError, match=says):
            plan_codec(CodecOptions.of(**keys), given[0])

    def test_its_latents_may_be_chunks(self, given):
        assert spec_in_chunks(given[0], (4, 2), "encode.chunks").chunks == (4, 2)
        assert given[0].patch_cell == 0
