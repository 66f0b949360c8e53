"""A plan as text for the terminal, and as a page: the answer first, then what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidlatent.plan.hardware import GIB, HARDWARE
from vidlatent.report.page import write_report
from vidlatent.report.tables import markdown_table

__all__ = ["answer", "format_flags", "format_plan", "write_page"]

_DAY, _HOUR = 86400.0, 3600.0
_CHIPS = {"tpu": "chip hours", "gpu": "GPU hours", "cpu": "device hours"}


def answer(result: dict[str, Any]) -> str:
    """One line: whether it fits, how fast it is at best, and what the whole run takes.

    ``fits: 8.6 of 95.7 GiB; at best 0.9 s a step; 2.1 days for 200,000 steps; about 3,200 chip
    hours``. "Does not fit" is said of memory alone.
    """
    first, last = result["attempts"][0], result["attempts"][-1]
    if not last["fits"]:
        if last["short_of"] == "devices":
            return f"cannot run: {last['why']}"
        return f"does not fit: {_format_need(last['needed'], result['limit'])}"
    found = ""
    if last is not first:
        found = f"with {format_flags(last['overrides'])} it "
    parts = [f"{found}fits: {_format_need(last['needed'], result['limit'])}"]
    line = last["roofline"]
    if line is not None:
        seconds, steps = line["at_least"], result["steps"]
        each = "a step" if steps else f"for {last['about']}"
        parts.append(f"at best {_format_seconds(seconds)} {each}")
        if steps:
            whole = seconds * steps
            chips = _CHIPS[HARDWARE[result["topology"].partition(":")[0]].platform]
            parts.append(f"{_format_long(whole)} for {steps:,} steps")
            parts.append(f"about {_format_count(whole / _HOUR * result['devices'])} {chips}")
    return "; ".join(parts)


def format_plan(result: dict[str, Any]) -> str:
    """The answer, the costs of the last attempt as tables, and the list of what was tried."""
    last = result["attempts"][-1]
    parts = [answer(result), _describe(result)]
    if "memory" in last:
        parts += [_describe_program(last), *map(_table, _tables(result).values())]
        parts.append(_format_time(last))
    parts.append(_format_tries(result))
    return "\n\n".join(part for part in parts if part)


def write_page(path: Path, result: dict[str, Any]) -> None:
    """The same as an HTML page."""
    last = result["attempts"][-1]
    tables = _tables(result) if "memory" in last else {}
    notes = [_describe(result)]
    if "memory" in last:
        notes += [_describe_program(last), _format_time(last)]
    if len(result["attempts"]) > 1:
        tables = {**tables, "What was tried": _try_rows(result)}
    write_report(
        path,
        title=answer(result),
        subtitle=" ".join(note for note in notes if note),
        scores={},
        tables=tables,
        # Of the process that plans: its own workdir is a temporary one.
        command=f"--mode=plan --topology={result['topology']}",
    )


def _describe(result: dict[str, Any]) -> str:
    effort = f", effort {result['effort']:g}" if result["effort"] else ""
    return (
        f"{result['config']} ({result['preset']}): {result['program']} on {result['topology']}, "
        f"{result['compute']}{effort}. The compiler's estimates; nothing was run."
    )


def _describe_program(row: dict[str, Any]) -> str:
    return (
        f"Program: {row['about']}; {row['parameters'] / 1e6:.4g} million parameters; mesh "
        f"{_format_mesh(row['mesh'])}."
    )


def _tables(result: dict[str, Any]) -> Mapping[str, Sequence[dict[str, Any]]]:
    last = result["attempts"][-1]
    tables: dict[str, Sequence[dict[str, Any]]] = {
        "Memory": _memory_rows(last, result["limit"]),
        "Work": _work_rows(last),
    }
    if last["collectives"]:
        tables["Between devices"] = _collective_rows(last["collectives"])
    return tables


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
        share = memory["total"] / limit
        taken = f" ({share:.1%} taken)" if share <= 1 else ""
        rows.append({"on a device": "available", "memory": _format_bytes(limit) + taken})
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


def _try_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "tried": format_flags(row["overrides"]) or "as it is",
            "memory needed": "" if row["needed"] is None else _format_bytes(row["needed"]),
            "": "fits" if row["fits"] else row["why"],
        }
        for row in result["attempts"]
    ]


def _format_tries(result: dict[str, Any]) -> str:
    """What was tried, if more than one thing was, and what is left to do if nothing helped."""
    attempts = result["attempts"]
    last = attempts[-1]
    parts = [_table(_try_rows(result))] if len(attempts) > 1 else []
    if last["fits"] and len(attempts) > 1:
        parts.append(f"The smallest change found: {format_flags(last['overrides'])}")
    elif not last["fits"] and last["short_of"] == "memory":
        parts.append(
            "Take more devices, smaller clips or a smaller batch (--config.plan.tries for more "
            "tries)."
        )
    return "\n\n".join(parts)


def format_flags(overrides: Mapping[str, Any]) -> str:
    """``--config.a=1 --config.b=2``, as they are typed."""
    return " ".join(f"--config.{key}={value}" for key, value in overrides.items())


def _format_mesh(sizes: dict[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items())


def _format_bytes(size: float) -> str:
    for unit, name in ((GIB, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size / 2**10:.2f} KiB"


def _format_need(needed: float | None, limit: float | None) -> str:
    """``8.6 of 95.7 GiB``."""
    if limit is None:
        return _format_bytes(needed or 0)
    if needed is None:
        return f"more than {_format_bytes(limit)}"
    if max(needed, limit) < GIB:
        return f"{_format_bytes(needed)} of {_format_bytes(limit)}"
    digits = 1 if needed >= 0.1 * GIB else 3
    return f"{needed / GIB:.{digits}f} of {limit / GIB:.1f} GiB"


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{seconds * 1e3:.2g} ms"


def _format_long(seconds: float) -> str:
    if seconds >= _DAY:
        return f"{seconds / _DAY:,.1f} days"
    if seconds >= _HOUR:
        return f"{seconds / _HOUR:.1f} hours"
    return f"{seconds / 60:.1f} minutes"


def _format_count(number: float) -> str:
    """Two digits: more would promise what a bound cannot."""
    return f"{float(f'{number:.2g}'):,.{0 if number >= 10 else 1}f}"


def _format_or_blank(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:.4g}"
