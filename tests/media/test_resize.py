"""Frames are brought to a size by the rule that ``data.resize`` names."""

import pickle

import numpy as np
import pytest
from PIL import Image

from vidlatent.data.loader import make_loader
from vidlatent.data.options import DataOptions
from vidlatent.data.sources import make_source
from vidlatent.errors import VidlatentError
from vidlatent.media import decode
from vidlatent.media.probe import probe
from vidlatent.media.transforms import place


def weights(size, target):
    """[target, size]: triangles around the centres of the targets, as wide as these or as a pixel.

    torchvision's rule, from its definition.
    """
    step = size / target
    centres = (np.arange(target) + 0.5) * step
    apart = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(step, 1)
    kernel = np.maximum(1 - apart, 0)
    return kernel / kernel.sum(1, keepdims=True)


def bilinear(frames, height, width):
    rows, columns = weights(frames.shape[1], height), weights(frames.shape[2], width)
    return np.einsum("yh,xw,thwc->tyxc", rows, columns, np.float64(frames))


@pytest.fixture(scope="module")
def clip(tools, tmp_path_factory):
    return tools.write_clip(tmp_path_factory.mktemp("resize") / "a.mp4")


@pytest.mark.parametrize("size", [(20, 40), (17, 21), (96, 100), (48, 64)])
def test_bilinear_with_antialiasing_to_rounding(clip, size):
    whole = decode.read_window(clip, 0, 3)
    spot = place(48, 64, size)
    wanted = bilinear(whole, spot.height, spot.width)[(slice(None), *spot.slices)]
    found = decode.read_window(clip, 0, 3, size=size, resize="bilinear")
    assert np.abs(found - wanted).max() <= 1.01  # two passes, each rounded
    kept = decode.read_all(clip, size, resize="bilinear")
    info = probe(clip)
    again = decode.cut_window(info, kept, 0.0, 3, 0.0, size, (0.5, 0.5))
    np.testing.assert_array_equal(again, found)
    if size == (20, 40):
        area = decode.read_window(clip, 0, 3, size=size)
        assert np.abs(area - wanted).max() > 8  # the rules can be told apart


def test_pictures(tmp_path):
    """Weights 3/7, 3/7, 1/7 of halving; the corners repeat nothing."""
    row = np.array([0, 70, 140, 210], np.uint8)
    Image.fromarray(np.tile(row[None, :, None], (4, 1, 3))).save(tmp_path / "a.png")
    found = decode.read_window(str(tmp_path / "a.png"), 0, 1, size=(2, 2), resize="bilinear")
    np.testing.assert_array_equal(found[0, :, :, 0], [[50, 160], [50, 160]])


def test_the_loader_has_the_rule_of_its_options(tools, clip):
    folder = clip.rpartition("/")[0]
    prints = {}
    for rule in ("area", "bilinear"):
        data = tools.options(
            source="folder", path=folder, buckets=((5, 20, 40, 1),), flip=False, resize=rule
        )
        with make_loader(data, split="whole", rule=tools.rule, seed=0) as loader:
            found = next(iter(loader))
            prints[rule] = loader.fingerprint
        wanted = decode.read_window(clip, float(found["start"][0]), 5, size=(20, 40), resize=rule)
        np.testing.assert_array_equal(found["video"][0], wanted)
    assert prints["area"] != prints["bilinear"]
    source = make_source(DataOptions.from_mapping(data), 0)
    assert pickle.loads(pickle.dumps(source)).resize == "bilinear"  # what workers read by
    with pytest.raises(VidlatentError, match="data.resize = 'bilinaer'.*did you mean 'bilinear'"):
        DataOptions.from_mapping({**data, "resize": "bilinaer"})
