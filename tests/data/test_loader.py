"""The stream is a pure function of (options, index, seed, step, process)."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from vidlatent.data import make_index, make_loader
from vidlatent.data.stream import Listed
from vidlatent.errors import VidlatentError
from vidlatent.media import decode

BUCKETS = ((5, 32, 48, 4), (5, 48, 32, 4), (1, 32, 32, 8))


@pytest.fixture(scope="module")
def folder(tools, tmp_path_factory):
    """Wide and tall clips and images."""
    path = tmp_path_factory.mktemp("clips")
    for number in range(8):
        height, width = (48, 72) if number % 2 else (72, 48)
        video = tools.pictures(20 + number, height, width, seed=number)
        tools.write_clip(path / f"{number}.mp4", video, gop_size=8)
        if number < 4:
            tools.write_picture(path / f"p{number}.png", 64, 64 + 8 * number)
    return str(path)


def options_of(tools, folder, **changes):
    return tools.options(source="folder", path=folder, buckets=BUCKETS, **changes)


def read(tools, options, steps, **arguments):
    arguments = dict(split="train", rule=tools.rule, seed=5) | arguments
    with make_loader(options, **arguments) as loader:
        return [next(loader) for _ in range(steps)]


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one["skipped"] == other["skipped"]
        for key in ("video", "mask", "clip", "start"):
            np.testing.assert_array_equal(one[key], other[key])


def test_batches_are_as_described(tools, folder):
    batches = read(tools, options_of(tools, folder), 12)
    shapes = {batch["video"].shape for batch in batches}
    assert shapes == {(4, 5, 32, 48, 3), (4, 5, 48, 32, 3), (8, 1, 32, 32, 3)}
    assert sum(batch["video"].shape[1] == 1 for batch in batches) == 6  # 1:1
    for batch in batches:
        assert type(batch["video"]) is np.ndarray and batch["video"].dtype == np.uint8
        assert batch["mask"].dtype == np.float32 and batch["mask"].all()
        assert batch["clip"].dtype == np.int32 and batch["start"].dtype == np.float32
        assert batch["skipped"] == []


def test_two_sizes_of_one_number_of_frames(tools, folder):
    """Wide clips train in both wide buckets, tall ones in the tall one; each is scored once."""
    buckets = ((5, 32, 48, 4), (5, 48, 72, 2), (5, 48, 32, 2))
    options = tools.options(
        source="folder", path=folder, buckets=buckets, bucket_weights=(1.0, 2.0, 1.0)
    )
    batches = read(tools, options, 16)
    seen = [(batch["video"].shape[2:4], set(batch["clip"].tolist())) for batch in batches]
    assert [sum(size == wanted for size, _ in seen) for wanted in ((32, 48), (48, 72))] == [4, 8]
    small, large, tall = (
        set().union(*(rows for size, rows in seen if size == wanted))
        for wanted in ((32, 48), (48, 72), (48, 32))
    )
    assert small & large and not tall & (small | large)
    scored = list(make_loader(options, split="whole", rule=tools.rule, seed=5))
    assert {batch["video"].shape[2:4] for batch in scored} == {(48, 72), (48, 32)}
    assert sum(batch["mask"].sum() for batch in scored) == 8


def test_few_shapes(tools, folder, caplog):
    """Clips of a shape that is not compiled train, and are scored, in the nearest that is."""
    buckets = ((5, 32, 48, 4), (5, 32, 32, 4), (5, 48, 32, 4))
    options = tools.options(source="folder", path=folder, buckets=buckets)
    caplog.set_level("INFO")
    with make_loader(options, split="train", rule=tools.rule, seed=5) as loader:
        clips = set(range(len(loader.index)))
    assert "shapes to compile: 2 " in caplog.text  # no clip is nearly square
    batches = read(tools, options | {"max_shapes": 1}, 8)
    assert "shapes to compile: 1 " in caplog.text and "5x32x48 100.0%" in caplog.text
    assert {batch["video"].shape for batch in batches} == {(4, 5, 32, 48, 3)}
    assert {row for batch in batches for row in batch["clip"].tolist()} == clips
    scored = make_loader(options | {"max_shapes": 1}, split="validation", rule=tools.rule, seed=5)
    assert {batch["video"].shape[2:4] for batch in scored} <= {(32, 48)}
    with pytest.raises(VidlatentError, match=r"give data\.length_weights instead"):
        read(tools, options | {"max_shapes": 1, "bucket_weights": (1.0, 1.0, 1.0)}, 1)


def test_listed_windows_in_order(tools, folder):
    """Reading on in open files gives the same frames as reading each window separately."""
    options = tools.options(source="folder", path=folder, buckets=((5, 32, 48, 2),))
    windows = [(row, first) for row in (0, 1, 4) for first in range(0, 15, 3)]
    given = dict(split="whole", rule=tools.rule, seed=0, windows=Listed([(0, windows)]))
    batches = list(make_loader(options | {"read_threads": 0}, **given))
    assert_same(batches, list(make_loader(options | {"read_threads": 3}, **given)))
    with make_loader(options, **given) as loader:
        paths = [f"{folder}/{clip.path}" for clip in loader.index]
    videos = np.concatenate([batch["video"] for batch in batches])
    for (row, first), video in zip(windows, videos, strict=False):
        alone = decode.read_window(paths[row], first / 25, 5, size=(32, 48))
        np.testing.assert_array_equal(video, alone)


def test_the_stream_does_not_depend_on_workers_threads_or_memory(tools, folder):
    straight = read(tools, options_of(tools, folder), 9)
    for change in (
        {"num_workers": 1},
        {"num_workers": 2, "memory_mb": 0},
        {"read_threads": 0, "prefetch": 1},
        {"memory_mb": 0, "read_threads": 4},
    ):
        assert_same(straight, read(tools, options_of(tools, folder, **change), 9))


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_is_exact(tools, folder, workers):
    options = options_of(tools, folder, num_workers=workers)
    straight = read(tools, options, 10)
    with make_loader(options, split="train", rule=tools.rule, seed=5) as loader:
        for _ in range(7):
            next(loader)
        state = loader.state()
    assert state["step"] == 7 and state["workers"] == workers
    assert_same(straight[7:], read(tools, options, 3, start_step=state["step"]))


def test_far_steps_are_reached_at_once(tools, folder):
    options = options_of(tools, folder)
    assert_same(
        read(tools, options, 1, start_step=1_000_000), read(tools, options, 1, start_step=1_000_000)
    )


def test_processes_share_one_stream(tools, folder):
    options = options_of(tools, folder)
    whole = read(tools, options, 6)
    for count in (2, 4):
        parts = [
            read(tools, options, 6, process_index=p, process_count=count) for p in range(count)
        ]
        for step, batch in enumerate(whole):
            dealt = [part[step]["video"] for part in parts]
            assert {len(video) for video in dealt} == {len(batch["video"]) // count}
            together = {clip.tobytes() for video in dealt for clip in video}
            assert together == {clip.tobytes() for clip in batch["video"]}
            keys = [tuple(zip(p[step]["clip"], p[step]["start"], strict=True)) for p in parts]
            assert len(set(keys)) == count  # no two processes draw the same


def test_streams_of_buckets_and_epochs_differ(tools):
    options = tools.options(
        buckets=((5, 32, 32, 8), (5, 16, 16, 8)), bucket_weights=(1, 1), flip=False
    )
    options["synthetic"] |= {"height": 32, "width": 32, "clips": 10}
    batches = read(tools, tools.options(buckets=((5, 32, 32, 8), (1, 32, 32, 8))), 8)
    by_length = {5: [], 1: []}
    for batch in batches:
        by_length[batch["video"].shape[1]] += batch["clip"].tolist()
    assert by_length[5] != by_length[1]
    one = by_length[5]
    assert one[:13] != one[13:26] and sorted(one[:13]) == sorted(one[13:26])  # 13 clips to train on
    assert sorted(one[:13]) == list(range(13))


def test_seeds_change_the_stream(tools, folder):
    options = options_of(tools, folder)
    one, other = (read(tools, options, 2, seed=seed)[0] for seed in (0, 1))
    assert one["video"].shape != other["video"].shape or (one["video"] != other["video"]).any()


def test_flip_and_crop(tools, folder):
    plain = options_of(tools, folder, flip=False, crop="centre")
    flipped = options_of(tools, folder, flip=True, crop="centre")
    mirrored = 0
    for one, other in zip(read(tools, plain, 4), read(tools, flipped, 4), strict=True):
        for left, right in zip(one["video"], other["video"], strict=True):
            if (left != right).any():
                np.testing.assert_array_equal(left, right[:, :, ::-1])
                mirrored += 1
    assert 4 < mirrored < 20


def test_random_parts_are_read_at_every_scale(tools, folder):
    """The same windows in time as for centre crops, with more detail than the whole frame."""
    whole = read(tools, options_of(tools, folder, flip=False, crop="centre"), 2)
    parts = read(tools, options_of(tools, folder, flip=False, crop="resized"), 2)
    for one, other in zip(whole, parts, strict=True):
        assert one["video"].shape == other["video"].shape
        for key in ("clip", "start", "mask"):
            np.testing.assert_array_equal(one[key], other[key])
        apart = one["video"] != other["video"]
        assert all(row.any() for row in apart)


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_is_every_window_once(tools, folder, workers):
    options = options_of(
        tools, folder, validation_share=0.5, validation_clips=7, num_workers=workers
    )
    with make_loader(options, split="validation", rule=tools.rule, seed=5) as loader:
        first = list(loader)
        assert len(loader) == len(first) > 1
        assert_same(first, list(loader))
        with make_loader(options, split="train", rule=tools.rule, seed=5) as other:
            assert not {c.path for c in loader.index} & {c.path for c in other.index}
        seen = {}
        for batch in first:
            frames = batch["video"].shape[1]
            assert set(batch["mask"]) <= {0.0, 1.0}
            assert not batch["video"][batch["mask"] == 0].any()
            for clip, start, real in zip(batch["clip"], batch["start"], batch["mask"], strict=True):
                assert real == (clip >= 0)
                if real:
                    assert (frames, clip, start) not in seen
                    seen[frames, clip, start] = 1
        assert all(sum(key[0] == frames for key in seen) <= 7 for frames in (1, 5))


def test_validation_padding_is_even_over_processes(tools, folder):
    options = options_of(tools, folder, validation_share=0.5, validation_clips=5)
    arguments = dict(split="validation", rule=tools.rule, seed=5)
    with make_loader(options, **arguments) as loader:
        whole = list(loader)
    parts = []
    for process in range(4):
        with make_loader(options, **arguments, process_index=process, process_count=4) as loader:
            parts.append(list(loader))
    assert {len(part) for part in parts} == {len(whole)}
    count = sum(batch["mask"].sum() for part in parts for batch in part)
    assert count == sum(batch["mask"].sum() for batch in whole)


def test_one_clip_trains_without_validation(tools, tmp_path, caplog):
    tools.write_clip(tmp_path / "a.mp4")
    options = tools.options(source="folder", path=str(tmp_path))
    assert read(tools, options, 2)[1]["video"].shape == (4, 5, 32, 32, 3)
    with make_loader(options, split="validation", rule=tools.rule, seed=0) as loader:
        assert len(loader) == 0 and list(loader) == []
    assert "nothing to validate on" in caplog.text


def test_state_says_when_the_data_changed(tools, folder, caplog):
    with make_loader(options_of(tools, folder), split="train", rule=tools.rule, seed=5) as loader:
        state = loader.state()
    same = options_of(tools, folder, num_workers=3, prefetch=9)
    with make_loader(same, split="train", rule=tools.rule, seed=5) as loader:
        loader.check_state(state)
        assert not caplog.records
    for change, seed in (({"fps": 10.0}, 5), ({"flip": False}, 5), ({}, 6)):
        options = options_of(tools, folder, **change)
        with make_loader(options, split="train", rule=tools.rule, seed=seed) as loader:
            caplog.clear()
            loader.check_state(state)
            assert "the data has changed" in caplog.text


def test_one_index_serves_both_parts(tools, folder, monkeypatch):
    options = options_of(tools, folder)
    index = make_index(options)
    monkeypatch.setattr("vidlatent.data.loader.build_index", None)
    for split in ("train", "validation"):
        with make_loader(options, split=split, rule=tools.rule, seed=5, index=index) as loader:
            assert next(loader)["video"].dtype == np.uint8


def test_wrong_split_is_named(tools):
    with pytest.raises(VidlatentError, match="'valid' is unknown"):
        make_loader(tools.options(), split="valid", rule=tools.rule, seed=0)


_IMPORTS = """
import sys
class Blocker:
    def find_spec(self, name, *_):
        if name.split('.')[0] in ('jax', 'jaxlib', 'flax', 'grain', 'tensorflow', 'skvideo'):
            raise ImportError(name)
sys.meta_path.insert(0, Blocker())
import vidlatent.data, vidlatent.media.decode, vidlatent.data.sources, vidlatent.data.index
import vidlatent.data.buckets, vidlatent.data.bad_clips, vidlatent.data.clip_cache
assert not {'jax', 'grain'} & set(sys.modules)
"""

_NO_DEVICE = """
import sys
from vidlatent.data import make_loader
from vidlatent.spec import FrameRule
options = {options!r}
with make_loader(options, split='train', rule=FrameRule(1, 4), seed=0) as loader:
    next(loader)
from jax._src import xla_bridge  # Grain has imported jax already
assert not xla_bridge.backends_are_initialized()
"""


def test_decoding_needs_no_jax_and_loading_no_device(tools):
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True)
    code = _NO_DEVICE.format(options=tools.options())
    subprocess.run([sys.executable, "-c", code], check=True)


_INTERRUPT = """
import os, signal, time
from vidlatent.data import make_loader
from vidlatent.spec import FrameRule
options = {options!r}
if __name__ == '__main__':
    caught = []
    signal.signal(signal.SIGINT, lambda *_: caught.append(1))
    with make_loader(options, split='train', rule=FrameRule(1, 4), seed=0) as loader:
        next(loader)
        os.killpg(0, signal.SIGINT)
        for _ in range(10):
            next(loader)
            time.sleep(0.05)
    assert caught
"""


def test_ctrl_c_leaves_the_decoding_processes_to_their_parent(tools, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(_INTERRUPT.format(options=tools.options(num_workers=2)))
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, str(script)],
        start_new_session=True,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


def test_closing_twice_and_going_on(tools, caplog):
    caplog.set_level(logging.WARNING)
    loader = make_loader(tools.options(), split="train", rule=tools.rule, seed=0)
    first = [next(loader)]
    loader.close()
    loader.close()
    first.append(next(loader))
    loader.close()
    assert_same(first, read(tools, tools.options(), 2, seed=0))
