"""Totals of VBench and of VBench-I2V, from the files that its own program writes.

python -m vidlatent.evaluate.vbench evaluation_results/*_eval_results.json

Text to video has quality, semantic and total score; image to video (one of i2v_subject,
i2v_background, camera_motion is among the files) has I2V, quality and total score. Each file is an
object of dimensions, ``{"color": [0.89, [...]]}`` or ``{"color": 0.89}``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from vidlatent.errors import VidlatentError
from vidlatent.metrics.vbench import compute_totals, find_suite
from vidlatent.paths import as_path

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table in per cent; the exit status is 1 for a mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m vidlatent.evaluate.vbench", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("files", nargs="+", help="results of VBench, .json")
    options = parser.parse_args(arguments)
    try:
        scores: dict[str, float] = {}
        for file in options.files:
            scores |= _read(file)
        totals = compute_totals(scores)
    except VidlatentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name in find_suite(scores).dimensions:
        print(f"{name:24} {100 * scores[name]:6.2f}")
    for name, value in totals.items():
        print(f"{name:24} {100 * value:6.2f}")
    return 0


def _read(path: str) -> dict[str, float]:
    file = as_path(path)
    if not file.is_file():
        raise VidlatentError(f"there is no file {path}: name the results that VBench wrote.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        pairs = content.items()
        return {name: float(row[0] if isinstance(row, list) else row) for name, row in pairs}
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise VidlatentError(f"{path} holds no VBench results: {error}.") from error


if __name__ == "__main__":
    sys.exit(main())
