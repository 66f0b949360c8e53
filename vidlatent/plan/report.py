"""A plan as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vidlatent.plan.hardware import GIB
from vidlatent.report.tables import markdown_table

__all__ = ["report"]


def report(result: dict[str, Any]) -> str:
    """Tables of what the last attempt costs, and what was tried."""
    last = result["attempts"][-1]
    effort = f", effort {result['effort']:g}" if result["effort"] else ""
    parts = [
        f"{result['config']} ({result['preset']}): {result['program']} on {result['topology']}, "
        f"{result['compute']}{effort}. The compiler's estimates; nothing was run."
    ]
    if "memory" in last:
        parts.append(
            f"Program: {last['about']}; {last['parameters'] / 1e6:.4g} million parameters; mesh "
            f"{_mesh(last['mesh'])}."
        )
        parts.append(_table(_memory(last, result["limit"])))
        parts.append(_table(_work(last)))
        if last["collectives"]:
            parts.append(_table(_collectives(last["collectives"])))
        parts.append(_time(last))
    parts.append(_verdict(result))
    return "\n\n".join(part for part in parts if part)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    return markdown_table(rows, aligned=True)


def _memory(row: dict[str, Any], limit: float | None) -> list[dict[str, str]]:
    memory = row["memory"]
    named = sum(memory["parts"].values())
    sizes = {
        **memory["parts"],
        "batch and the rest of the arguments": memory["arguments"] - named,
        "results that take no argument's place": memory["outputs"] - memory["outputs_in_place"],
        "activations and other temporaries": memory["temporaries"],
        "code": memory["code"],
        "total": memory["total"],
    }
    rows = [{"on a device": name, "memory": _size(size)} for name, size in sizes.items() if size]
    if limit is not None:
        share = f"{_size(limit)} ({memory['total'] / limit:.1%} taken)"
        rows.append({"on a device": "what the device has", "memory": share})
    return rows


def _work(row: dict[str, Any]) -> list[dict[str, Any]]:
    flops, traffic = row["flops"], row["bytes"]
    return [
        {
            "on a device": "TFLOP",
            "the program": f"{flops['program'] / 1e12:.4g}",
            "without what remat repeats": f"{flops['model'] / 1e12:.4g}",
            "the compiler, loops once": _maybe(flops["compiler"], 1e12),
        },
        {
            "on a device": "GB to and from memory",
            "the program": f"{traffic['program'] / 1e9:.4g}",
            "the compiler, loops once": _maybe(traffic["compiler"], 1e9),
        },
    ]


def _collectives(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
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


def _time(row: dict[str, Any]) -> str:
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


def _verdict(result: dict[str, Any]) -> str:
    attempts = result["attempts"]
    last = attempts[-1]
    if len(attempts) == 1:
        return "It fits." if last["fits"] else f"It does not fit: {last['why']}."
    rows = [
        {
            "tried": _flags(row["overrides"]) or "as it is",
            "memory needed": "" if row["needed"] is None else _size(row["needed"]),
            "": "fits" if row["fits"] else row["why"],
        }
        for row in attempts
    ]
    if last["fits"]:
        words = f"It does not fit as it is. The smallest change found: {_flags(last['overrides'])}"
    else:
        words = (
            "It does not fit, and nothing tried does. Take more devices, smaller clips or a "
            "smaller batch (--config.plan.tries for more tries)."
        )
    return f"{_table(rows)}\n\n{words}"


def _flags(overrides: dict[str, Any]) -> str:
    return " ".join(f"--config.{key}={value}" for key, value in overrides.items())


def _mesh(sizes: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items())


def _size(size: float) -> str:
    for unit, name in ((GIB, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size / 2**10:.2f} KiB"


def _maybe(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.4g}"
