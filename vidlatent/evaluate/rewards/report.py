"""The report of videos scored by rewards: JSON, a Markdown table, a page with the extremes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vidlatent.config import config_hash
from vidlatent.files import write_json, write_text
from vidlatent.media.sheets import contact_sheet
from vidlatent.report.page import write_report
from vidlatent.report.tables import markdown_table
from vidlatent.rewards import REWARDS, ChosenRewards

__all__ = ["Judged", "ScoredVideo", "pick_extremes", "write_rewards"]


@dataclasses.dataclass(frozen=True)
class ScoredVideo:
    """A video, what it was judged by, and its scores.

    Attributes:
      path: in its folder.
      prompt: '' for none.
      shape: frames, height and width that were judged.
      fps: 0 for a picture.
      scores: by the name that each is reported under.
    """

    path: str
    prompt: str
    shape: tuple[int, int, int]
    fps: float
    scores: dict[str, float]


@dataclasses.dataclass
class Judged:
    """The videos of a folder, scored.

    Attributes:
      where: the folder or source.
      videos: those that were scored, by their names.
      bad: those left out: path, reason, detail.
      shown: some frames ``[n, H, W, 3]`` uint8 of some of them, by path, on the main process.
    """

    where: str
    videos: list[ScoredVideo]
    bad: list[tuple[str, str, str]]
    shown: dict[str, np.ndarray]

    def means(self) -> dict[str, dict[str, float]]:
        """Score -> mean, standard deviation (n - 1) and standard error of the mean."""
        found = {}
        count = len(self.videos)
        for name in self.videos[0].scores:
            values = np.array([video.scores[name] for video in self.videos], np.float64)
            std = float(values.std(ddof=1)) if count > 1 else 0.0
            found[name] = {
                "mean": float(values.mean()),
                "std": std,
                "standard_error": std / math.sqrt(count),
            }
        return found


def write_rewards(
    judged: Sequence[Judged], rewards: ChosenRewards, folder: Path, config: ConfigDict
) -> list[Path]:
    """Write ``rewards.json``, ``rewards.md`` and ``report.html``; the files to look at."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("rewards.json", "rewards.md", "report.html")]
    # Numbers before pictures.
    write_json(files[0], _to_json(judged, rewards, config))
    table = _compare(judged)
    # A long row a video would be read by nobody: the table has one a folder.
    write_text(files[1], f"# Videos scored by rewards\n\n{markdown_table(table)}\n")
    tables: dict[str, list[dict[str, Any]]] = {"Means over the videos of each folder": table}
    for side in judged:
        tables[f"Videos of {side.where}"] = [_to_row(video) for video in side.videos]
        if side.bad:
            keys = ("video", "reason", "detail")
            left_out = [dict(zip(keys, row, strict=True)) for row in side.bad]
            tables[f"Left out of {side.where}"] = left_out
    tables["What each reward is"] = _define(rewards)
    (first, *_) = judged
    write_report(
        files[2],
        title="Videos scored by rewards",
        subtitle=f"{sum(len(side.videos) for side in judged)} videos. {_caution(judged)}".strip(),
        scores={name: found["mean"] for name, found in first.means().items()},
        tables=tables,
        sheets=[sheet for side in judged for sheet in _draw(side, config.eval.pictures)],
        config=config.to_dict(),
    )
    return files


def _to_json(
    judged: Sequence[Judged], rewards: ChosenRewards, config: ConfigDict
) -> dict[str, Any]:
    options = config.rewards.to_dict()
    return {
        "config": config_hash(config),
        "rewards": _define(rewards),
        "options": {name: options.get(name, {}) for name in rewards.rewards},
        "frames": config.eval.frames or "all",
        "folders": [
            {
                "videos_from": side.where,
                "scores": side.means(),
                "videos": [_to_row(video) for video in side.videos],
                "left_out": [list(row) for row in side.bad],
            }
            for side in judged
        ],
    }


def _define(rewards: ChosenRewards) -> list[dict[str, Any]]:
    return [
        {
            "reward": name,
            "scores": ", ".join(rewards.label(dict.fromkeys(reward.names))),
            "definition": REWARDS.get(name).definition,
            "reads": " and ".join(
                word
                for word, read in (
                    ("video", True),
                    ("prompt", reward.reads_prompt),
                    ("first frame (the video's own)", reward.reads_first),
                )
                if read
            ),
        }
        for name, reward in rewards.rewards.items()
    ]


def _to_row(video: ScoredVideo) -> dict[str, Any]:
    frames, height, width = video.shape
    about = {"video": video.path, "prompt": video.prompt, "frames": frames, "fps": video.fps}
    return about | {"size": f"{height}x{width}"} | video.scores


def _compare(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """A row a folder: mean and standard error of each score."""
    rows = []
    for side in judged:
        row: dict[str, Any] = {"folder": side.where, "videos": len(side.videos)}
        for name, found in side.means().items():
            row[name] = f"{found['mean']:.4g} ± {found['standard_error']:.2g}"
        rows.append(row)
    return rows


def _caution(judged: Sequence[Judged]) -> str:
    random = [name for name in judged[0].videos[0].scores if name.endswith("_random")]
    if not random:
        return ""
    return f"{', '.join(random)}: by random weights, so that the numbers mean nothing."


def pick_extremes(videos: Sequence[ScoredVideo], name: str, most: int) -> list[ScoredVideo]:
    """At most so many videos, those that score highest and lowest, best first."""
    order = sorted(videos, key=lambda video: -video.scores[name])
    worst = most // 2
    return order if len(order) <= most else [*order[: most - worst], *order[len(order) - worst :]]


def _draw(side: Judged, most: int) -> list[tuple[str, bytes]]:
    """For every score a sheet of the videos that it puts first and last."""
    sheets = []
    for name in side.videos[0].scores:
        rows = [v for v in pick_extremes(side.videos, name, most) if v.path in side.shown]
        if rows:
            labels = [f"{video.scores[name]:.4g}\n{video.path}\n{video.prompt}" for video in rows]
            frames = [side.shown[video.path] for video in rows]
            sheet = contact_sheet(frames, labels, group=len(rows), numbers=_name_places(frames))
            sheets.append((f"{side.where} by {name}, best first", sheet))
    return sheets


def _name_places(frames: Sequence[np.ndarray]) -> list[str]:
    """Where in its video each frame lies; [], and so its number, where videos have few frames."""
    (count, *others) = {len(video) for video in frames}
    return [] if others or count < 2 else [f"{i / (count - 1):.0%}" for i in range(count)]
