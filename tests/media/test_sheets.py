"""The picture of latent channels."""

import io

import numpy as np
import pytest
from PIL import Image

from vidlatent.errors import VidlatentError
from vidlatent.media.sheets import channel_sheet


def test_maps_are_drawn_whole_and_grey(tmp_path):
    maps = np.full((5, 4, 8, 20), -1.0)
    maps[..., 4:, :] = 1.0
    data = channel_sheet(maps, tmp_path / "a.png", title="a clip", columns=8, cell=16)
    assert (tmp_path / "a.png").read_bytes() == data
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    # Three of the five latent frames, 20 channels, 8x16 pixels each, half of them black.
    assert (pixels == 0).all(-1).sum() == 3 * 20 * 8 * 16 / 2
    wide = np.asarray(Image.open(io.BytesIO(channel_sheet(maps, columns=20, cell=16)))).shape
    assert wide[1] > pixels.shape[1] and wide[0] < pixels.shape[0]


def test_pictures_stand_beside_their_latent_frames():
    maps = np.zeros((2, 4, 4, 3))
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    frames[0, ..., 0] = frames[1, ..., 1] = 200
    pixels = np.asarray(Image.open(io.BytesIO(channel_sheet(maps, frames=frames)))).astype(int)
    red, green = ((pixels == colour).all(-1) for colour in ([200, 0, 0], [0, 200, 0]))
    assert red.sum() == green.sum() == 64 * 64
    assert np.argwhere(red)[:, 0].max() < np.argwhere(green)[:, 0].min()
    assert np.argwhere(red)[:, 1].max() < np.argwhere((pixels == 128).all(-1))[:, 1].min()


def test_errors(tmp_path):
    maps = np.zeros((2, 4, 4, 3))
    with pytest.raises(VidlatentError, match=r"\[t, h, w, c\]"):
        channel_sheet(maps[0])
    with pytest.raises(VidlatentError, match="1 pictures do not go with 2"):
        channel_sheet(maps, frames=np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(VidlatentError, match="cannot write"):
        channel_sheet(maps, tmp_path / "absent" / "a.png")
