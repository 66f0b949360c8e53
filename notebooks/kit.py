"""What the notebooks share: the device and sizes for it, a clip, videos and pictures inline.

``VIDLATENT_NOTEBOOK_SMALL=1`` makes every size so small that a notebook runs in a test, and
``VIDLATENT_NOTEBOOK_RUNS`` is the folder that they write to (``runs/notebooks``).
"""

from __future__ import annotations

import base64
import html
import itertools
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging
from IPython.display import HTML, Image, display

from vidlatent.data.sources.samples import SamplesSource
from vidlatent.media.decode import iter_frames
from vidlatent.media.write import write_video
from vidlatent.parallel.compilation import keep_compiled
from vidlatent.report.curves import run_curves, write_curves

__all__ = ["SMALL", "choose", "clip", "folder", "play", "sample_clip", "show_curves", "start"]

SMALL = os.environ.get("VIDLATENT_NOTEBOOK_SMALL") == "1"
_SHOWN_HEIGHT = 240  # of a video inline; small ones are enlarged
_T = TypeVar("_T")


def start(seed_folder: str) -> Path:
    """Say what this machine is, log what happens below the cells, and return a folder for runs."""
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold("info")
    keep_compiled()
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit", 0)
    size = f", {memory / 2**30:.0f} GiB each" if memory else f", {os.cpu_count()} cores"
    print(
        f"{jax.device_count()} x {device.device_kind} ({device.platform}){size}; JAX {jax.__version__}"
    )
    print(f"sizes for: {_kind()}")
    return folder(seed_folder)


def folder(name: str) -> Path:
    """A folder for what a notebook makes; what is there from before is used again."""
    path = Path(os.environ.get("VIDLATENT_NOTEBOOK_RUNS", "runs/notebooks")) / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def _kind() -> str:
    if SMALL:
        return "small"
    return "cpu" if jax.devices()[0].platform == "cpu" else "accelerator"


def choose(*, cpu: _T, accelerator: _T, small: _T) -> _T:
    """The value for the device that was found, or the small one of tests."""
    return {"cpu": cpu, "accelerator": accelerator, "small": small}[_kind()]


def sample_clip(name: str = "carphone_pristine.mp4") -> str:
    """One of the real clips of the extra ``demo``: a face in a car, which training never sees."""
    return SamplesSource().media(name)


def clip(path: str, frames: int, height: int) -> tuple[np.ndarray, float]:
    """The first ``frames`` of a video, at most ``height`` rows: uint8 [T, H, W, 3], and its rate."""
    info, _ = iter_frames(path)
    size = None
    if info.height > height:
        size = height, 2 * round(info.width * height / info.height / 2)
    info, found = iter_frames(path, size=size)
    return np.stack(list(itertools.islice(found, frames))), float(info.fps)


def play(*videos: Any, labels: Sequence[str] = (), fps: float = 8.0) -> None:
    """Videos, uint8 [T, H, W, 3], playing beside each other with their labels."""
    cells = []
    for video, label in itertools.zip_longest(videos, labels, fillvalue=""):
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "video.mp4"
            # Browsers smooth what they enlarge; whole pixels show what is there.
            factor = max(1, _SHOWN_HEIGHT // video.shape[1])
            write_video(path, video.repeat(factor, 1).repeat(factor, 2), fps, crf=23)
            data = base64.b64encode(path.read_bytes()).decode()
        cells.append(
            f'<figure style="display:inline-block;margin:4px"><video src="data:video/mp4;base64,'
            f'{data}" height="{_SHOWN_HEIGHT}" autoplay loop muted playsinline controls></video>'
            f"<figcaption>{html.escape(str(label))}</figcaption></figure>"
        )
    display(HTML("".join(cells)))


def show_picture(data: bytes | str | Path, width: int | None = None) -> None:
    """A picture inline, from a file or its bytes."""
    data = data if isinstance(data, bytes) else Path(data).read_bytes()
    display(Image(data=data, width=width))


def show_curves(workdir: Path, names: Sequence[str] = ()) -> None:
    """Curves of a run; those whose names begin with one of ``names``, or all."""
    found = run_curves(workdir)
    if names:
        found = {name: curve for name, curve in found.items() if name.startswith(tuple(names))}
    with tempfile.TemporaryDirectory() as place:
        write_curves(found, f"{place}/curves.png", columns=3)
        show_picture(f"{place}/curves.png")


def forget(path: Path) -> None:
    """Remove a run, to begin it anew."""
    shutil.rmtree(path, ignore_errors=True)
