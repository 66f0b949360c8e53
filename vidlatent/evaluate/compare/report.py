"""The report of a comparison: JSON, a Markdown table next to the paper's numbers, a page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vidlatent.config import config_hash
from vidlatent.evaluate.compare.sides import Side
from vidlatent.evaluate.protocols.base import ProtocolMetric
from vidlatent.evaluate.protocols.generation import GenerationProtocol
from vidlatent.evaluate.protocols.tables import (
    compare_scores,
    join_definition,
    make_definition_table,
    make_open_table,
    make_paper_table,
    write_cautions,
)
from vidlatent.evaluate.tokenizer import ClipPair
from vidlatent.evaluate.tokenizer_report import RESIZED, write_side_by_side
from vidlatent.files import write_json, write_text
from vidlatent.media.sheets import contact_sheet
from vidlatent.report.page import write_report
from vidlatent.report.tables import markdown_table

__all__ = ["Comparison", "write_comparison"]


@dataclasses.dataclass
class Comparison:
    """What came of comparing generated clips with real ones.

    Attributes:
      protocol: by which they were compared.
      metrics: those of its metrics that ``config.eval.leave_out`` does not name.
      scores, definitions: by the name that a score is reported under.
      names: metric as asked for -> that name.
      real, generated: the two sets.
    """

    protocol: GenerationProtocol
    metrics: Sequence[ProtocolMetric]
    scores: Mapping[str, float]
    definitions: Mapping[str, Mapping[str, Any]]
    names: Mapping[str, str]
    real: Side
    generated: Side


def write_comparison(result: Comparison, folder: Path, config: ConfigDict) -> list[Path]:
    """Write ``<protocol>.json``, ``<protocol>.md``, ``report.html`` and the pictures.

    The pictures are ``contact_sheet.png``, generated clips under real ones, and
    ``side_by_side_<n>.mp4``, a real clip left and a generated one right; no two belong together.

    Returns:
      The files to look at.
    """
    folder.mkdir(parents=True, exist_ok=True)
    protocol = result.protocol
    # Numbers before pictures.
    write_json(folder / f"{protocol.name}.json", _to_json(result, config))
    write_text(folder / f"{protocol.name}.md", _to_markdown(result))
    write_report(
        folder / "report.html",
        title=f"Generated videos by {protocol.name}",
        subtitle=f"{protocol.source}; {_count(result)}. {_cautions(result)}",
        scores=dict(result.scores),
        tables=_make_tables(result),
        sheets=_make_pictures(result, folder),
        config=config.to_dict(),
    )
    return [
        folder / f"{protocol.name}.json",
        folder / f"{protocol.name}.md",
        folder / "report.html",
    ]


def _make_pictures(result: Comparison, folder: Path) -> list[tuple[str, bytes]]:
    pairs = list(zip(result.real.shown, result.generated.shown, strict=False))
    if not pairs:
        return []
    rows, labels = [], []
    for real, made in pairs:
        rows += [real.video, made.video]
        labels += [f"real\n{real.label}", f"generated\n{made.label}"]
    sheet = contact_sheet(rows, labels)
    (folder / "contact_sheet.png").write_bytes(sheet)
    shown = [("Generated clips under real ones, which they have nothing to do with", sheet)]
    for number, (real, made) in enumerate(pairs):
        pair = ClipPair("", real.video, made.video, made.fps)
        moving = write_side_by_side(folder / f"side_by_side_{number}.mp4", pair)
        shown.append((f"{real.label}, real, beside {made.label}, generated", moving))
    return shown


def _to_json(result: Comparison, config: ConfigDict) -> dict[str, Any]:
    protocol = result.protocol
    return {
        "protocol": {
            "name": protocol.name,
            "source": protocol.source,
            "frames": protocol.frames,
            "height": protocol.size[0],
            "width": protocol.size[1],
            "resize": RESIZED[protocol.resize],
            "clips_of_each_set": protocol.clips or "all",
            "real_window": "middle frames",
            "real_frame_stride": protocol.real_stride,
            "real_frames_per_second": protocol.fps or "each file's own",
            "generated_window": "first frames",
            "generated_first_frames_dropped": protocol.drop,
            "is_splits": config.eval.is_splits,
            "not_stated_by_the_paper": list(protocol.open),
        },
        "measured": {
            "config": config_hash(config),
            "real": _describe_side(result.real),
            "generated": _describe_side(result.generated),
            "scores": dict(result.scores),
            "definitions": {name: dict(about) for name, about in result.definitions.items()},
        },
        "paper": {
            "source": protocol.source,
            "caution": _cautions(result),
            "rows": [dataclasses.asdict(row) for row in protocol.paper_table],
        },
    }


def _describe_side(side: Side) -> dict[str, Any]:
    return {
        "clips_from": side.clips.where,
        "clips": len(side.scored),
        "clips_found": len(side.clips.rows),
        "left_out": [list(bad) for bad in side.bad],
    }


def _count(result: Comparison) -> str:
    made, real = result.generated, result.real
    return (
        f"{len(made.scored)} generated clips of {made.clips.where} against {len(real.scored)} real "
        f"ones of {real.clips.where}"
    )


def _cautions(result: Comparison) -> str:
    names, printed = list(result.names.values()), bool(result.protocol.paper_table)
    text = write_cautions(names, printed)
    if _has_fewer(result):
        text += (
            f" {result.protocol.name} takes {result.protocol.clips} generated clips; of fewer, "
            "scores are others, and no figure of the paper stands beside them."
        )
    return text.strip()


def _has_fewer(result: Comparison) -> bool:
    return len(result.generated.scored) < result.protocol.clips


def _compare(result: Comparison) -> list[dict[str, Any]]:
    rows = [] if _has_fewer(result) else result.protocol.find_comparable()
    count = len(result.generated.scored)
    measured = f"measured here ({count} clip{'s' * (count != 1)})"
    return compare_scores(result.metrics, result.names, result.scores, rows, measured)


def _make_tables(result: Comparison) -> dict[str, list[dict[str, Any]]]:
    protocol = result.protocol
    tables = {
        "Measured, beside the paper's own figures": _compare(result),
        f"The paper's own table, as printed: {protocol.source}": make_paper_table(
            protocol.paper_table
        ),
        "What the paper leaves open, and what was done": make_open_table(protocol.open),
        "How each score is defined": make_definition_table(result.definitions),
    }
    for name, side in (("Real", result.real), ("Generated", result.generated)):
        tables[f"{name} clips left out"] = [
            dict(zip(("clip", "reason", "detail"), bad, strict=True)) for bad in side.bad
        ]
    return {title: rows for title, rows in tables.items() if rows}


def _to_markdown(result: Comparison) -> str:
    protocol = result.protocol
    parts = [
        f"# Generated videos by {protocol.name}",
        f"Protocol: {protocol.source}. Scored: {_count(result)}.",
        markdown_table(_compare(result)),
        _cautions(result),
    ]
    for name, side in (("Real", result.real), ("Generated", result.generated)):
        if side.bad:
            clips = "; ".join(f"{path} ({reason}: {detail})" for path, reason, detail in side.bad)
            parts.append(f"{name} clips left out: {clips}.")
    if protocol.open:
        parts.append("## What the paper leaves open, and what was done")
        parts.append("\n".join(f"- {line}" for line in protocol.open))
    parts.append("## How each score is defined")
    parts.append("\n".join(f"- `{n}`: {join_definition(a)}" for n, a in result.definitions.items()))
    if protocol.paper_table:
        parts.append(f"## The paper's own table, as printed: {protocol.source}")
        parts.append(markdown_table(make_paper_table(protocol.paper_table)))
    return "\n\n".join(filter(None, parts)) + "\n"
