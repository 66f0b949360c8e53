"""What generation costs on one H200, from its ceilings to a video's evaluations and its decoding.

    python -m benchmarks.h200                        every row, within 25 minutes
    python -m benchmarks.h200 --only attention,nfe   sections by name
    python -m benchmarks.h200 --only cascade         a picture to a refined video, end to end
    python -m benchmarks.h200 --minutes 8 --resume   measure what --output lacks
    python -m benchmarks.h200 --size=small           the same rows at toy size, on any machine

The most important rows come first. Each section has a share of ``--minutes`` and starts no new row
after that; later sections get the time that earlier ones did not use. ``--output`` and a page
beside it (``.md``) are written after every row, so that an interrupted run loses nothing. Every row
has a prediction and the reason for it (``benchmarks.h200_report``). ``times`` is measured /
predicted; rows that are off by more than the prediction allows are marked ``explain``. ``share``
compares the row with the ceilings of the same run, the matrix product for operations or the copy
for bytes, whichever limits it; with fp8 it may exceed 1. ``error`` is the relative L2 distance from
the result in float32 (for network evaluations: in bfloat16 with scanned layers). ``GB`` is the
memory that the compiler allocated.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # if run as a file, not with -m

from benchmarks.h200_cascade import cascades
from benchmarks.h200_layers import convolutions, elementwise, mixtures
from benchmarks.h200_networks import decoding, evaluations
from benchmarks.h200_report import format_page, judge_ms, predict_ms, round_figure, sum_totals
from benchmarks.h200_rows import HALF, Row, attentions, ceilings, products
from vidlatent.bench.device import measure_peaks, read_peak_memory, read_program_memory, time_runs
from vidlatent.errors import VidlatentError
from vidlatent.parallel.compilation import keep_compiled

# A section's rows, and its share of the minutes.
SECTIONS: dict[str, tuple[Callable[[int], Iterator[Row]], float]] = {
    "ceilings": (ceilings, 0.5),
    "products": (products, 4.0),
    "attention": (attentions, 2.5),
    "elementwise": (elementwise, 1.5),
    "mixtures": (mixtures, 1.0),
    "convolutions": (convolutions, 2.5),
    "nfe": (evaluations, 7.0),
    "decode": (decoding, 3.0),
    "cascade": (cascades, 4.0),
}
_TOY = 40  # sizes are divided by it
_BURST_MS = 10.0  # a timed burst of runs should take at least this long
_MOST_RUNS = 200  # in a burst, so that a loop compiles and runs in seconds


@dataclasses.dataclass
class Run:
    """The result so far, and where it is written.

    Attributes:
      result: content of the file.
      repeats: timed bursts for each row.
      output: the file.
    """

    result: dict[str, Any]
    repeats: int
    output: Path

    @property
    def full(self) -> bool:
        return self.result["size"] == "full"

    @property
    def peaks(self) -> dict[str, float]:
        ceilings = self.result["ceilings"]
        return {"flops": 1e12 * ceilings["TFLOP/s"], "bandwidth": 1e9 * ceilings["GB/s"]}

    def write(self) -> None:
        """Write the file and its page anew."""
        self.result["totals"] = sum_totals(self.result["rows"], self.full)
        for path, text in (
            (self.output, json.dumps(self.result, indent=1) + "\n"),
            (self.output.with_suffix(".md"), format_page(self.result)),
        ):
            draft = path.with_name(f"{path.name}.part")
            draft.write_text(text)
            os.replace(draft, path)


# -- measuring -----------------------------------------------------------------------------------


def repeat_in_loop(function: Callable[..., Any], runs: int) -> Callable[..., Any]:
    """A function that calls ``function`` ``runs`` times in one program, one call after another.

    Each input depends on the result before. The loop counter and the change of one number add some
    microseconds to a call.
    """

    def repeated(x, *rest):
        def turn(_, carry):
            # Keeps XLA from moving work of a run out of the loop.
            x, *others = lax.optimization_barrier((carry[0], *rest))
            out = function(x, *others)
            first = jax.tree.leaves(out)[0].ravel()[0].astype(x.dtype)
            corner = (0,) * x.ndim
            spot = lax.slice(x, corner, (1,) * x.ndim)
            return lax.dynamic_update_slice(x, spot + x.dtype.type(1e-30) * first, corner), out

        shapes = jax.eval_shape(function, x, *rest)
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return lax.fori_loop(0, runs, turn, (x, empty))[1]

    return repeated


def time_case(row: Row, runs: int, repeats: int) -> dict[str, Any]:
    """Measure one row: seconds of a run, their spread, memory and the error."""
    case = row.make()
    function = repeat_in_loop(case.function, runs) if row.looped else case.function
    begin = time.perf_counter()
    program = jax.jit(function).lower(*case.arguments).compile(compiler_options=row.options or None)
    compiled = time.perf_counter() - begin
    calls = 1 if row.looped else runs

    def burst(_):
        for _ in range(calls - 1):
            program(*case.arguments)
        return program(*case.arguments)

    times = time_runs(burst, 2, repeats)
    out = program(*case.arguments)
    if case.keep is not None:
        case.keep(out)
    found = {
        "seconds": times.median / runs,
        "spread": times.to_json()["spread"],
        "memory": read_program_memory(program),
        "compile": compiled,
    }
    return found | (_measure_error(out, case.reference) if case.reference is not None else {})


def _measure_error(out: Any, reference: Callable[[], Any]) -> dict[str, Any]:
    """``{"error": ...}`` or, if computing it fails, ``{"note": reason}``, to keep the time."""
    try:
        return {"error": float(_difference(out, reference()))}
    except (RuntimeError, ValueError, VidlatentError) as error:
        return {"note": f"no error: {_first_line(error)}"}


@jax.jit
def _difference(out: Any, reference: Any) -> jax.Array:
    def squares(tree):
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))

    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (out, reference))
    apart = jax.tree.map(jnp.subtract, *whole)
    return jnp.sqrt(squares(apart) / squares(whole[1]))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"


def measure_row(run: Run, row: Row, late: bool) -> dict[str, Any]:
    """A row of the result: its prediction, and the measurement or why there is none.

    A row that fails does not stop the others.
    """
    expected, by = predict_ms(row.flops, row.bytes, row.study, run.full, run.peaks)
    line: dict[str, Any] = {"row": row.name, "predicted ms": expected, "by": by}
    if expected is not None:
        line["predicted ms"] = round_figure(expected)
    if row.part is not None:
        line["part"] = list(row.part)
    if late:
        return {**line, "note": "not measured: out of time"}
    try:
        if row.bench is not None:
            found = row.bench(run.repeats)
        else:
            runs = math.ceil(_BURST_MS / expected) if run.full and expected else 2
            found = time_case(row, min(runs, _MOST_RUNS), run.repeats)
    except (VidlatentError, RuntimeError, ValueError, TypeError) as error:
        return {**line, "note": f"failed: {_first_line(error)}"}
    return line | _derive_figures(run, row, found)


def _derive_figures(run: Run, row: Row, found: dict[str, Any]) -> dict[str, Any]:
    seconds, flops = found["seconds"], found.get("flops", row.flops)
    expected, by = predict_ms(flops, row.bytes, row.study, run.full, run.peaks)
    least, _ = predict_ms(flops, row.bytes, 0.0, False, run.peaks)
    ms = 1e3 * seconds
    figures = {
        "ms": ms,
        "predicted ms": expected,
        "times": ms / expected,
        "TFLOP/s": flops / seconds / 1e12 if flops else None,
        "GB/s": row.bytes / seconds / 1e9 if row.bytes else None,
        "share": least / ms,
        "error": found.get("error"),
        "spread": found["spread"],
        "GB": found["memory"] / 1e9,
        "compile s": found["compile"],
    }
    figures = {name: value and round_figure(value) for name, value in figures.items()}
    words = {"by": by, "remark": judge_ms(ms, expected, by, run.full), "note": found.get("note")}
    return figures | words


# -- the run -------------------------------------------------------------------------------------


def measure_all(run: Run, wanted: Sequence[str], minutes: float) -> None:
    """Measure all rows of the sections that have no time in ``run.result`` yet."""
    begin = time.monotonic()
    shares = sum(SECTIONS[name][1] for name in wanted)
    until = 0.0
    for name in wanted:
        rows, share = SECTIONS[name]
        until += share / shares
        started = time.monotonic()
        done = {line["row"] for line in run.result["rows"] if "ms" in line}
        for row in rows(1 if run.full else _TOY):
            if row.name in done:
                continue
            late = time.monotonic() - begin > 60 * minutes * until
            _replace_line(run.result["rows"], {"section": name, **measure_row(run, row, late)})
            print(json.dumps(run.result["rows"][-1]), flush=True)
            run.write()
        gc.collect()  # frees parameters before the next section makes its own
        memory, of = read_peak_memory()
        run.result["sections"][name] = {
            "seconds": round_figure(time.monotonic() - started),
            "most GB so far": round_figure(memory / 1e9),
            "of": of,
        }
        run.write()


def _replace_line(lines: list[dict[str, Any]], line: dict[str, Any]) -> None:
    """Add a line in place of an earlier one of the same row."""
    lines[:] = [earlier for earlier in lines if earlier["row"] != line["row"]]
    lines.append(line)


def open_run(options: argparse.Namespace) -> Run:
    """A new run or, with ``--resume``, one with the rows that the file holds.

    Raises:
      VidlatentError: they were measured with another size, device or JAX.
    """
    output = Path(options.output)
    peaks = measure_peaks(HALF)
    result: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "size": options.size,
        "repeats": options.repeats,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "ceilings": {"TFLOP/s": peaks["flops"] / 1e12, "GB/s": peaks["bandwidth"] / 1e9},
        "sections": {},
        "rows": [],
    }
    if options.resume and output.exists():
        earlier = json.loads(output.read_text())
        for name in ("device", "jax", "size"):
            if earlier[name] != result[name]:
                raise VidlatentError(
                    f"--resume: {output} is of {name} {earlier[name]}, not {result[name]}: name "
                    "another --output."
                )
        result |= {"rows": earlier["rows"], "sections": earlier["sections"]}
    return Run(result, options.repeats, output)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--only", default="", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--minutes", type=float, default=22.0, help="start no new row after these")
    parser.add_argument("--repeats", type=int, default=20, help="timed bursts of a row")
    parser.add_argument("--output", default="h200.json")
    parser.add_argument("--resume", action="store_true", help="keep the rows that --output has")
    options = parser.parse_args(argv)
    wanted = options.only.split(",") if options.only else list(SECTIONS)
    if unknown := set(wanted) - set(SECTIONS):
        parser.error(f"no section is called {', '.join(sorted(unknown))}")
    keep_compiled()
    try:
        run = open_run(options)
    except VidlatentError as error:
        parser.error(str(error))
    measure_all(run, [name for name in SECTIONS if name in wanted], options.minutes)
    print(format_page(run.result))


if __name__ == "__main__":
    main()
