"""A plan as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vidlatent.plan.hardware import GIB
from vidlatent.report.tables import markdown_table

__all__ = ["format_plan"]


def format_plan(result: dict[str, Any]) -> str:
    """The costs of the last attempt as tables, and the list of what was tried."""
    last = result["attempts"][-1]
    effort = f", effort {result['effort']:g}" if result["effort"] else ""
    parts = [
        f"{result['config']} ({result['preset']}): {result['program']} on {result['topology']}, "
        f"{result['compute']}{effort}. The compiler's estimates; nothing was run."
    ]
    if "memory" in last:
        parts.append(
            f"Program: {last['about']}; {last['parameters'] / 1e6:.4g} million parameters; mesh "
            f"{_format_mesh(last['mesh'])}."
        )
        parts.append(_table(_memory_rows(last, result["limit"])))
        parts.append(_table(_work_rows(last)))
        if last["collectives"]:
            parts.append(_table(_collective_rows(last["collectives"])))
        parts.append(_format_time(last))
    parts.append(_format_verdict(result))
    return "\n\n".join(part for part in parts if part)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    return markdown_table(rows, aligned=True)


def _memory_rows(row: dict[str, Any], limit: float | None) -> list[dict[str, str]]:
    memory = row["memory"]
    # The named parts are arguments too; the rest is mainly the batch.
    named = sum(memory["parts"].values())
    sizes = {
        **memory["parts"],
        "batch and other arguments": memory["arguments"] - named,
        "results outside of arguments' buffers": memory["outputs"] - memory["outputs_in_place"],
        "activations and other temporaries": memory["temporaries"],
        "code": memory["code"],
        "total": memory["total"],
    }
    rows = [
        {"on a device": name, "memory": _format_bytes(size)} for name, size in sizes.items() if size
    ]
    if limit is not None:
        share = f"{_format_bytes(limit)} ({memory['total'] / limit:.1%} taken)"
        rows.append({"on a device": "available", "memory": share})
    return rows


def _work_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    flops, traffic = row["flops"], row["bytes"]
    return [
        {
            "on a device": "TFLOP",
            "the program": f"{flops['program'] / 1e12:.4g}",
            "without what remat repeats": f"{flops['model'] / 1e12:.4g}",
            # XLA's analysis counts the body of a loop once, however often it runs.
            "the compiler, loops once": _format_or_blank(flops["compiler"], 1e12),
        },
        {
            "on a device": "GB to and from memory",
            "the program": f"{traffic['program'] / 1e9:.4g}",
            "the compiler, loops once": _format_or_blank(traffic["compiler"], 1e9),
        },
    ]


def _collective_rows(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "collective": entry["kind"],
            "among": entry["group"],
            "times": entry["count"],
            "MB": f"{entry['bytes'] / 1e6:.4g}",
            "MB sent by a device": f"{entry['sent'] / 1e6:.4g}",
        }
        for entry in entries
    ]


def _format_time(row: dict[str, Any]) -> str:
    line = row["roofline"]
    if line is None:
        return ""
    parts = [
        f"{name} {line[key] * 1e3:.4g} ms"
        for name, key in (
            ("compute", "compute"),
            ("memory", "memory"),
            ("interconnect", "interconnect"),
        )
    ]
    text = (
        f"At least {line['at_least'] * 1e3:.4g} ms, bound by {line['bound']} ({', '.join(parts)}; "
        f"one after the other {line['one_after_the_other'] * 1e3:.4g} ms): "
        f"{row['frames'] / line['at_least']:.4g} frames/s and an MFU of {line['mfu_at_most']:.0%} "
        "at most."
    )
    if row["compiler_seconds"]:
        text += f" The compiler's own estimate, loops once: {row['compiler_seconds'] * 1e3:.4g} ms."
    return text


def _format_verdict(result: dict[str, Any]) -> str:
    attempts = result["attempts"]
    last = attempts[-1]
    if len(attempts) == 1:
        return "It fits." if last["fits"] else f"It does not fit: {last['why']}."
    rows = [
        {
            "tried": _format_flags(row["overrides"]) or "as it is",
            "memory needed": "" if row["needed"] is None else _format_bytes(row["needed"]),
            "": "fits" if row["fits"] else row["why"],
        }
        for row in attempts
    ]
    if last["fits"]:
        found = _format_flags(last["overrides"])
        words = f"It does not fit as it is. The smallest change found: {found}"
    else:
        words = (
            "It does not fit, and nothing tried does. Take more devices, smaller clips or a "
            "smaller batch (--config.plan.tries for more tries)."
        )
    return f"{_table(rows)}\n\n{words}"


def _format_flags(overrides: dict[str, Any]) -> str:
    return " ".join(f"--config.{key}={value}" for key, value in overrides.items())


def _format_mesh(sizes: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items())


def _format_bytes(size: float) -> str:
    for unit, name in ((GIB, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size / 2**10:.2f} KiB"


def _format_or_blank(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.4g}"
