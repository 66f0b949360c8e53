"""Latent statistics and pictures: hand-worked values, streaming equality."""

import numpy as np

from vidlatent.metrics import ChannelMoments, stretch_channels


def test_moments_by_hand():
    moments = ChannelMoments(2)
    assert moments.n == 0 and not moments.std.any()
    moments.add([[1.0, 10.0]])
    moments.add([[3.0, 10.0], [5.0, 10.0]])
    assert moments.n == 3
    assert moments.mean.tolist() == [3.0, 10.0]
    np.testing.assert_allclose(moments.std, [np.sqrt(8 / 3), 0.0])
    # All six numbers: 1, 3, 5, 10, 10, 10.
    np.testing.assert_allclose(moments.overall(), [6.5, np.sqrt(81.5 / 6)])


def test_moments_of_pieces_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, (1000, 5)).astype(np.float32) + np.float32(1e4)
    whole, pieces = ChannelMoments(5), ChannelMoments(5)
    whole.add(values)
    for piece in np.split(values, [1, 1, 8, 500, 999]):
        pieces.add(piece.reshape(1, -1, 1, 5))
    np.testing.assert_allclose(whole.mean, values.mean(0, np.float64), rtol=1e-14)
    np.testing.assert_allclose(whole.std, values.astype(np.float64).std(0), rtol=1e-12)
    np.testing.assert_allclose(pieces.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(pieces.std, whole.std, rtol=1e-11)
    np.testing.assert_allclose(pieces.overall()[1], values.astype(np.float64).std(), rtol=1e-9)


def test_channel_maps_by_hand():
    latent = np.zeros((2, 1, 3, 2))  # two latent frames of 1x3, two channels
    latent[0, 0, :, 0] = [2.0, 4.0, 3.0]
    latent[1, 0, :, 0] = [-10.0, 0.0, -7.5]
    latent[0, 0, :, 1] = 5.0
    maps = stretch_channels(latent)
    assert maps.shape == latent.shape and maps.dtype == np.float32
    assert maps[0, 0, :, 0].tolist() == [-1.0, 1.0, 0.0], "each latent frame has its own range"
    assert maps[1, 0, :, 0].tolist() == [-1.0, 1.0, -0.5]
    assert not maps[..., 1].any(), "a constant map is grey"
