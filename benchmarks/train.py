"""Training speed of a config: steps/s, frames/s, and the share of time spent waiting for data.

    python -m benchmarks.train --config=configs/fsae.py --steps=100

Runs the real loop into a temporary workdir. The first report, which holds the compilation of every
shape, is left out; the figures are medians over the remaining ones, with their range.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import jax
from absl import logging

from vidlatent.config import load
from vidlatent.io.writers import read_metrics
from vidlatent.train.loop import train

MEASURED = ("steps_per_second", "frames_per_second", "data_wait_share")


def measure(spec: str, steps: int) -> dict[str, object]:
    """Train ``steps`` steps and summarise the loop's own reports."""
    overrides = {"train.steps": str(steps), "eval.every": "0", "checkpoint.every": "0"}
    config = load(spec, overrides)
    if steps < 3 * config.train.log_every:
        raise SystemExit(f"--steps={steps}: take at least {3 * config.train.log_every}.")
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder))
        curves = read_metrics(Path(folder) / "metrics.jsonl")
    summary = {}
    for name in MEASURED:
        values = curves[f"train/{name}"][1][1:]
        summary[name] = {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "reports": len(values),
        }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/fsae.py")
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    device = jax.devices()[0]
    result = {
        "config": args.config,
        "device": f"{jax.device_count()} x {device.device_kind}",
        "jax": jax.__version__,
        **measure(args.config, args.steps),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
