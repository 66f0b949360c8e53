"""The report of a generator's evaluation: scores as JSON and an HTML page."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from vidlatent.config import config_hash
from vidlatent.evaluate.generator_loss import GeneratorScores
from vidlatent.evaluate.layer_memory import LayerMemory
from vidlatent.files import write_json
from vidlatent.report.page import write_report
from vidlatent.report.writers import read_metrics

__all__ = ["write_generator_report"]


def write_generator_report(
    result: GeneratorScores,
    folder: Path,
    *,
    config: ConfigDict,
    step: int,
    workdir: Path,
    sheet: bytes = b"",
    memory: LayerMemory | None = None,
    given: bytes = b"",
) -> list[str]:
    """Write ``scores.json``, ``report.html`` and, with a sheet of samples, ``contact_sheet.png``.

    With ``memory`` also ``layer_memory.png``, its largest weights; the mean ones are in the report.
    With ``given``, a picture of what a refiner is given, ``given.png``.

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
    if given:
        sheets.append(("What the refiner is given in training", given))
        names.append("given.png")
        (folder / names[-1]).write_bytes(given)
    write_json(folder / "scores.json", scores)
    found = read_metrics(workdir / "metrics.jsonl")
    write_report(
        folder / "report.html",
        title=f"{config.name} ({config.preset}) at step {step}",
        scores=result.scores,
        tables={result.about_levels: result.levels},
        sheets=sheets,
        curves={name: found[name] for name in result.curves if name in found},
        config=config.to_dict(),
    )
    if sheet:
        (folder / "contact_sheet.png").write_bytes(sheet)
    return names
