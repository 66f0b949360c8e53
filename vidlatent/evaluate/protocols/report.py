"""The report of a protocol: JSON, a Markdown table next to the paper's numbers, an HTML page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vidlatent.config import config_hash
from vidlatent.evaluate.protocols.base import ProtocolMetric
from vidlatent.evaluate.protocols.definitions import Protocol
from vidlatent.evaluate.protocols.tables import (
    compare_scores,
    join_definition,
    make_definition_table,
    make_open_table,
    make_paper_table,
    write_cautions,
)
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
        subtitle=f"{result.protocol.source}; {_count_clips(result)}. {_cautions(result)}",
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
            "coded_every": protocol.keep,
            "frames_per_second": protocol.fps or "each file's own",
            "window": "first frames" if protocol.place == 0 else "middle frames",
            "height": protocol.size[0],
            "width": protocol.size[1],
            "resize": RESIZED[protocol.resize],
            "frames_are_coded": protocol.space or "whole",
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
            "caution": _cautions(result),
            "rows": [dataclasses.asdict(row) for row in protocol.paper_table],
        },
        "by_frame_position": evaluation.positions,
        **({"by_group_position": evaluation.group_positions} if evaluation.group_positions else {}),
        **({"intrinsic_dimension": _dimensions(result)} if protocol.gride else {}),
        "by_clip": evaluation.clips,
    }


def _count_clips(result: ProtocolResult) -> str:
    count = int(result.evaluation.scores["clips"])
    of = f" of {result.found}" if count != result.found else ""
    return f"{count}{of} clip{'s' * (result.found > 1)} of {result.where}"


def _measured_head(result: ProtocolResult) -> str:
    count = int(result.evaluation.scores["clips"])
    return f"measured here ({count} clip{'s' * (count > 1)})"


def _cautions(result: ProtocolResult) -> str:
    return write_cautions(list(result.names.values()))


def _compare(result: ProtocolResult) -> list[dict[str, Any]]:
    return compare_scores(
        result.metrics,
        result.names,
        result.evaluation.scores,
        result.protocol.find_comparable(result.spec),
        _measured_head(result),
    )


def _make_tables(result: ProtocolResult) -> dict[str, list[dict[str, Any]]]:
    evaluation = result.evaluation
    by_clip = sorted(evaluation.clips, key=lambda row: row["psnr"])
    tables = {
        "Measured, beside the paper's own figures": _compare(result),
        f"The paper's own table, as printed: {result.protocol.source}": make_paper_table(
            result.protocol.paper_table
        ),
        "What the paper leaves open, and what was done": make_open_table(result.protocol.open),
        "How each score is defined": make_definition_table(evaluation.definitions),
        "Scores by clip, worst first": by_clip,
        "Scores by frame position": make_position_rows(evaluation),
    }
    if evaluation.group_positions:
        tables["Scores by place in the frame group"] = make_group_rows(evaluation.group_positions)
    if result.protocol.gride:
        rows = _dimensions(result)
        tables["Intrinsic dimension, measured here, laid out as the paper's"] = _by_scale(rows)
        tables["Intrinsic dimension with its errors"] = rows
    if result.bad:
        tables["Clips left out"] = [
            dict(zip(("clip", "reason", "detail"), bad, strict=True)) for bad in result.bad
        ]
    return tables


def _dimensions(result: ProtocolResult) -> list[dict[str, Any]]:
    """Rows of ``LatentStatistics.intrinsic_dimension``."""
    latents = result.evaluation.latents
    return [] if latents is None else latents.intrinsic_dimension()


def _by_scale(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each kind of point, one column for each number of neighbours."""
    table: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = table.setdefault(row["points"], {"points": row["points"], "n": row["n"]})
        line[f"{row['neighbours'].split(', ')[1]} neighbours"] = f"{row['dimension_gride']:.2f}"
    return list(table.values())


def _to_markdown(result: ProtocolResult, config: ConfigDict) -> str:
    left_out = [m.name for m in result.protocol.metrics if m not in result.metrics]
    parts = [
        f"# {result.protocol.name}: {config.name} ({config.preset}) at step {result.step}",
        f"Protocol: {result.protocol.source}. Scored: {_count_clips(result)}.",
        markdown_table(_compare(result)),
        _cautions(result),
    ]
    if result.protocol.gride:
        parts.append(markdown_table(_by_scale(_dimensions(result))))
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
            f"- `{n}`: {join_definition(a)}" for n, a in result.evaluation.definitions.items()
        ),
        f"## The paper's own table, as printed: {result.protocol.source}",
        markdown_table(make_paper_table(result.protocol.paper_table)),
    ]
    return "\n\n".join(parts) + "\n"
