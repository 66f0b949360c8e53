"""Tables of a protocol's report: our scores beside the paper's, and the paper's own.

Columns of our scores are headed "measured here", columns of the paper's numbers "paper:". No column
mixes the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vidlatent.evaluate.protocols.base import ProtocolMetric
from vidlatent.evaluate.protocols.paper_tables import PaperRow

__all__ = [
    "compare_scores",
    "is_random",
    "join_definition",
    "make_definition_table",
    "make_open_table",
    "make_paper_table",
    "write_cautions",
]

_CAUTION = (
    "The paper's figures were measured by its authors on the clips named above them; they compare "
    "with the measured column only as far as this folder holds the same clips."
)
_UNTRAINED = (
    "Scores with _random in their name looked through untrained networks and mean nothing; no "
    "figure of the paper stands beside them."
)


def is_random(name: str) -> bool:
    """Whether a score looked through an untrained network."""
    return "_random" in name


def write_cautions(names: Sequence[str], figures: bool = True) -> str:
    """What a reader must know before comparing these scores with the paper's figures.

    Args:
      names: of the scores.
      figures: whether the paper has any.
    """
    untrained = _UNTRAINED if any(map(is_random, names)) else ""
    return " ".join(filter(None, (_CAUTION if figures else "", untrained)))


def compare_scores(
    metrics: Sequence[ProtocolMetric],
    names: Mapping[str, str],
    scores: Mapping[str, float],
    rows: Sequence[PaperRow],
    measured: str,
) -> list[dict[str, Any]]:
    """One row a metric: name, our score, and one column for each comparable row of the paper.

    Args:
      metrics: of the protocol.
      names: metric as asked for -> name its score is reported under.
      scores: by reported name.
      rows: of the paper's table.
      measured: heading of our column.
    """
    headings = {metric.heading for metric in metrics}
    rows = [row for row in rows if headings & set(row.values)]
    lines = []
    for metric in metrics:
        # Metrics that look through the same small random network are measured, and shown, once.
        name = names.get(metric.name)
        if name is None or name not in scores:
            continue
        factor = f" x {metric.factor:g}" if metric.factor != 1 else ""
        line: dict[str, Any] = {"score": name + factor}
        line[measured] = _format_score(scores[name] * metric.factor)
        line["paper's column"] = metric.heading or None
        # No figure of the paper stands beside the score of an untrained network.
        known = metric.heading if not is_random(name) else ""
        for row in rows:
            line[f"paper: {row.model}, {row.data}"] = _format_printed(row.values.get(known))
        lines.append(line)
    return lines


def make_paper_table(rows: Sequence[PaperRow]) -> list[dict[str, Any]]:
    """The paper's table as printed."""
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


def make_open_table(lines: Sequence[str]) -> list[dict[str, Any]]:
    """What the paper leaves open, and what was done, from ``PaperProtocol.open``."""
    return [dict(zip(("what", "done"), line.split(": ", 1), strict=True)) for line in lines]


def make_definition_table(definitions: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How each score is defined."""
    return [
        {"score": name, "definition": join_definition(about)} for name, about in definitions.items()
    ]


def join_definition(about: Mapping[str, Any]) -> str:
    """A definition as text."""
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
