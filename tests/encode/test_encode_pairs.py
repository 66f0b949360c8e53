"""Sets that hold each window at full and at half size (``config.encode.low``)."""

import jax
import numpy as np
import pytest

from tests.helpers.encode_cases import encode, write_run
from tests.helpers.tiny_tokenizers import MODELS
from vidlatent import config as configs
from vidlatent.codec.codec import Codec
from vidlatent.data.renderers.shapes import make_shape_scene, render_shape
from vidlatent.data.sources.latents import LatentSource
from vidlatent.errors import VidlatentError
from vidlatent.latents.pairs import LOW, halve_pixels
from vidlatent.latents.pixels import from_pixels

SHAPES = {
    "data.source": "synthetic",
    "data.synthetic.kind": "shapes",
    "data.synthetic.clips": 3,
    "data.synthetic.frames": 9,
    "data.buckets": "((5,16,16,2),)",
    "encode.pictures": 0,
    "encode.dtype": "float32",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "run"
    write_run(folder, configs.load("configs/ivvae.py"), MODELS["ivvae"])
    return folder


def test_both_latents_are_those_of_the_window_and_of_its_half(run, tmp_path):
    assert encode(run, tmp_path / "set", **SHAPES, **{"encode.low": 2}) == 0
    source, codec = LatentSource(str(tmp_path / "set")), Codec.from_workdir(run)
    assert source.header.source["low"] == 2

    @jax.jit
    def code(video):
        found = codec.model.apply({"params": codec.params}, from_pixels(video), method="encode")
        return found[0].mode()

    for window in source.windows:
        arrays = source.read_arrays(window.name)
        scene = make_shape_scene(0, int(window.clip.rpartition("-")[2]), 9)
        frames = render_shape(scene, window.first + np.arange(5), 16, 16)[None]
        np.testing.assert_allclose(arrays["latent"], code(frames)[0], atol=2e-5)
        low = code(halve_pixels(frames))[0]
        assert low.shape[1] * 2 == arrays["latent"].shape[1]
        np.testing.assert_allclose(arrays[LOW], low, atol=2e-5)
    assert source.blank(window.size)[LOW].shape == low.shape


def test_halving_is_the_antialiased_bicubic():
    """Against the kernel written out: Keys' cubic (a = -0.5), twice as wide."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (1, 1, 16, 12, 3), dtype=np.uint8)

    def keys(x):
        x = np.abs(x)
        inner = (1.5 * x - 2.5) * x * x + 1
        outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
        return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))

    def matrix(size):
        centres = 2 * np.arange(size // 2) + 0.5
        weights = keys((np.arange(size)[None] - centres[:, None]) / 2)
        return weights / weights.sum(1, keepdims=True)

    wanted = np.einsum("hy,wx,btyxc->bthwc", matrix(16), matrix(12), video.astype(float))
    got = np.asarray(halve_pixels(video)).astype(int)
    assert np.abs(got - np.clip(wanted, 0, 255)).max() <= 0.51


def test_sizes_that_do_not_halve_are_refused(run, tmp_path):
    changes = {**SHAPES, "encode.low": 2, "data.buckets": "((5,16,28,2),)"}
    with pytest.raises(VidlatentError, match="5x16x28.*halves to 8x14.*use 5x16x32"):
        encode(run, tmp_path / "set", **changes)
    with pytest.raises(VidlatentError, match="config.encode.low=3: use 2"):
        encode(run, tmp_path / "set", **{**SHAPES, "encode.low": 3})
