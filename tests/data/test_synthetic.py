"""Rendered scenes: pure functions of (seed, index) whose motion matches their flow."""

import dataclasses
import time

import numpy as np
from scipy import ndimage

from vidlatent.data.renderers.scenes import background_flow, make_scene, render


def test_a_scene_depends_on_seed_and_index_alone():
    first = render(make_scene(1, 7), range(3), 24, 32)
    render(make_scene(1, 8), range(3), 24, 32)
    np.testing.assert_array_equal(first, render(make_scene(1, 7), range(3), 24, 32))
    assert (first != render(make_scene(1, 8), range(3), 24, 32)).mean() > 0.5
    assert (first != render(make_scene(2, 7), range(3), 24, 32)).mean() > 0.5
    assert first.dtype == np.uint8 and first.shape == (3, 24, 32, 3)


def test_scenes_move_and_have_detail():
    for index in range(10):
        video = render(make_scene(0, index), range(9), 64, 64).astype(float)
        assert video[0].std() > 15
        assert np.abs(video[8] - video[0]).mean() > 3


def test_scenes_are_the_same_at_any_size():
    small = render(make_scene(0, 3), [4], 32, 48)[0].astype(float)
    large = render(make_scene(0, 3), [4], 128, 192)[0].astype(float)
    averaged = large.reshape(32, 4, 48, 4, 3).mean((1, 3))
    assert np.abs(small - averaged).mean() < 3


def test_background_flow_carries_one_frame_into_the_next():
    scene = make_scene(0, 5, shapes=0)
    now, then = render(scene, [2, 3], 96, 128).astype(float)
    flow = background_flow(scene, 2, 96, 128)
    rows, columns = np.mgrid[:96, :128]
    places = [rows + flow[..., 1], columns + flow[..., 0]]
    inside = (places[0] >= 0) & (places[0] <= 95) & (places[1] >= 0) & (places[1] <= 127)
    fetched = np.stack(
        [ndimage.map_coordinates(then[..., c], places, order=3) for c in range(3)], -1
    )
    moved, still = np.abs(fetched - now)[inside].mean(), np.abs(then - now)[inside].mean()
    assert inside.mean() > 0.8 and moved < 0.6 < 3 * moved + 2 < still + 2


def test_a_shape_is_where_the_metadata_says():
    scene = make_scene(0, 4, shapes=1)
    shape = dataclasses.replace(
        scene.shapes[0], kind="disc", start=(0.1, -0.2), velocity=(0.03, 0.02), radius=0.3
    )
    camera = dataclasses.replace(scene.camera, start=(0, 0), pan=(0.01, 0), zoom=1.0, zoom_rate=0.0)
    scene = dataclasses.replace(scene, shapes=(shape,), camera=camera)
    empty = dataclasses.replace(scene, shapes=())
    for moment in (0, 6):
        changed = (render(scene, [moment], 96, 96) != render(empty, [moment], 96, 96)).any(-1)[0]
        found = np.array(ndimage.center_of_mass(changed))[::-1]
        expected = (shape.centre(moment) - camera.at(moment)[0] + 1) * 48 - 0.5
        np.testing.assert_allclose(found, expected, atol=0.7)


def test_rendering_is_fast():
    began = time.process_time()
    for index in range(20):
        render(make_scene(0, index), range(9), 64, 64)
    assert 20 / (time.process_time() - began) > 20
