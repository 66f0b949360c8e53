"""What a generator leaves behind: an evaluation's report, and files of generated videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vidlatent.config import config_hash
from vidlatent.infer.generate_loss import GeneratorScores
from vidlatent.infer.generate_memory import LayerMemory
from vidlatent.infer.report import write_report
from vidlatent.io.writers import read_metrics

__all__ = ["video_name", "write_generator_report"]

_CURVES = ("val/loss", "train/loss", "train/grad_norm", "train/lr", "train/data_wait_share")
_LONGEST, _VBENCH_LONGEST = 200, 240  # bytes of a file name, its ending excluded


def write_generator_report(
    result: GeneratorScores,
    folder: Path,
    *,
    config: ConfigDict,
    step: int,
    workdir: Path,
    sheet: bytes = b"",
    memory: LayerMemory | None = None,
) -> list[str]:
    """Write ``scores.json``, ``report.html`` and, with a sheet of samples, ``contact_sheet.png``.

    With ``memory`` also ``layer_memory.png``, its largest weights; the mean ones are in the report.

    Returns the names of the files to look at.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores = {
        "step": step,
        "config": config_hash(config),
        "generator": config.generator.to_dict(),
        "scores": result.scores,
        "definitions": result.definitions,
        "by_level": result.levels,
        "by_clip": result.clips,
    }
    sheets = [("Samples under the conditions of validation clips", sheet)] if sheet else []
    names = ["report.html"] + ["contact_sheet.png"] * bool(sheet)
    if memory is not None:
        scores["layer_memory"] = memory.to_json()
        pictures = memory.pictures()
        sheets += list(pictures.items())
        names.append("layer_memory.png")
        (folder / names[-1]).write_bytes(next(iter(pictures.values())))
    (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    found = read_metrics(workdir / "metrics.jsonl")
    write_report(
        folder / "report.html",
        title=f"{config.name} ({config.preset}) at step {step}",
        scores=result.scores,
        tables={"Loss by noise level, from clean to noise": result.levels},
        sheets=sheets,
        curves={name: found[name] for name in _CURVES if name in found},
        config=config.to_dict(),
    )
    if sheet:
        (folder / "contact_sheet.png").write_bytes(sheet)
    return names


def video_name(prompt: str, number: int, taken: set[str], *, vbench: bool = False) -> str:
    """A file name for video ``number`` of a prompt; adds it to ``taken``.

    As VBench's scripts look for it, ``<prompt>-<number>.mp4`` with the prompt as it is (slashes,
    which no file may have, become blanks); else in lower case with plain characters.
    """
    text = prompt.replace("/", " ").replace("\0", " ")
    if not vbench:
        kept = "".join(c if c.isalnum() else "_" for c in text.casefold())
        text = "_".join(filter(None, kept.split("_"))) or "sample"
    longest = _VBENCH_LONGEST if vbench else _LONGEST
    text = text.encode()[:longest].decode(errors="ignore")
    name, again = f"{text}-{number}.mp4", 0
    while name in taken:
        again += 1
        name = f"{text}-{number}.{again}.mp4"
    taken.add(name)
    return name


def settings(config: ConfigDict, **more: Any) -> dict[str, Any]:
    """Everything that decides what was generated, fit for JSON."""
    return {
        "system": config.name,
        "preset": config.preset,
        "config": config_hash(config),
        "generator": config.generator.to_dict(),
        "schedule": config.diffusion.schedule.to_dict(),
        "sampler": config.sampler.to_dict(),
        "sample": config.sample.to_dict(),
        **more,
        "all_keys": config.to_dict(),
    }
