"""Rendered paths: pure functions of (seed, index), exact at any frame rate, of the set speed."""

import dataclasses

import numpy as np
import pytest

from vidlatent.data.loader import make_loader
from vidlatent.data.options import SyntheticOptions
from vidlatent.data.renderers.paths import make_path_scene, render_paths
from vidlatent.data.sources.synthetic import PathsSource
from vidlatent.data.stream import cut_window
from vidlatent.errors import VidlatentError
from vidlatent.media.errors import Limits
from vidlatent.media.transforms import CENTRE
from vidlatent.models.tokenizers.promag.growth import STAGE_FPS
from vidlatent.spec import FrameRule

LINE = SyntheticOptions(24, 97, 1, 32, shapes=3, kind="paths", speed=0.12)
SQUARE = SyntheticOptions(4, 40, 24, 16, shapes=2, kind="paths", speed=0.5, turns=0.1)


def scene(index=0, seed=0, size=(1, 32), speed=0.12, turns=0.0):
    return make_path_scene(seed, index, size, 3, speed, turns, 97)


def test_a_scene_depends_on_seed_and_index_alone():
    first = render_paths(scene(7), range(3))
    assert first.shape == (3, 1, 32, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, render_paths(scene(7), range(3)))
    assert (first != render_paths(scene(8), range(3))).mean() > 0.5
    assert (first != render_paths(scene(7, seed=1), range(3))).mean() > 0.5


def test_scenes_have_detail_and_move_in_both_directions():
    for index in range(8):
        video = render_paths(scene(index, size=(32, 32), turns=0.1), [0, 40]).astype(float)
        assert video[0].std(axis=(0, 1)).max() > 15
        assert np.abs(video[1] - video[0]).mean() > 5
        assert video[0].std(axis=0).max() > 5 and video[0].std(axis=1).max() > 5


def test_shapes_move_at_the_given_speed_and_stay_inside():
    for turns, most in ((0.0, 1.4), (0.1, 1.3)):
        steps = []
        for index in range(60):
            for across, down, *_ in scene(index, size=(40, 40), speed=0.2, turns=turns).shapes:
                for track in (across, down):
                    place = track.at(np.arange(97.0))
                    assert -15 < place.min() and place.max() < 55
                    steps.append(np.diff(place))
        speed = np.sqrt(np.mean(np.square(steps)))
        assert 0.2 / most < speed < 0.2 * most


def test_turns_are_abrupt_and_paths_without_are_smooth():
    def bends(turns):
        tracks = [scene(i, speed=0.5, turns=turns).shapes[0][0] for i in range(20)]
        return [np.abs(np.diff(track.at(np.arange(97.0)), 2)).max() for track in tracks]

    assert np.median(bends(0.1)) > 5 * np.median(bends(0.0))


@pytest.mark.parametrize("options", [LINE, SQUARE], ids=["line", "square"])
def test_kept_clips_are_what_is_drawn_at_once(options):
    source = PathsSource(options, seed=3)
    info = source.probe("scene-000002", Limits())
    kept = source.read_all(info, (options.height, options.width), Limits())
    for fps, start in ((24.0, 3), (12.0, 1), (6.0, 2)):
        place = (start / 24, 5, fps, (options.height, options.width), CENTRE)
        drawn = source.read(info, *place, Limits())
        np.testing.assert_array_equal(cut_window(info, kept, *place), drawn)


def test_windows_of_the_growth_stages():
    """Of 24 frames a second, ProMAG's stages read s + 4i, s + 2i and s + i, i = 0 ... 16."""
    source = PathsSource(LINE, seed=0)
    info = source.probe("scene-000000", Limits())
    _, clip = source.read_all(info, (1, 32), Limits())
    windows = {}
    for fps, stride in zip(STAGE_FPS, (4, 2, 1), strict=True):
        start = 11
        windows[fps] = source.read(info, start / 24, 17, fps, (1, 32), CENTRE, Limits())
        np.testing.assert_array_equal(windows[fps], clip[start : start + 16 * stride + 1 : stride])
        # A clip as long as the window has one position for it, a shorter one has none.
        span = 16 * stride + 1
        assert dataclasses.replace(info, frames=span).starts(17, fps) == 1
        assert dataclasses.replace(info, frames=span - 1).starts(17, fps) == 0
    # Key frames of 16x and 8x clips equal those sampled at 6 frames a second.
    np.testing.assert_array_equal(windows[24.0][::4], windows[6.0][:5])
    np.testing.assert_array_equal(windows[24.0][::2], windows[12.0][:9])
    np.testing.assert_array_equal(windows[12.0][::2], windows[6.0][:9])


def test_rates_that_do_not_divide_show_the_frame_on_display():
    source = PathsSource(dataclasses.replace(LINE, fps=30.0), seed=0)
    info = source.probe("scene-000000", Limits())
    kept = source.read_all(info, (1, 32), Limits())
    window = cut_window(info, kept, 0.0, 5, 20.0, (1, 32), CENTRE)
    np.testing.assert_array_equal(window, kept[1][[0, 1, 3, 4, 6]])


def test_the_loader_keeps_and_cuts_them(tools):
    fields = dataclasses.asdict(dataclasses.replace(SQUARE, clips=16))
    data = tools.options(synthetic=fields, buckets=((5, 16, 16, 2),), fps=12.0, flip=False)
    with make_loader(data, split="train", rule=FrameRule(1, 4), seed=2) as loader:
        batch = next(loader)
    assert batch["video"].shape == (2, 5, 16, 16, 3)
    source, row = PathsSource(SyntheticOptions(**fields), 2), int(batch["clip"][0])
    info = loader.index[row].info
    whole = source.read(info, float(batch["start"][0]), 5, 12.0, None, CENTRE, Limits())
    cuts = [whole[:, top : top + 16] for top in range(9)]
    assert any(np.array_equal(cut, batch["video"][0]) for cut in cuts)


def test_refusals(tools):
    source = PathsSource(LINE, 0)
    info = source.probe("scene-000000", Limits())
    with pytest.raises(VidlatentError, match="speed is in pixels"):
        source.read_all(info, (8, 64), Limits())
    data = tools.options(synthetic={"kind": "circles"})
    with pytest.raises(VidlatentError, match="'scenes', 'paths' or 'shapes'"):
        make_loader(data, split="train", rule=FrameRule(1, 4), seed=0)
