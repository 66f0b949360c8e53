"""The report of a tokenizer's evaluation: scores as JSON, an HTML page, side-by-side videos."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vidlatent.config import config_hash, describe_data
from vidlatent.evaluate.latent_statistics import latent_sheet
from vidlatent.evaluate.tokenizer import ClipPair, Evaluation
from vidlatent.files import write_json
from vidlatent.media.sheets import contact_sheet, encode_picture, enlarge
from vidlatent.media.write import side_by_side, write_video
from vidlatent.models.load import abstract_params, model_of
from vidlatent.report.curves import run_curves
from vidlatent.report.page import write_report

__all__ = [
    "RESIZED",
    "make_group_rows",
    "make_pictures_sheet",
    "make_position_rows",
    "write_evaluation",
    "write_side_by_side",
]

_GAIN = 4.0  # of the differences on the contact sheet
_LEAST_WIDTH = 256  # of a video beside another one, in pixels
_SLICE_WIDTH = 512
# What each ``config.data.resize`` does, in words.
RESIZED = {
    "area": "scaled to cover the size (area-averaged when smaller, bicubic when larger), cut in "
    "the middle",
    "bilinear": "scaled to cover the size (bilinearly, with antialiasing), cut in the middle",
}


def write_evaluation(
    result: Evaluation, folder: Path, *, config: ConfigDict, step: int, workdir: Path
) -> None:
    """Write ``scores.json``, ``report.html``, ``contact_sheet.png`` and ``side_by_side_<n>.mp4``.

    If the evaluation looked at latents, also ``latent_channels_<n>.png``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores = {
        "step": step,
        "config": config_hash(config),
        "model": config.model.to_dict(),
        "windows": _describe_windows(config),
        "scores": result.scores,
        "definitions": result.definitions,
        "by_frame_position": result.positions,
        "by_clip": result.clips,
        **_groups_and_latents(result),
    }
    write_json(folder / "scores.json", scores)
    shown = []
    if result.pictures:
        sheet = make_pictures_sheet(result.pictures)
        (folder / "contact_sheet.png").write_bytes(sheet)
        shown.append(
            (f"Frames of validation clips; differences are {_GAIN:g} times as large", sheet)
        )
        slices = encode_picture(draw_time_slices(result.pictures))
        (folder / "time_slices.png").write_bytes(slices)
        shown.append(
            (
                "The middle row of pixels over time, downwards: original, reconstruction. Flicker "
                "shows as stripes across",
                slices,
            )
        )
    for number, picture in enumerate(result.pictures):
        moving = write_side_by_side(folder / f"side_by_side_{number}.mp4", picture)
        shown.append((f"{picture.label}: original and reconstruction", moving))
    shown += _write_latent_sheets(result, folder)
    write_report(
        folder / "report.html",
        title=f"{config.name} ({config.preset}) at step {step}",
        subtitle=_describe_tokenizer(config),
        scores=result.scores,
        tables=_make_tables(result, scores),
        sheets=shown,
        curves=run_curves(workdir),
        config=config.to_dict(),
    )


def _describe_tokenizer(config: ConfigDict) -> str:
    """Compression, size and data, for the head of the page."""
    model = model_of(config)
    spec = model.latent_spec
    pixels = spec.t * spec.h * spec.w
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(model)))
    return (
        f"{spec.t}x{spec.h}x{spec.w} pixels to {spec.channels} numbers: one latent value for "
        f"{3 * pixels / spec.channels:.4g} RGB values of a long clip; {count / 1e6:.3g} million "
        f"parameters; data: {describe_data(config.data)}"
    )


def _describe_windows(config: ConfigDict) -> dict[str, Any]:
    """Which frames were scored, and how they were brought to their size."""
    return {
        "frames_height_width": [list(bucket[:3]) for bucket in config.data.buckets],
        "frames_per_second": config.data.fps or "each file's own",
        "frame_stride": 1,
        "resize": RESIZED[config.data.resize],
    }


def make_pictures_sheet(pictures: list[ClipPair]) -> bytes:
    """PNG with each clip's reconstruction under its original."""
    rows, labels = [], []
    for picture in pictures:
        rows += [picture.original, picture.reconstruction]
        labels += [picture.label, "reconstruction"]
    return contact_sheet(rows, labels, difference=_GAIN)


def draw_time_slices(pictures: list[ClipPair]) -> np.ndarray:
    """The middle row of each clip over time, time downwards; uint8 ``[rows, columns, 3]``.

    Original and reconstruction are side by side, clips below each other, all enlarged by whole
    factors to about ``_SLICE_WIDTH`` pixels.
    """
    strips = []
    for picture in pictures:
        both = [
            video[:, video.shape[1] // 2] for video in (picture.original, picture.reconstruction)
        ]
        gap = np.full((len(both[0]), 1, 3), 255, np.uint8)
        strip = np.concatenate([both[0], gap, both[1]], axis=1)  # [T, 2 W + 1, 3]
        times = max(1, _SLICE_WIDTH // strip.shape[1])
        strips.append(enlarge(strip, times))
    width = max(strip.shape[1] for strip in strips)
    padded = [
        np.pad(s, ((0, 8), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips
    ]
    return np.concatenate(padded)


def _groups_and_latents(result: Evaluation) -> dict[str, Any]:
    """The parts of ``scores.json`` that only some evaluations have."""
    parts: dict[str, Any] = {}
    if result.group_positions:
        parts["by_group_position"] = result.group_positions
    if result.latents is not None:
        parts["latent"] = result.latents.statistics()
        dimension = result.latents.intrinsic_dimension()
        if dimension:
            parts["intrinsic_dimension"] = dimension
    return parts


def _write_latent_sheets(result: Evaluation, folder: Path) -> list[tuple[str, bytes]]:
    sheets = []
    for number, picture in enumerate(result.pictures):
        if picture.latent is None or result.latents is None:
            continue
        sheet = latent_sheet(picture.latent, picture.original, result.latents.spec, picture.label)
        (folder / f"latent_channels_{number}.png").write_bytes(sheet)
        caption = f"{picture.label}: latent channels, each map stretched from black to white"
        sheets.append((caption, sheet))
    return sheets


def _make_tables(result: Evaluation, scores: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    tables = {
        "Scores by clip": result.clips,
        "Scores by frame position": make_position_rows(result),
    }
    if "by_group_position" in scores:
        tables["Scores by place in the frame group"] = make_group_rows(scores["by_group_position"])
    if "intrinsic_dimension" in scores:
        tables["Intrinsic dimension of latents"] = scores["intrinsic_dimension"]
    if "latent" in scores:
        latent = scores["latent"]
        whole = {"channel": "all", "mean": latent["mean"], "std": latent["std"]}
        heading = f"Latents of {latent['clips']} clips, {latent['n']} values a channel"
        tables[heading] = [whole, *latent["by_channel"]]
    return tables


def write_side_by_side(file: Path, picture: ClipPair) -> bytes:
    """Write original and reconstruction of a clip, left and right, as an MP4; returns its bytes.

    Small ones are enlarged by whole factors: browsers would blur their pixels and captions.
    """
    times = max(1, _LEAST_WIDTH // picture.original.shape[2])
    both = (enlarge(video, times) for video in (picture.original, picture.reconstruction))
    write_video(file, side_by_side(*both), picture.fps)
    return file.read_bytes()


def make_position_rows(result: Evaluation) -> list[dict[str, Any]]:
    """``Evaluation.positions`` as rows of a table: one a frame, with every metric."""
    return [
        {"frame": frame, **{name: values[frame] for name, values in result.positions.items()}}
        # PSNR is always there, so its length is the number of frames of the longest window.
        for frame in range(len(result.positions["psnr"]))
    ]


def make_group_rows(groups: dict[str, Any]) -> list[dict[str, Any]]:
    """``Evaluation.group_positions`` as rows of a table: one a place in the frame group."""
    names = [name for name in ("psnr", "ssim", "n") if name in groups]
    rows = [
        {"place": str(place + 1), **{name: groups[name][place] for name in names}}
        for place in range(len(groups["n"]))
    ]
    return [
        *rows,
        {"place": "max margin", **{n: groups[f"{n}_max_margin"] for n in names if n != "n"}},
    ]
