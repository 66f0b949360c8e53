"""A source of a user's own module: registered, checked, and loaded, in worker processes too."""

import importlib
import sys

import numpy as np
import pytest

from vidlatent.data import make_index, make_loader
from vidlatent.data.sources import SOURCES
from vidlatent.errors import VidlatentError

_MODULE = '''
"""Clips of one grey level each, with the methods of ``Source`` and nothing else."""
import numpy as np

from vidlatent.data.sources import SOURCES, Entry
from vidlatent.media.probe import ClipInfo


class GreySource:
    where = "the grey clips"
    cacheable = False

    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def entries(self):
        return [Entry(str(i), str(i), (self.seed,)) for i in range(self.count)]

    def probe(self, name, limits):
        limits.check_size(32, 32)
        return ClipInfo(name, 9, 24.0, 32, 32, 9 / 24, False)

    def verify(self, name, limits):
        pass

    def labels(self):
        return ("dark", "light")

    def describe(self, name):
        return ("light" if int(name) > 5 else "dark"), f"grey {name}"

    def read(self, info, start, count, fps, size, crop, limits):
        return np.full((count, *size, 3), 10 * int(info.path) + self.seed, np.uint8)

    def read_all(self, info, size, limits):
        raise AssertionError("asked for only where cacheable")


SOURCES.register("grey", lambda options, seed: GreySource(int(options.path), seed))
'''


@pytest.fixture
def grey(tmp_path, monkeypatch):
    """The module above, imported like a user's; the registry of sources is restored afterwards."""
    monkeypatch.setattr(SOURCES, "_entries", dict(SOURCES._entries))
    (tmp_path / "my_grey_clips.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("my_grey_clips")
    yield
    del sys.modules["my_grey_clips"]


def test_a_registered_source_is_loaded_with_and_without_workers(tools, grey):
    runs = []
    for workers in (0, 1):
        options = tools.options(source="grey", path="12", num_workers=workers)
        with make_loader(options, split="train", rule=tools.rule, seed=3) as loader:
            runs.append([next(loader) for _ in range(3)])
            names = [clip.path for clip in loader.index]
            assert loader.labels == ("dark", "light")
    for batch, other in zip(*runs, strict=True):
        np.testing.assert_array_equal(batch["video"], other["video"])
        for row, level in zip(batch["clip"], batch["video"][:, 0, 0, 0, 0], strict=True):
            assert level == 10 * int(names[row]) + 3
        assert batch["caption"] == [f"grey {names[row]}" for row in batch["clip"]]


def test_a_source_that_nobody_registered_is_named(tools, grey):
    with pytest.raises(VidlatentError, match=r"data.source = 'gray': did you mean 'grey'\?"):
        make_index(tools.options(source="gray"))
