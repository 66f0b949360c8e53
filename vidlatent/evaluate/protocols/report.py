"""What a protocol leaves behind: JSON, a Markdown table beside the paper's figures, a page.

Columns of measurements are headed "measured here", columns of figures "paper:"; no column holds
both.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vidlatent.config import config_hash
from vidlatent.evaluate.outputs import RESIZED, group_rows
from vidlatent.evaluate.protocols.definitions import Measure, Protocol
from vidlatent.evaluate.protocols.figures import Row
from vidlatent.evaluate.tokenizer import Evaluation, Picture
from vidlatent.media.sheets import contact_sheet
from vidlatent.media.write import side_by_side, write_video
from vidlatent.report.page import write_report
from vidlatent.report.tables import markdown_table
from vidlatent.spec import LatentSpec

__all__ = ["Outcome", "write_outcome"]

_CAUTION = (
    "The paper's figures were measured by its authors on the clips named above them; they compare "
    "with the measured column only as far as this folder holds the same clips."
)
_UNTRAINED = (
    "Scores with _random in their name looked through untrained networks and mean nothing; no "
    "figure of the paper stands beside them."
)


@dataclasses.dataclass
class Outcome:
    """A protocol carried out.

    Attributes:
      protocol, measures: what was asked, and the scores that were not left out.
      result: the evaluation of all clips.
      names: score as asked for -> name it is reported under.
      spec: latent of the measured model.
      step: of its checkpoint.
      where: folder or source of the clips.
      found: usable clips there, of which all or an even selection was scored.
      bad: clips left out: path, reason, detail.
      pictures: word ('best', 'median', 'worst') -> clip, on the main process.
    """

    protocol: Protocol
    measures: Sequence[Measure]
    result: Evaluation
    names: Mapping[str, str]
    spec: LatentSpec
    step: int
    where: str
    found: int
    bad: Sequence[tuple[str, str, str]]
    pictures: Mapping[str, Picture]


def write_outcome(outcome: Outcome, folder: Path, config: ConfigDict) -> None:
    """Write ``<protocol>.json``, ``<protocol>.md``, ``report.html`` and the pictures.

    Of the best, the median and the worst clip by PSNR: ``<word>.mp4``, original and reconstruction
    side by side, and ``<word>.png``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = outcome.protocol.name
    about = _about(outcome, config)
    (folder / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")
    (folder / f"{name}.md").write_text(_markdown(outcome, config))
    shown = []
    for word, picture in outcome.pictures.items():
        caption = f"{word.capitalize()} clip by PSNR: {picture.label}"
        rows = [picture.original, picture.reconstruction]
        sheet = contact_sheet(rows, ["original", "reconstruction"])
        (folder / f"{word}.png").write_bytes(sheet)
        file = folder / f"{word}.mp4"
        write_video(file, side_by_side(picture.original, picture.reconstruction), picture.fps)
        shown += [(caption, sheet), (f"{caption}, moving", file.read_bytes())]
    write_report(
        folder / "report.html",
        title=f"{config.name} ({config.preset}) at step {outcome.step} by {name}",
        subtitle=f"{outcome.protocol.source}; {_clips(outcome)}. {_cautions(outcome)}",
        scores=outcome.result.scores,
        tables=_tables(outcome),
        sheets=shown,
        config=config.to_dict(),
    )


def _about(outcome: Outcome, config: ConfigDict) -> dict[str, Any]:
    protocol, result = outcome.protocol, outcome.result
    left_out = [m.name for m in protocol.measures if m not in outcome.measures]
    return {
        "protocol": {
            "name": protocol.name,
            "source": protocol.source,
            "frames": list(protocol.frames),
            "chunk_frames": protocol.chunk,
            "frame_stride": 1,
            "frames_per_second": protocol.fps or "each file's own",
            "window": "first frames" if protocol.place == 0 else "middle frames",
            "height": protocol.size[0],
            "width": protocol.size[1],
            "resize": RESIZED[protocol.resize],
            "latent": "a draw from the posterior" if protocol.draw else "the posterior's mean",
            "not_stated_by_the_paper": list(protocol.open),
        },
        "measured": {
            "model": config.model.to_dict(),
            "config": config_hash(config),
            "step": outcome.step,
            "clips_from": outcome.where,
            "clips": result.scores["clips"],
            "clips_found": outcome.found,
            "scores": result.scores,
            "definitions": result.definitions,
        },
        "left_out": {"scores": left_out, "clips": [list(bad) for bad in outcome.bad]},
        "paper": {
            "source": protocol.source,
            "caution": _CAUTION,
            "rows": [dataclasses.asdict(row) for row in protocol.figures],
        },
        "by_frame_position": result.positions,
        **({"by_group_position": result.group_positions} if result.group_positions else {}),
        "by_clip": result.clips,
    }


def _clips(outcome: Outcome) -> str:
    count = int(outcome.result.scores["clips"])
    of = f" of {outcome.found}" if count != outcome.found else ""
    return f"{count}{of} clip{'s' * (outcome.found > 1)} of {outcome.where}"


def _cautions(outcome: Outcome) -> str:
    random = any(map(_untrained, outcome.names.values()))
    return _CAUTION + " " + _UNTRAINED if random else _CAUTION


def _untrained(name: str) -> bool:
    return "_random" in name


def _measured_head(outcome: Outcome) -> str:
    count = int(outcome.result.scores["clips"])
    return f"measured here ({count} clip{'s' * (count > 1)})"


def _paper_head(row: Row) -> str:
    return f"paper: {row.model}, {row.data}"


def _compared(outcome: Outcome) -> list[dict[str, Any]]:
    """A row a score: its name, the measurement, and each chosen row of the paper by itself."""
    beside = outcome.protocol.beside(outcome.spec)
    lines = []
    for measure in outcome.measures:
        # Scores that one stand-in makes alike are measured, and shown, once.
        if measure.name not in outcome.names:
            continue
        name = outcome.names[measure.name]
        factor = f" x {measure.factor:g}" if measure.factor != 1 else ""
        line: dict[str, Any] = {"score": name + factor}
        line[_measured_head(outcome)] = _digits(outcome.result.scores[name] * measure.factor)
        line["paper's column"] = measure.heading or None
        known = measure.heading if not _untrained(name) else ""
        line |= {_paper_head(row): _printed(row.values.get(known)) for row in beside}
        lines.append(line)
    return lines


def _paper_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    headings = list(dict.fromkeys(name for row in rows for name in row.values))
    notes = any(row.note for row in rows)
    return [
        {
            "paper: model": row.model,
            "clips": row.data,
            **{heading: _printed(row.values.get(heading)) for heading in headings},
            **({"note": row.note or None} if notes else {}),
        }
        for row in rows
    ]


def _tables(outcome: Outcome) -> dict[str, list[dict[str, Any]]]:
    result = outcome.result
    by_clip = sorted(result.clips, key=lambda row: row["psnr"])
    tables = {
        "Measured, beside the paper's own figures": _compared(outcome),
        f"The paper's own table, as printed: {outcome.protocol.source}": _paper_table(
            outcome.protocol.figures
        ),
        "What the paper leaves open, and what was done": [
            dict(zip(("what", "done"), line.split(": ", 1), strict=True))
            for line in outcome.protocol.open
        ],
        "How each score is defined": [
            {"score": name, "definition": _words(about)}
            for name, about in result.definitions.items()
        ],
        "Scores by clip, worst first": by_clip,
        "Scores by frame position": [
            {"frame": frame, **{name: values[frame] for name, values in result.positions.items()}}
            for frame in range(len(result.positions["psnr"]))
        ],
    }
    if result.group_positions:
        tables["Scores by place in the frame group"] = group_rows(result.group_positions)
    if outcome.bad:
        tables["Clips left out"] = [
            dict(zip(("clip", "reason", "detail"), bad, strict=True)) for bad in outcome.bad
        ]
    return tables


def _words(about: Mapping[str, Any]) -> str:
    return "; ".join(f"{key.replace('_', ' ')}: {_plain(value)}" for key, value in about.items())


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _digits(value: float) -> str:
    """A measurement with about four digits."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def _printed(value: float | None) -> str | None:
    """A paper's figure with the digits it has there, but for zeros at its end."""
    return None if value is None else f"{value:g}"


def _markdown(outcome: Outcome, config: ConfigDict) -> str:
    left_out = [m.name for m in outcome.protocol.measures if m not in outcome.measures]
    parts = [
        f"# {outcome.protocol.name}: {config.name} ({config.preset}) at step {outcome.step}",
        f"Protocol: {outcome.protocol.source}. Scored: {_clips(outcome)}.",
        markdown_table(_compared(outcome)),
        _cautions(outcome),
    ]
    if left_out:
        parts.append(f"Left out on request: {', '.join(left_out)}.")
    if outcome.bad:
        clips = "; ".join(f"{path} ({reason}: {detail})" for path, reason, detail in outcome.bad)
        parts.append(f"Clips left out: {clips}.")
    parts += [
        "## What the paper leaves open, and what was done",
        "\n".join(f"- {line}" for line in outcome.protocol.open),
        "## How each score is defined",
        "\n".join(f"- `{n}`: {_words(a)}" for n, a in outcome.result.definitions.items()),
        f"## The paper's own table, as printed: {outcome.protocol.source}",
        markdown_table(_paper_table(outcome.protocol.figures)),
    ]
    return "\n\n".join(parts) + "\n"
