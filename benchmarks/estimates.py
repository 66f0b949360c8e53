"""The TPU compiler's estimates for a transformer's layer and a decoder's blocks in several forms.

    python -m benchmarks.estimates [--chips v5p,v6e] [--only chain] [--json runs/estimates.json]

Nothing is run: programs are compiled for one chip ahead of time, and the compiler's estimates of
time and traffic are printed. They are not measurements. They compare forms inside the real layer,
where a kernel that is faster alone may lose, because XLA fuses neighbouring operations into its own
products but not into our kernels.

Rows are written to the file as they come, and those that are there are not compiled again; several
processes may share it. At the end the whole table is printed as Markdown.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.metadata
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What is compiled ahead of time cannot be read back from a cache.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"

import jax  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # if run as a file, not with -m

from benchmarks.estimates_programs import CONTEXT, Row, rows  # noqa: E402
from vidlatent.errors import VidlatentError  # noqa: E402
from vidlatent.kernels.dispatch import prefer  # noqa: E402
from vidlatent.parallel.mesh import make_mesh  # noqa: E402
from vidlatent.plan.hardware import HARDWARE, parse_topology  # noqa: E402
from vidlatent.plan.topology import get_devices  # noqa: E402
from vidlatent.report.tables import markdown_table  # noqa: E402

_SMALLEST = {"v5p": "v5p:1x1x1", "v5e": "v5e:1x1", "v6e": "v6e:1x1"}
Found = dict[str, dict[str, Any]]


def estimate_row(row: Row, mesh: Any) -> dict[str, Any]:
    """The compiler's figures of a row: milliseconds, GB of traffic and of temporaries."""
    begin = time.perf_counter()
    with jax.set_mesh(mesh), prefer(**row.preferred), row.around():
        function, arguments = row.program()
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        placed = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), arguments
        )
        compiled = jax.jit(function, donate_argnums=row.given_up).lower(*placed).compile()
    cost = compiled.cost_analysis()
    return {
        "ms": round(1e3 * cost["optimal_seconds"], 3),
        "GB": round(cost["bytes accessed"] / 1e9, 3),
        "TFLOP": round(cost["flops"] / 1e12, 4),
        "temporaries GB": round(compiled.memory_analysis().temp_size_in_bytes / 1e9, 3),
        "compile s": round(time.perf_counter() - begin, 1),
    }


def row_name(chip: str, row: Row) -> str:
    return f"{chip}: {row.what}: {row.form}"


def read_rows(path: Path) -> Found:
    """The rows of a file; none if it does not exist or is of other versions."""
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    return stored["rows"] if stored["versions"] == versions() else {}


def add_row(path: Path, name: str, figures: dict[str, Any]) -> None:
    """Write a row into the file, which other processes may be writing to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stored = {"versions": versions(), "rows": read_rows(path) | {name: figures}}
        new = path.with_suffix(".new")
        new.write_text(json.dumps(stored, indent=1) + "\n")
        new.replace(path)


def versions() -> dict[str, str]:
    """Versions of the packages that the figures depend on.

    Raises:
      VidlatentError: one of them is not installed.
    """
    try:
        return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    except importlib.metadata.PackageNotFoundError as error:
        raise VidlatentError(
            f"Estimates need the package {error.name}: make install-plan."
        ) from error


def attention_ms(chip: str, directions: str, tokens: int, width: int) -> float:
    """A layer's softmax attentions at the chip's peak; backward is 2.5 times forward."""
    operations = 4.0 * tokens * (tokens + sum(CONTEXT.values())) * width
    times = {"": 0.0, "forward": 1.0, "both": 3.5}[directions]
    return 1e3 * times * operations / HARDWARE[chip].flops


def format_table(wanted: Sequence[Row], found: Found, chips: Sequence[str], extra: Any) -> str:
    """Markdown with all forms of a program together; ``extra(chip, row)``: ms not estimated."""
    first = {}
    for row in wanted:
        first.setdefault(row.what, row)
    lines = []
    for row in wanted:
        base = first[row.what]
        line = {"program": row.what if row is base else "", "form": row.form}
        for chip in chips:
            figures, old = (found.get(row_name(chip, r), {}) for r in (row, base))
            change = None
            if figures and old and row is not base:
                times = split_unknown(figures["ms"])[0], split_unknown(old["ms"])[0]
                missed = extra(chip, row), extra(chip, base)
                change = _percent(times[0] / times[1])
                if missed[0]:
                    more = (times[0] + missed[0]) / (times[1] + missed[1])
                    change += f" ({_percent(more)})"
            study = row.earlier.get(chip)
            cells = {
                "ms": _milliseconds(figures.get("ms")),
                "GB": _rounded(figures.get("GB")),
                "temporaries GB": _rounded(figures.get("temporaries GB")),
                "change": change,
                "earlier": _percent(study) if study else None,
            }
            line |= {f"{chip} {name}": cell for name, cell in cells.items()}
        lines.append(line)
    return markdown_table(lines)


def split_unknown(milliseconds: float) -> tuple[float, int]:
    """``(milliseconds, instructions without an estimate)`` from the compiler's time.

    It adds -1 s for each instruction that it cannot estimate; no program here takes a second.
    """
    unknown = max(0, math.ceil(-milliseconds / 1000))
    return milliseconds + 1000 * unknown, unknown


def _milliseconds(value: float | None) -> str | None:
    if value is None:
        return None
    known, unknown = split_unknown(value)
    return f"{known:.2f}" + (f" + {unknown}?" if unknown else "")


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %".replace("-", "−")


def _missing(options: Any, chips: Sequence[str], path: Path) -> Iterator[tuple[str, Row]]:
    for chip in chips:
        for row in rows(options.tokens, options.width):
            if options.only in row.what and row_name(chip, row) not in read_rows(path):
                yield chip, row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chips", default="v5p,v6e")
    parser.add_argument("--tokens", type=int, default=7440)
    parser.add_argument("--width", type=int, default=5120)
    parser.add_argument("--only", default="", help="part of what to compile, such as 'chain'")
    parser.add_argument("--json", default="runs/estimates.json", help="file for the rows")
    options = parser.parse_args()
    chips, path = options.chips.split(","), Path(options.json)
    for chip, row in _missing(options, chips, path):
        mesh = make_mesh(
            {"data": 1, "fsdp": 1, "context": 1, "tensor": 1},
            get_devices(parse_topology(_SMALLEST[chip]))[:1],
        )
        figures = estimate_row(row, mesh)
        add_row(path, row_name(chip, row), figures)
        print(json.dumps({"row": row_name(chip, row)} | figures), flush=True)

    def extra(chip: str, row: Row) -> float:
        return attention_ms(chip, row.attention, options.tokens, options.width)

    print(format_table(list(rows(options.tokens, options.width)), read_rows(path), chips, extra))


if __name__ == "__main__":
    main()
