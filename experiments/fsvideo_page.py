"""What ``fsvideo_demo`` measures of a cascade's videos, and its page.

Each video is compared with the clip whose first frame it was given. A label says where a shape
goes, not how fast: no model can meet the real continuation exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.generator_demo import ASPECTS, accuracy_rows, measure_label_accuracy
from vidlatent.files import write_json
from vidlatent.media.sheets import contact_sheet, encode_picture
from vidlatent.media.write import write_video
from vidlatent.metrics.psnr import psnr
from vidlatent.report.page import GalleryVideo, write_report
from vidlatent.report.tables import markdown_table

__all__ = ["Clip", "measure", "measure_gradient", "measure_videos", "show"]

_SHOWN = 6  # clips on the page
_ZOOM = 3  # of its videos
_FPS = 8.0


@dataclasses.dataclass(frozen=True)
class Clip:
    """An unseen clip and what was made of its first frame, all uint8 ``[T, H, W, 3]``.

    Attributes:
      label: of the clip.
      real, real_small: the clip at both sizes.
      base: the base model's video, of the small size.
      bicubic: the same, enlarged.
      cascade: the refined video.
      restored: the clip, coded and decoded by the tokenizer.
    """

    label: str
    real: np.ndarray
    real_small: np.ndarray
    base: np.ndarray
    bicubic: np.ndarray
    cascade: np.ndarray
    restored: np.ndarray

    @property
    def still(self) -> np.ndarray:
        """The given frame, repeated: what a model that ignores the label might make."""
        return np.broadcast_to(self.real[:1], self.real.shape)


# Name on the page -> video, and the clip of its size.
_KINDS = {
    "base": ("base", "real_small"),
    "base + bicubic": ("bicubic", "real"),
    "cascade": ("cascade", "real"),
    "real clip": ("real", "real"),
    "real, through the tokenizer": ("restored", "real"),
    "given frame, repeated": ("still", "real"),
}


def measure_gradient(video: np.ndarray) -> float:
    """Root mean square of differences between neighbouring pixels; blur lowers it, noise raises it.

    Args:
      video: uint8 ``[T, H, W, 3]``.
    """
    grey = np.asarray(video, np.float64).mean(-1)
    squares = [np.square(np.diff(grey, axis=axis)).mean() for axis in (1, 2)]
    return float(np.sqrt(np.mean(squares)))


def measure(clips: Sequence[Clip]) -> dict[str, dict[str, Any]]:
    """For each kind of video: label accuracy, and ``psnr`` and ``sharpness`` by clip.

    PSNR is the mean over frames after the given one; the real clip has none. Sharpness is
    ``measure_gradient`` there, over that of the real clip of the same size.
    """
    found = {}
    for kind, (name, rival) in _KINDS.items():
        videos = [getattr(clip, name) for clip in clips]
        found[kind] = measure_videos(videos, clips, rival)
        if name == rival:  # a clip against itself says nothing
            del found[kind]["psnr"]
    return found


def measure_videos(
    videos: Sequence[np.ndarray], clips: Sequence[Clip], rival: str = "real"
) -> dict[str, Any]:
    """What ``measure`` says of one kind: of ``videos`` against ``rival`` of the clips."""
    labelled = [(clip.label, video) for clip, video in zip(clips, videos, strict=True)]
    real = [getattr(clip, rival) for clip in clips]
    pairs = list(zip(videos, real, strict=True))
    return {
        **measure_label_accuracy(labelled),
        "size": "x".join(map(str, videos[0].shape[:3])),
        "sharpness": [measure_gradient(a[1:]) / measure_gradient(b[1:]) for a, b in pairs],
        "psnr": [float(psnr(a[None, 1:], b[None, 1:]).mean()) for a, b in pairs],
    }


def _table(found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = list(accuracy_rows(found))
    for row in rows:
        kind = found.get(row["videos"])
        row["PSNR"] = "" if kind is None or "psnr" not in kind else _mean(kind["psnr"], " dB")
        row["sharpness"] = "" if kind is None else _mean(kind["sharpness"])
        row["size"] = "" if kind is None else kind["size"]
    return rows


def _mean(values: Sequence[float], unit: str = "") -> str:
    error = np.std(values) / np.sqrt(len(values))
    return f"{np.mean(values):.2f} ± {error:.2f}{unit}"


def show(
    folder: Path,
    clips: Sequence[Clip],
    facts: dict[str, Any],
    config: ConfigDict,
    students: Mapping[str, Sequence[np.ndarray]],
) -> None:
    """Write ``result.json``, ``table.md``, the contact sheet and ``report.html``; print the table.

    Args:
      facts: about the run, for ``result.json``; ``steps`` and ``seconds`` are on the page.
      config: the refiner's.
      students: videos of the refiner and of its students, for the first of the clips.
    """
    found = measure(clips)
    few = {kind: measure_videos(v, clips[: len(v)]) for kind, v in students.items()}
    write_json(folder / "result.json", {**facts, "measures": found, "students": few})
    table = _table(found)
    (folder / "table.md").write_text(markdown_table(table) + "\n")
    shown = clips[:: max(1, len(clips) // _SHOWN)][:_SHOWN]
    sheet = _draw_sheet(shown)
    (folder / "contact_sheet.png").write_bytes(sheet)
    cascade = found["cascade"]
    write_report(
        folder / "report.html",
        title="FSVideo's cascade: a picture and a label to a refined video",
        subtitle=f"{len(clips)} first frames of unseen clips, one video each; a single run. A "
        "label tells where a shape goes, not how fast: PSNR to the real continuation has a limit.",
        scores={
            "cascade: label matches": cascade["all"]["share"],
            "cascade: PSNR (dB)": float(np.mean(cascade["psnr"])),
            "base + bicubic: PSNR (dB)": float(np.mean(found["base + bicubic"]["psnr"])),
            "cascade: sharpness": float(np.mean(cascade["sharpness"])),
            "videos": len(clips),
        },
        gallery=_write_gallery(folder / "videos", shown, clips, cascade["rows"]),
        sheets=[
            ("Frame 0 of the real clip was given", sheet),
            ("The refiner and its students, in few steps", _draw_students(clips, students)),
        ],
        tables={
            "Label matches (colour, shape, direction as read from the video), PSNR to the real "
            "clip after frame 0, sharpness relative to it (± one standard error)": table,
            "The refiner and what is distilled from it, at the same number of evaluations": (
                _table(few)
            ),
            "Training, and seconds measured here (summed over interrupted runs)": (
                _list_stages(facts)
            ),
        },
        config=config.to_dict(),
    )
    print((folder / "table.md").read_text())
    print(markdown_table(_table(few)) + "\n")
    print(f"look at {folder / 'report.html'} and {folder / 'contact_sheet.png'}")


def _list_stages(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "part": name,
            "steps": facts["steps"].get(name),
            "seconds": seconds["wall"],
            "processor seconds": seconds["processor"],
        }
        for name, seconds in facts["seconds"].items()
    ]


def _draw_sheet(clips: Sequence[Clip]) -> bytes:
    rows, labels = [], []
    for clip in clips:
        for kind in ("base", "base + bicubic", "cascade", "real clip"):
            video = getattr(clip, _KINDS[kind][0])
            if kind == "base":
                # Each pixel twice, so that all rows share the columns of their frames.
                video = video.repeat(2, axis=1).repeat(2, axis=2)
            rows.append(video)
            labels.append(f"{kind}\n{clip.label}")
    return contact_sheet(rows, labels, cell=96, columns=9, group=4)


def _draw_students(clips: Sequence[Clip], students: Mapping[str, Sequence[np.ndarray]]) -> bytes:
    """For three of the clips: the refiner's video, its students', and the clip."""
    count = len(next(iter(students.values())))
    rows, labels = [], []
    for index in range(0, count, max(1, -(-count // 3))):
        for kind, videos in {**students, "real clip": [clip.real for clip in clips]}.items():
            rows.append(videos[index])
            labels.append(f"{kind.replace(': ', chr(10))}\n{clips[index].label}")
    return contact_sheet(rows, labels, cell=96, columns=9, group=len(students) + 1)


def _write_gallery(
    folder: Path,
    shown: Sequence[Clip],
    clips: Sequence[Clip],
    rows: Sequence[Mapping[str, Any]],
) -> list[GalleryVideo]:
    """Videos ``base + bicubic | cascade | real clip``, each beside the frame that was given."""
    folder.mkdir(parents=True, exist_ok=True)
    gallery = []
    for clip in shown:
        row = rows[next(i for i, other in enumerate(clips) if other is clip)]
        read = ", ".join(row["read"][name] or "?" for name in ASPECTS)
        file = folder / f"{len(gallery)}-{clip.label.replace(' ', '_')}.mp4"
        write_video(file, _set_side_by_side(clip), _FPS)
        gallery.append(
            GalleryVideo(
                f"{folder.name}/{file.name}",
                clip.label,
                f"base + bicubic | cascade | real clip; the cascade's reads as: {read}",
                encode_picture(clip.real[0]),
            )
        )
    return gallery


def _set_side_by_side(clip: Clip) -> np.ndarray:
    """uint8 ``[T, H, W, 3]``, enlarged by repetition so that players do not blur it."""
    line = np.full((*clip.real.shape[:2], 2, 3), 255, np.uint8)
    whole = np.concatenate([clip.bicubic, line, clip.cascade, line, clip.real], axis=2)
    return whole.repeat(_ZOOM, axis=1).repeat(_ZOOM, axis=2)
