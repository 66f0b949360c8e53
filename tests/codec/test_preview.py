"""The linear preview: least squares, frames where they belong, foreign maps refused."""

import numpy as np
import pytest

from vidlatent.codec.preview import LinearFit, Preview, PreviewSums
from vidlatent.errors import VidlatentError
from vidlatent.spec import FrameRule, LatentSpec

SPEC = LatentSpec("stub", channels=5, t=2, h=3, w=3, rule=FrameRule(1, 2))


def test_sums_give_least_squares():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 5)) * [1, 1e3, 1e-3, 1, 1], rng.normal(size=(200, 4))
    x[:, 4] = x[:, 0]  # two channels alike: the smallest solution is taken
    fit = LinearFit(5, 4)
    for part in range(0, 200, 50):
        fit.add(x[part : part + 50], y[part : part + 50])
    weights, full = fit.solve(), np.concatenate([x, np.ones((200, 1))], axis=1)
    best = np.linalg.lstsq(full, y, rcond=None)[0]
    np.testing.assert_allclose(full @ weights, full @ best, atol=1e-6)
    error = np.square(full @ best - y).sum() / np.square(y - y.mean(0)).sum()
    np.testing.assert_allclose(fit.explained(weights), 1 - error, rtol=1e-9)


def test_a_linear_latent_is_seen_exactly(tmp_path):
    """A latent that is a mixture of the shrunk frames shows them again."""
    rng = np.random.default_rng(1)
    small = rng.integers(0, 256, (4, 7, 2, 4, 3)).astype(np.uint8)
    mix = rng.normal(size=(6, 8))
    spec = LatentSpec("stub", channels=8, t=2, h=3, w=3, rule=FrameRule(1, 2))
    sums = PreviewSums(spec)
    latents = []
    for frames in small:
        pairs = np.concatenate([frames[:1], frames[:1], frames[1:]]).reshape(4, 2, 2, 4, 3)
        latents.append(pairs.transpose(0, 2, 3, 1, 4).reshape(4, 2, 4, 6) / 255 @ mix)
        sums.add(latents[-1], frames.repeat(3, axis=1).repeat(3, axis=2))
    preview = sums.fit()
    for latent, frames in zip(latents, small, strict=True):
        np.testing.assert_array_equal(preview(latent), frames)
    assert min(sums.explained(preview).values()) > 1 - 1e-9
    preview.save(tmp_path / "preview.npz")
    again = Preview.load(tmp_path / "preview.npz", spec)
    np.testing.assert_array_equal(again(latents[0]), small[0])
    with pytest.raises(VidlatentError, match="not of this stub"):
        Preview.load(tmp_path / "preview.npz", SPEC)
    with pytest.raises(VidlatentError, match="no preview at"):
        Preview.load(tmp_path / "none.npz", spec)


def test_without_a_frame_that_stands_alone():
    spec = LatentSpec("clips", channels=3, t=4, h=2, w=2, rule=FrameRule(8, 8))
    sums = PreviewSums(spec)
    rng = np.random.default_rng(2)
    sums.add(rng.normal(size=(2, 3, 3, 3)), rng.integers(0, 256, (8, 6, 6, 3)).astype(np.uint8))
    preview = sums.fit()
    assert preview.first is None and set(sums.explained(preview)) == {"group"}
    assert preview(rng.normal(size=(4, 1, 1, 3))).shape == (16, 1, 1, 3)
