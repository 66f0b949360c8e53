"""Predictions, totals and the table of ``benchmarks.h200``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vidlatent.report.tables import markdown_table

__all__ = [
    "BANDWIDTH",
    "FLOPS",
    "format_page",
    "judge_ms",
    "predict_ms",
    "round_figure",
    "sum_totals",
]

# Ceilings of an H200 as measured on such cards: operations and bytes a second.
FLOPS, BANDWIDTH = 790e12, 4.3e12
# A row is marked 'explain' if measured / predicted is larger. Bounds are never quite reached, so
# they allow more.
_TOLERATED = {"kernel study": 1.25, "bound": 2.0, "goal": 1.0}
# Titles of the totals, their goals in milliseconds and the number of rows that make one up.
_TOTALS = {
    "bfloat16": ("total of 60 + 8 evaluations, bfloat16", 8600.0, 2),
    "8 bits": ("total of 60 + 8 evaluations, 8 bits", 5600.0, 2),
    "decode": ("total of decoding 121x768x1280, FSAE-Lite", 1500.0, 1),
    # Sampling stacks the parameters of all layers; these rows show what separate arrays would give.
    "bfloat16 apart": ("the first total, layer by layer (sampling does not offer it)", 8600.0, 2),
    "8 bits apart": ("the second total, layer by layer (sampling does not offer it)", 5600.0, 2),
    "base blocks": ("40 blocks of the base by themselves", 0.0, 1),
    "refiner blocks": ("40 blocks of the refiner by themselves", 0.0, 1),
}


def predict_ms(
    flops: float, moved: float, study: float, full: bool, peaks: Mapping[str, float]
) -> tuple[float | None, str | None]:
    """``(milliseconds, reason)`` that a row is expected to take.

    At full size that is the figure of the kernel study if it has one (``'kernel study'``), else the
    least time at an H200's ceilings (``'bound'``). At toy size it is the least time at the ceilings
    measured in this run.

    Args:
      flops, moved: operations and bytes of one run; 0: not counted.
      study: milliseconds of the kernel study; 0: none.
      full: whether this is the full size.
      peaks: ``flops`` and ``bandwidth`` of this run.
    """
    if full and study:
        return study, "kernel study"
    if full:
        peaks = {"flops": FLOPS, "bandwidth": BANDWIDTH}
    least = max(flops / peaks["flops"], moved / peaks["bandwidth"])
    return (1e3 * least, "bound") if least else (None, None)


def judge_ms(ms: float, expected: float | None, by: str | None, full: bool) -> str | None:
    """A remark on a measurement that needs an explanation, else None; None at toy size."""
    if not full or not expected:
        return None
    ratio, tolerated = ms / expected, _TOLERATED[by]
    if by == "goal":
        return "met" if ratio <= 1 else "missed: explain"
    if ratio > tolerated:
        return f"explain: {ratio:.2g} times the {'bound' if by == 'bound' else 'prediction'}"
    if ratio < (0.95 if by == "bound" else 1 / tolerated):
        return "explain: faster than predicted"
    return None


def sum_totals(lines: Sequence[Mapping[str, Any]], full: bool) -> list[dict[str, Any]]:
    """Sums of rows (``Row.part``), for the fastest form all of whose rows were measured.

    One line for each total: with ``ms``, or with the ``note`` that it was not measured.
    """
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for line in lines:
        if "part" in line and "ms" in line:
            name, form, _ = line["part"]
            found.setdefault(name, {}).setdefault(form, []).append(line)
    made = []
    for name, (title, goal, count) in _TOTALS.items():
        forms = {form: rows for form, rows in found.get(name, {}).items() if len(rows) == count}
        line: dict[str, Any] = {"row": title}
        if full and goal:
            line |= {"predicted ms": goal, "by": "goal"}
        if not forms:
            made.append({**line, "note": "not measured"})
            continue
        form = min(forms, key=lambda form: _sum_column(forms[form], "ms"))
        if form:
            line["row"] += f" ({form})"
        if "by" not in line:
            by = forms[form][0]["by"]
            predicted = round_figure(_sum_column(forms[form], "predicted ms"))
            line |= {"predicted ms": predicted, "by": by}
        ms = _sum_column(forms[form], "ms")
        ratio = round_figure(ms / line["predicted ms"])
        line |= {"ms": round_figure(ms), "times": ratio}
        made.append({**line, "remark": judge_ms(ms, line["predicted ms"], line["by"], full)})
    return made


def _sum_column(lines: Sequence[Mapping[str, Any]], column: str) -> float:
    return sum(line["part"][2] * line[column] for line in lines)


def round_figure(value: float) -> float:
    return float(f"{value:.4g}")


_COLUMNS = (
    *("row", "ms", "predicted ms", "by", "times", "remark", "TFLOP/s", "GB/s", "share", "error"),
    *("spread", "GB", "compile s", "note"),
)


def format_page(result: Mapping[str, Any]) -> str:
    """The result as Markdown: device, rows, totals, sections, and what was not measured."""
    ceilings = result["ceilings"]
    head = (
        f"{result['device']}, jax {result['jax']}, size {result['size']}; medians of "
        f"{result['repeats']}. Ceilings of this run: {ceilings['TFLOP/s']:.4g} TFLOP/s, "
        f"{ceilings['GB/s']:.4g} GB/s."
    )
    lines = [{name: line.get(name) for name in _COLUMNS} for line in result["rows"]]
    sums = ("row", "ms", "predicted ms", "by", "times", "remark", "note")
    lower = [{name: line.get(name) for name in sums} for line in result["totals"]]
    parts = [head, markdown_table(lines, aligned=True), markdown_table(lower, aligned=True)]
    sections = [{"section": name, **found} for name, found in result["sections"].items()]
    parts += [markdown_table(sections, aligned=True)] if sections else []
    left_out = [line["row"] for line in result["rows"] if "ms" not in line]
    parts.append(f"Not measured: {'; '.join(left_out)}." if left_out else "Nothing was left out.")
    return "\n\n".join(parts) + "\n"
