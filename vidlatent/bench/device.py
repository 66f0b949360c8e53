"""What this device does at best, measured, and how to time a program on it."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["Times", "measure_peaks", "read_peak_memory", "read_program_memory", "time_runs"]


class Times:
    """Seconds of repeated runs.

    Attributes:
      seconds: of each run, in order.
    """

    def __init__(self, seconds: Sequence[float]):
        self.seconds = list(seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def to_json(self) -> dict[str, float | int]:
        """``median_s``, ``least_s``, ``most_s``, ``spread`` (between quartiles, of the median)."""
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return {
            "median_s": self.median,
            "least_s": min(self.seconds),
            "most_s": max(self.seconds),
            "spread": (high - low) / self.median,
            "runs": len(self.seconds),
        }


def time_runs(run: Callable[[int], Any], warmup: int, repeats: int) -> Times:
    """Time ``run(number)``, whose result is waited for, after ``warmup`` runs that do not count."""
    seconds = []
    for number in range(warmup + max(2, repeats)):
        begin = time.perf_counter()
        jax.block_until_ready(run(number))
        seconds.append(time.perf_counter() - begin)
    return Times(seconds[warmup:])


def measure_peaks(dtype: Any, repeats: int = 5) -> dict[str, float]:
    """``flops`` of a square matrix product in ``dtype`` and ``bandwidth`` of a copy, a second.

    The best of ``repeats`` runs on one device: what a program can be held against, which data
    sheets of CPUs do not say.
    """
    cpu = jax.default_backend() == "cpu"
    side, length = (1024, 2**24) if cpu else (8192, 2**28)
    device = jax.devices()[0]
    key = jax.device_put(jax.random.key(0), device)
    square = jax.random.normal(key, (side, side), dtype)
    row = jnp.ones((length,), jnp.float32)

    product = jax.jit(lambda x: x @ x)
    copy = jax.jit(lambda x: x + 1)
    products = time_runs(lambda _: product(square), 2, repeats)
    copies = time_runs(lambda _: copy(row), 2, repeats)
    return {
        "flops": 2 * side**3 / min(products.seconds),
        "bandwidth": 2 * row.nbytes / min(copies.seconds),
    }


def read_peak_memory() -> tuple[int, str]:
    """Most bytes held so far, and of what: of a device where it keeps count, else of the process.

    It is the most since the process began.
    """
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"], "device"
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process"


def read_program_memory(compiled: Any) -> int:
    """Bytes that a compiled program holds at once on a device, as the compiler allocated them.

    Arguments, results that do not take an argument's place, temporaries and code.
    """
    stats = compiled.memory_analysis()
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    held = stats.argument_size_in_bytes + results + stats.temp_size_in_bytes
    return held + stats.generated_code_size_in_bytes
