"""``docs/plans.md`` from the plans that ``benchmarks.plans`` keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vidlatent.plan.hardware import GIB
from vidlatent.report.tables import markdown_table

__all__ = ["format_page"]

_HEAD = """# Plans of the published presets

`python -m benchmarks.plans`, that is `python -m vidlatent.main --mode=plan` for each row.

**These are the compiler's estimates. Nothing was run, and no such machine was at hand.** Bytes are
those that the TPU compiler allocated on one device; operations are those of the program's matrix
products and convolutions on one device. Times are lower bounds: each resource works at the peak of
its data sheet, and the slowest of them decides, so an MFU is an upper bound. A training step is
planned for the bucket with the most pixels a batch. Batch sizes, and everything else that the
papers leave open, are choices of the presets.

Steps by rewards at the published sizes are counted by shapes and traced programs, without a
compiler: [ReFL](reward_gradients.md#memory-at-the-published-size) and
[MixGRPO](policy_updates.md#memory-at-the-published-size).
"""
_EFFORT = """With `--config.plan.effort=-1` the compiler does not search for the fastest tiling of
each product and convolution. At its default effort compiling a 3x3x3 convolution of 128 channels
with both gradients takes 10.0 s of processor time, and a tokenizer has hundreds of them; with -1 it
takes 1.0 s, with the same temporaries and 2.39 GB of traffic instead of 2.40. For comparison, the
program of `fsvideo_dit-target` was planned once at the default effort, shortly before its commit:
8.93 GiB instead of 8.59, 356 GB of traffic instead of 381, the same operations, 132 s of processor
time instead of 43. So memory may come out about 5 % too low, and traffic 5 % too high."""
# Parts of the memory, as columns.
_PARTS = {
    "parameters": ("parameters",),
    "average": ("averaged parameters",),
    "optimizer": ("optimizer",),
    "discriminator, frozen networks, caches": (
        "discriminator and loss helpers",
        "networks beside it",
        "frozen networks",
        "caches",
    ),
}


def format_page(rows: Sequence[Mapping[str, Any]], commands: Mapping[str, str]) -> str:
    """The whole page.

    Args:
      rows: of each case what ``benchmarks.plans.make`` returned, or its ``case`` alone.
      commands: flags of ``vidlatent.main`` by the names of the cases.
    """
    planned = [row for row in rows if "plan" in row]
    parts = [_HEAD, _made_with(planned), _EFFORT]
    if planned:
        parts += ["## Memory of a device, GiB", markdown_table([_memory(row) for row in planned])]
        parts += [
            "## Work of a device, and time at best",
            markdown_table(list(map(_work, planned))),
        ]
    changed = [_changes(row) for row in planned if len(row["plan"]["attempts"]) > 1]
    if changed:
        parts += ["## What did not fit as it is", "\n".join(changed)]
    missing = [_missing(row) for row in rows if "plan" not in row]
    if missing:
        told = "In the list of `benchmarks.plans`, but without figures yet:"
        parts += ["## Not planned", told, "\n".join(missing)]
    if planned:
        lines = [f"{_name(row):22} {commands[_name(row)]}" for row in planned]
        told = "Each after `python -m vidlatent.main`:"
        parts += ["## Commands", told, "```\n" + "\n".join(lines) + "\n```"]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _made_with(planned: Sequence[Mapping[str, Any]]) -> str:
    used = {key: sorted({row[key] for row in planned}) for key in ("jax", "libtpu")}
    return (
        "Made with " + ", ".join(f"{key} {' and '.join(v)}" for key, v in used.items() if v) + "."
    )


def _name(row: Mapping[str, Any]) -> str:
    return row["case"]["name"]


def _last(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The attempt that fits, else the last one that was compiled, else the last one."""
    attempts = row["plan"]["attempts"]
    known = [a for a in attempts if "memory" in a]
    return next((a for a in attempts if a["fits"]), (known or attempts)[-1])


def _memory(row: Mapping[str, Any]) -> dict[str, Any]:
    found, plan = _last(row), row["plan"]
    sizes = {axis: size for axis, size in found["mesh"].items() if size > 1}
    cells = {
        "plan": _name(row),
        "program": found["about"] if "about" in found else plan["program"],
        "machine": plan["topology"],
        "mesh": ", ".join(f"{axis} {size}" for axis, size in sizes.items()) or "one device",
    }
    if "memory" not in found:
        return {**cells, "total": _gib(found["needed"]), "fits": "no"}
    memory = found["memory"]
    parts = {
        title: sum(memory["parts"].get(name, 0) for name in names)
        for title, names in _PARTS.items()
    }
    return {
        **cells,
        "millions of parameters": f"{found['parameters'] / 1e6:.1f}",
        **{title: _gib(size) for title, size in parts.items()},
        "temporaries": _gib(memory["temporaries"]),
        "total": _gib(memory["total"]),
        "of": _gib(plan["limit"]),
        "fits": _fits(row),
    }


def _work(row: Mapping[str, Any]) -> dict[str, Any]:
    found = _last(row)
    cells: dict[str, Any] = {"plan": _name(row)}
    if "memory" in found:
        line = found["roofline"]
        sent = sum(entry["sent"] for entry in found["collectives"])
        cells |= {
            "TFLOP": f"{found['flops']['program'] / 1e12:.4g}",
            "without repeats": f"{found['flops']['model'] / 1e12:.4g}",
            "GB of memory traffic": f"{found['bytes']['program'] / 1e9:.4g}",
            "GB sent": f"{sent / 1e9:.3g}",
            "compute ms": f"{1e3 * line['compute']:.4g}",
            "memory ms": f"{1e3 * line['memory']:.4g}",
            "interconnect ms": f"{1e3 * line['interconnect']:.4g}",
            "at least ms": f"{1e3 * line['at_least']:.4g}",
            "bound by": line["bound"],
            "MFU at most": f"{line['mfu_at_most']:.0%}",
            "compiler's own ms, loops once": _milliseconds(found["compiler_seconds"]),
        }
    # Cost of the whole command with all its attempts.
    return {
        **cells,
        "processor s": f"{row['processor_seconds']:.0f}",
        "GiB of the planning process": _gib(row["peak_bytes"]),
        "commit": row["commit"],
    }


def _fits(row: Mapping[str, Any]) -> str:
    attempts = row["plan"]["attempts"]
    if attempts[0]["fits"]:
        return "yes"
    return "changed" if attempts[-1]["fits"] else "no"


def _changes(row: Mapping[str, Any]) -> str:
    tries = []
    for attempt in row["plan"]["attempts"]:
        keys = " ".join(f"--config.{key}={value}" for key, value in attempt["overrides"].items())
        told = f"{_gib(attempt['needed'])} GiB" if attempt["needed"] else attempt["why"]
        fits = ", fits" if attempt["fits"] else ""
        tries.append(f"{f'`{keys}`' if keys else 'as it is'}: {told}{fits}")
    return f"- {_name(row)}: " + "; ".join(tries) + "."


def _missing(row: Mapping[str, Any]) -> str:
    reason = f": {row['failed']}" if "failed" in row else ""
    return f"- {_name(row)} (`{row['case']['config']}`, {row['case']['topology']}){reason}"


def _gib(size: float | None) -> str | None:
    return None if size is None else f"{size / GIB:.2f}"


def _milliseconds(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{1e3 * seconds:.4g}"
