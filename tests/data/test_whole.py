"""Scoring a whole folder: each clip once, in the longest bucket that it fills."""

import numpy as np
import pytest

from vidlatent.data import make_loader
from vidlatent.data.stream import OneEach
from vidlatent.spec import FrameRule

LENGTHS = {"a": 5, "b": 8, "c": 12, "d": 13, "e": 3}
FPS = 24.0


@pytest.fixture(scope="module")
def options(tools, tmp_path_factory):
    path = tmp_path_factory.mktemp("clips")
    for seed, (name, frames) in enumerate(LENGTHS.items()):
        tools.write_clip(path / f"{name}.mp4", tools.pictures(frames, 32, 48, seed=seed))
    tools.write_picture(path / "p.png", 32, 48)
    buckets = ((4, 16, 16, 2), (8, 16, 16, 2), (12, 16, 16, 2))
    return tools.options(source="folder", path=str(path), buckets=buckets)


def windows(options, *, size=1, **arguments):
    """{clip: (frames, first source frame)} over all processes."""
    found = {}
    for process in range(size):
        made = make_loader(
            options,
            split="whole",
            rule=FrameRule(4, 4),
            seed=0,
            process_index=process,
            process_count=size,
            **arguments,
        )
        with made as loader:
            for batch in loader:
                for row in np.flatnonzero(batch["mask"]):
                    name = loader.index[batch["clip"][row]].path[0]
                    assert name not in found
                    start = round(float(batch["start"][row]) * FPS)
                    found[name] = (batch["video"].shape[1], start)
            assert {bad.path for bad in loader.report.clips} == {"e.mp4", "p.png"}
    return found


def test_each_clip_once_as_long_as_it_can_be(options):
    middle = windows(options)
    assert middle == {"a": (4, 0), "b": (8, 0), "c": (12, 0), "d": (12, 0)}
    assert windows(options, windows=OneEach(place=1.0))["d"] == (12, 1)
    assert windows(options, windows=OneEach(place=0.0)) == middle
    assert windows(options, size=2) == middle


def test_some_of_the_clips(options):
    assert windows(options, windows=OneEach(0.0, {1, 3})) == {"b": (8, 0), "d": (12, 0)}
