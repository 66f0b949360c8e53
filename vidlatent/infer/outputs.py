"""What an evaluation leaves behind: scores as JSON, a page with pictures, side-by-side videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vidlatent.config import config_hash
from vidlatent.infer.evaluate import METRICS, Evaluation, Picture
from vidlatent.infer.report import write_report
from vidlatent.io.pictures import contact_sheet
from vidlatent.io.video import side_by_side, write_video
from vidlatent.io.writers import read_metrics

__all__ = ["pictures_sheet", "write_evaluation"]


def write_evaluation(
    result: Evaluation, folder: Path, *, config: ConfigDict, step: int, workdir: Path
) -> None:
    """Write ``scores.json``, ``report.html``, ``contact_sheet.png`` and side-by-side videos."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = {
        "step": step,
        "config": config_hash(config),
        "model": config.model.to_dict(),
        "scores": result.scores,
        "by_frame_position": result.positions,
        "by_clip": result.clips,
    }
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    shown = []
    if result.pictures:
        sheet = pictures_sheet(result.pictures)
        (folder / "contact_sheet.png").write_bytes(sheet)
        shown.append(("Frames of validation clips, reconstruction under original", sheet))
    for number, picture in enumerate(result.pictures):
        file = folder / f"side_by_side_{number}.mp4"
        write_video(file, side_by_side(picture.original, picture.reconstruction), picture.fps)
        shown.append((f"{picture.label}: original and reconstruction", file.read_bytes()))
    write_report(
        folder / "report.html",
        title=f"{config.name} ({config.preset}) at step {step}",
        scores=result.scores,
        tables=_tables(result),
        sheets=shown,
        curves=_curves(workdir),
        config=config.to_dict(),
    )


def pictures_sheet(pictures: list[Picture]) -> bytes:
    """PNG with each clip's reconstruction under its original."""
    rows, labels = [], []
    for picture in pictures:
        rows += [picture.original, picture.reconstruction]
        labels += [picture.label, "reconstruction"]
    return contact_sheet(rows, labels)


def _tables(result: Evaluation) -> dict[str, list[dict[str, Any]]]:
    positions = [
        {"frame": frame, **{name: result.positions[name][frame] for name in METRICS}}
        for frame in range(len(result.positions["psnr"]))
    ]
    return {"Scores by clip": result.clips, "Scores by frame position": positions}


def _curves(workdir: Path) -> dict[str, tuple[list[int], list[float]]]:
    """The curves worth a look: scores, and how training went."""
    curves = read_metrics(workdir / "metrics.jsonl")
    wanted = [f"val/{name}" for name in METRICS]
    wanted += [f"train/{name}" for name in ("loss", "grad_norm", "lr", "data_wait_share")]
    return {name: curves[name] for name in wanted if name in curves}
