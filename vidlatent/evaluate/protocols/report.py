"""The report of a protocol: JSON, a Markdown table next to the paper's numbers, an HTML page.

Columns of our scores are headed "measured here", columns of the paper's numbers "paper:". No column
mixes the two.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vidlatent.config import config_hash
from vidlatent.evaluate.protocols.definitions import Protocol, ProtocolMetric
from vidlatent.evaluate.protocols.paper_tables import PaperRow
from vidlatent.evaluate.tokenizer import ClipPair, Evaluation
from vidlatent.evaluate.tokenizer_report import (
    RESIZED,
    make_group_rows,
    make_position_rows,
    write_side_by_side,
)
from vidlatent.files import write_json
from vidlatent.media.sheets import contact_sheet
from vidlatent.report.page import write_report
from vidlatent.report.tables import markdown_table
from vidlatent.spec import LatentSpec

__all__ = ["ProtocolResult", "write_protocol_report"]

_CAUTION = (
    "The paper's figures were measured by its authors on the clips named above them; they compare "
    "with the measured column only as far as this folder holds the same clips."
)
_UNTRAINED = (
    "Scores with _random in their name looked through untrained networks and mean nothing; no "
    "figure of the paper stands beside them."
)


@dataclasses.dataclass
class ProtocolResult:
    """What came of a protocol.

    Attributes:
      protocol: what was asked for.
      metrics: those of its metrics that ``config.eval.leave_out`` does not name.
      evaluation: the scores of all clips.
      names: metric as asked for -> name its score is reported under.
      spec: latent of the measured model.
      step: of its checkpoint.
      where: folder or source of the clips.
      found: number of usable clips there; all of them, or an even selection, were scored.
      bad: clips left out: path, reason, detail.
      pictures: 'best', 'median' and 'worst' -> clip, on the main process.
    """

    protocol: Protocol
    metrics: Sequence[ProtocolMetric]
    evaluation: Evaluation
    names: Mapping[str, str]
    spec: LatentSpec
    step: int
    where: str
    found: int
    bad: Sequence[tuple[str, str, str]]
    pictures: Mapping[str, ClipPair]


def write_protocol_report(result: ProtocolResult, folder: Path, config: ConfigDict) -> None:
    """Write ``<protocol>.json``, ``<protocol>.md``, ``report.html`` and the pictures.

    The pictures are those of the clips with the best, the median and the worst PSNR: ``<word>.mp4``
    with original and reconstruction side by side, and ``<word>.png``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = result.protocol.name
    about = _to_json(result, config)
    write_json(folder / f"{name}.json", about)
    (folder / f"{name}.md").write_text(_to_markdown(result, config))
    shown = []
    for word, picture in result.pictures.items():
        caption = f"{word.capitalize()} clip by PSNR: {picture.label}"
        rows = [picture.original, picture.reconstruction]
        sheet = contact_sheet(rows, ["original", "reconstruction"])
        (folder / f"{word}.png").write_bytes(sheet)
        moving = write_side_by_side(folder / f"{word}.mp4", picture)
        shown += [(caption, sheet), (f"{caption}, moving", moving)]
    write_report(
        folder / "report.html",
        title=f"{config.name} ({config.preset}) at step {result.step} by {name}",
        subtitle=f"{result.protocol.source}; {_count_clips(result)}. {_write_cautions(result)}",
        scores=result.evaluation.scores,
        tables=_make_tables(result),
        sheets=shown,
        config=config.to_dict(),
    )


def _to_json(result: ProtocolResult, config: ConfigDict) -> dict[str, Any]:
    protocol, evaluation = result.protocol, result.evaluation
    left_out = [m.name for m in protocol.metrics if m not in result.metrics]
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
            "step": result.step,
            "clips_from": result.where,
            "clips": evaluation.scores["clips"],
            "clips_found": result.found,
            "scores": evaluation.scores,
            "definitions": evaluation.definitions,
        },
        "left_out": {"scores": left_out, "clips": [list(bad) for bad in result.bad]},
        "paper": {
            "source": protocol.source,
            "caution": _CAUTION,
            "rows": [dataclasses.asdict(row) for row in protocol.paper_table],
        },
        "by_frame_position": evaluation.positions,
        **({"by_group_position": evaluation.group_positions} if evaluation.group_positions else {}),
        "by_clip": evaluation.clips,
    }


def _count_clips(result: ProtocolResult) -> str:
    count = int(result.evaluation.scores["clips"])
    of = f" of {result.found}" if count != result.found else ""
    return f"{count}{of} clip{'s' * (result.found > 1)} of {result.where}"


def _write_cautions(result: ProtocolResult) -> str:
    random = any(map(_is_random, result.names.values()))
    return _CAUTION + " " + _UNTRAINED if random else _CAUTION


def _is_random(name: str) -> bool:
    return "_random" in name


def _measured_head(result: ProtocolResult) -> str:
    count = int(result.evaluation.scores["clips"])
    return f"measured here ({count} clip{'s' * (count > 1)})"


def _paper_head(row: PaperRow) -> str:
    return f"paper: {row.model}, {row.data}"


def _compare(result: ProtocolResult) -> list[dict[str, Any]]:
    """One row a metric: name, our score, and one column for each comparable row of the paper."""
    comparable = result.protocol.find_comparable(result.spec)
    lines = []
    for metric in result.metrics:
        # Metrics that look through the same small random network are measured, and shown, once.
        name = result.names.get(metric.name)
        if name not in result.evaluation.scores:
            continue
        factor = f" x {metric.factor:g}" if metric.factor != 1 else ""
        line: dict[str, Any] = {"score": name + factor}
        line[_measured_head(result)] = _format_score(result.evaluation.scores[name] * metric.factor)
        line["paper's column"] = metric.heading or None
        # No figure of the paper stands beside the score of an untrained network.
        known = metric.heading if not _is_random(name) else ""
        line |= {_paper_head(row): _format_printed(row.values.get(known)) for row in comparable}
        lines.append(line)
    return lines


def _make_paper_table(rows: Sequence[PaperRow]) -> list[dict[str, Any]]:
    headings = list(dict.fromkeys(name for row in rows for name in row.values))
    notes = any(row.note for row in rows)
    return [
        {
            "paper: model": row.model,
            "clips": row.data,
            **{heading: _format_printed(row.values.get(heading)) for heading in headings},
            **({"note": row.note or None} if notes else {}),
        }
        for row in rows
    ]


def _make_tables(result: ProtocolResult) -> dict[str, list[dict[str, Any]]]:
    evaluation = result.evaluation
    by_clip = sorted(evaluation.clips, key=lambda row: row["psnr"])
    tables = {
        "Measured, beside the paper's own figures": _compare(result),
        f"The paper's own table, as printed: {result.protocol.source}": _make_paper_table(
            result.protocol.paper_table
        ),
        "What the paper leaves open, and what was done": [
            dict(zip(("what", "done"), line.split(": ", 1), strict=True))
            for line in result.protocol.open
        ],
        "How each score is defined": [
            {"score": name, "definition": _join_definition(about)}
            for name, about in evaluation.definitions.items()
        ],
        "Scores by clip, worst first": by_clip,
        "Scores by frame position": make_position_rows(evaluation),
    }
    if evaluation.group_positions:
        tables["Scores by place in the frame group"] = make_group_rows(evaluation.group_positions)
    if result.bad:
        tables["Clips left out"] = [
            dict(zip(("clip", "reason", "detail"), bad, strict=True)) for bad in result.bad
        ]
    return tables


def _join_definition(about: Mapping[str, Any]) -> str:
    return "; ".join(f"{key.replace('_', ' ')}: {_to_text(value)}" for key, value in about.items())


def _to_text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _format_score(value: float) -> str:
    """A score with about four digits."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def _format_printed(value: float | None) -> str | None:
    """A paper's number with the digits printed there, except for zeros at the end."""
    return None if value is None else f"{value:g}"


def _to_markdown(result: ProtocolResult, config: ConfigDict) -> str:
    left_out = [m.name for m in result.protocol.metrics if m not in result.metrics]
    parts = [
        f"# {result.protocol.name}: {config.name} ({config.preset}) at step {result.step}",
        f"Protocol: {result.protocol.source}. Scored: {_count_clips(result)}.",
        markdown_table(_compare(result)),
        _write_cautions(result),
    ]
    if left_out:
        parts.append(f"Left out on request: {', '.join(left_out)}.")
    if result.bad:
        clips = "; ".join(f"{path} ({reason}: {detail})" for path, reason, detail in result.bad)
        parts.append(f"Clips left out: {clips}.")
    parts += [
        "## What the paper leaves open, and what was done",
        "\n".join(f"- {line}" for line in result.protocol.open),
        "## How each score is defined",
        "\n".join(
            f"- `{n}`: {_join_definition(a)}" for n, a in result.evaluation.definitions.items()
        ),
        f"## The paper's own table, as printed: {result.protocol.source}",
        markdown_table(_make_paper_table(result.protocol.paper_table)),
    ]
    return "\n\n".join(parts) + "\n"
