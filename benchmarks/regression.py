"""Operations, traffic and memory of some small programs, compared with the accepted figures.

    python -m benchmarks.regression            compare; exit status 1 if one changed
    python -m benchmarks.regression --write    accept the present figures

The figures come from compiling for one CPU device. They do not depend on the machine, but on the
version of JAX: tests compare them only under the version that they were written with. A change of
more than 5 %, in either direction, fails the test suite: accept it in the commit that causes it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from vidlatent.config import load
from vidlatent.parallel.mesh import make_mesh
from vidlatent.plan.build import build_program
from vidlatent.plan.costs import compile_program, read_costs
from vidlatent.report.tables import markdown_table

__all__ = ["PROGRAMS", "list_differences", "compute_figures", "explain_other_jax", "read_stored"]

FILE = Path(__file__).with_suffix(".json")
TOLERANCE = 0.05  # a real change is mostly larger, reordering by the compiler smaller
# Config (its demo) and bucket.
_TOKENIZERS = {
    "fsae": ("fsae", (9, 64, 64, 1)),
    "dcae": ("dcae", (1, 64, 64, 1)),
    "ivvae": ("ivvae", (5, 32, 32, 1)),
    "reducio": ("reducio_vae", (16, 32, 32, 1)),
    "promag": ("promag", (9, 32, 32, 1)),
}
_SMALL = {"width": 64, "depth": 4, "heads": 2, "hidden": 128, "latent_channels": 16}
_GENERATORS = {
    # With layer memory, whose backward pass is the package's own.
    "fsvideo_dit": {**_SMALL, "patch": (1, 1, 1), "stack": "recomputed"},
    "latte": _SMALL,
}
_CLIPS = (9, 64, 64, 2)
# Name -> (config, its program, bucket, config keys).
PROGRAMS = {
    f"{name} {what}": (config, what, bucket, {})
    for name, (config, bucket) in _TOKENIZERS.items()
    for what in ("train", "encode", "decode")
} | {
    f"{name} {what}": (name, what, _CLIPS, {f"generator.{k}": str(v) for k, v in fields.items()})
    for name, fields in _GENERATORS.items()
    for what in ("train", "nfe")
}


def compute_figures(name: str) -> dict[str, float]:
    """``flops``, ``bytes`` of memory traffic, and bytes of ``temporaries`` and ``total`` memory."""
    spec, what, bucket, keys = PROGRAMS[name]
    keys = {**keys, "plan.tokenizer": "fsae", "plan.bucket": str(bucket)}
    config = load(spec, {"precision.compute": "float32", **keys})
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    program = build_program(config, what, mesh, bucket)
    traced, executable, _ = compile_program(program, mesh)
    found = read_costs(program, traced, executable, 1)
    return {
        "flops": found["flops"]["program"],
        "bytes": found["bytes"]["program"],
        "temporaries": found["memory"]["temporaries"],
        "total": found["memory"]["total"],
    }


def read_stored() -> dict[str, Any]:
    """The accepted figures: ``jax``, their version, and ``programs``: name -> figures."""
    return json.loads(FILE.read_text())


def explain_other_jax() -> str:
    """What to do if JAX is not the version that the figures were written with, else ''."""
    written = read_stored()["jax"]
    if written == jax.__version__:
        return ""
    return (
        f"{FILE.name} is of jax {written} and this is {jax.__version__}, so nothing holds the "
        f"figures: install jax=={written}; or, to move on, see that `python -m "
        "benchmarks.regression` says 'as accepted' under the old one, then run it with --write "
        "under the new one and commit the file."
    )


def list_differences(names: Iterable[str]) -> list[dict[str, Any]]:
    """A row for each figure of these programs that differs from the accepted one by over 5 %."""
    accepted = read_stored()["programs"]
    rows = []
    for name in names:
        now, known = compute_figures(name), accepted[name] if name in accepted else {}
        for figure, value in now.items():
            before = known[figure] if figure in known else None
            if before is None or abs(value - before) > TOLERANCE * before:
                change = "new" if before is None else f"{value / before - 1:+.1%}"
                row = {"program": name, "figure": figure, "accepted": before, "now": value}
                rows.append({**row, "change": change})
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="accept the present figures")
    options = parser.parse_args(argv)
    if options.write:
        found = {
            "jax": jax.__version__,
            "programs": {name: compute_figures(name) for name in PROGRAMS},
        }
        FILE.write_text(json.dumps(found, indent=1) + "\n")
        print(f"wrote {len(PROGRAMS)} programs to {FILE}")
        return 0
    if told := explain_other_jax():
        print(told)
    rows = list_differences(PROGRAMS)
    print(markdown_table(rows, aligned=True) if rows else "as accepted")
    return 1 if rows else 0


if __name__ == "__main__":
    sys.exit(main())
