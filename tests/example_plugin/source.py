"""A source of clips: plain colours that grow brighter."""

import numpy as np

from vidlatent.data.sources.base import Entry
from vidlatent.media.pictures import AREA
from vidlatent.media.probe import ClipInfo

FRAMES, SIDE, FPS = 9, 16, 8.0


def make(options, seed):
    return ExampleSource(options.synthetic.clips, seed)


class ExampleSource:
    where = "the example source"
    cacheable = False
    resize = AREA

    def __init__(self, clips, seed):
        self.clips, self.seed = clips, seed

    def entries(self):
        names = [f"colour-{i:03d}" for i in range(self.clips)]
        return [Entry(name, name, (self.seed,)) for name in names]

    def probe(self, name, limits):
        return ClipInfo(name, FRAMES, FPS, SIDE, SIDE, FRAMES / FPS, False)

    def verify(self, name, limits):
        pass

    def labels(self):
        return ()

    def describe(self, name):
        return "", ""

    def read(self, info, start, count, fps, size, crop, limits):
        height, width = size or (SIDE, SIDE)
        colour = np.random.default_rng([self.seed, int(info.path[-3:])]).integers(0, 128, 3)
        first = round(start * FPS)
        frames = colour + 10 * np.arange(first, first + count)[:, None]
        whole = np.broadcast_to(frames[:, None, None], (count, height, width, 3))
        return whole.astype(np.uint8)
