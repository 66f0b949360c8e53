"""Standard and Lite through the codec: condition from frame 0, windows where no cache will do."""

import jax
import numpy as np
import pytest

from vidlatent import config as configs
from vidlatent.codec.codec import Codec
from vidlatent.codec.options import CodecOptions
from vidlatent.errors import VidlatentError
from vidlatent.models.load import abstract_params, model_of

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module", params=["standard", "lite"])
def codec(request):
    config = configs.load("tests/tiny.py")
    with config.unlocked():
        config.model.update(cross_stages=(2,), cross_head_dim=8, noise_weight=0.05)
        config.model.decoder_time = "centred" if request.param == "standard" else "group"
    model = model_of(config)
    rng = np.random.default_rng(0)
    shapes = abstract_params(model)
    params = jax.tree.map(lambda x: (0.2 * rng.normal(size=x.shape)).astype(x.dtype), shapes)
    return Codec(model, params, CodecOptions.of(groups=1, window_latents=3))


def test_streams_equal_the_whole(codec):
    video = np.random.default_rng(1).integers(0, 256, (22, 10, 13, 3), np.uint8)
    whole = np.concatenate([restored for _, restored in codec.reconstruct_stream(video)])
    assert whole.shape == video.shape
    coded = codec.encode(video)
    np.testing.assert_array_equal(coded.content, video[:1])
    np.testing.assert_array_equal(codec.decode(coded), whole)
    again = codec.decode(coded.latent, 22, (10, 13), content=video[0])
    np.testing.assert_allclose(again.astype(int), whole.astype(int), atol=1)
    # And as the model decodes it in one go.
    pixels = np.pad(video, ((0, 3), (0, 2), (0, 3), (0, 0)), mode="edge")[None]
    restored, _ = jax.jit(codec.model.apply)({"params": codec.params}, pixels / 127.5 - 1)
    direct = np.clip(np.round((np.asarray(restored[0, :22, :10, :13]) + 1) * 127.5), 0, 255)
    np.testing.assert_allclose(whole.astype(int), direct, atol=1)


def test_missing_first_frame_is_named(codec):
    with pytest.raises(VidlatentError, match="needs 1 content frame"):
        codec.decode(np.zeros((2, 3, 4, codec.spec.channels), np.float32))
