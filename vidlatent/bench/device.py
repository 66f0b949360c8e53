"""Timing programs, and measuring the best rates that this device reaches."""

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
    """Times of repeated runs.

    Attributes:
      seconds: of each run, in order.
    """

    def __init__(self, seconds: Sequence[float]):
        self.seconds = list(seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def to_json(self) -> dict[str, float | int]:
        """``median_s``, ``least_s``, ``most_s``, ``spread`` (interquartile range / median)."""
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return {
            "median_s": self.median,
            "least_s": min(self.seconds),
            "most_s": max(self.seconds),
            "spread": (high - low) / self.median,
            "runs": len(self.seconds),
        }


def time_runs(run: Callable[[int], Any], warmup: int, repeats: int) -> Times:
    """Time calls of ``run(number)``, each until its result is ready.

    Args:
      run: called with 0, 1, 2 and so on.
      warmup: calls before the ones that are timed.
      repeats: calls that are timed, at least 2.
    """
    seconds = []
    for number in range(warmup + max(2, repeats)):
        begin = time.perf_counter()
        jax.block_until_ready(run(number))
        seconds.append(time.perf_counter() - begin)
    return Times(seconds[warmup:])


def measure_peaks(dtype: Any, repeats: int = 5) -> dict[str, float]:
    """``flops`` of a matrix product in ``dtype`` and ``bandwidth`` of a copy, both a second.

    The best of ``repeats`` runs on one device. Programs are compared with these rather than with a
    data sheet, because those of CPUs do not give such figures.
    """
    cpu = jax.default_backend() == "cpu"
    # Large enough to reach the device's full rate, small enough to take well under a second.
    side, length = (1024, 2**24) if cpu else (8192, 2**28)
    device = jax.local_devices()[0]
    key = jax.device_put(jax.random.key(0), device)
    square = jax.random.normal(key, (side, side), dtype)
    row = jnp.ones((length,), jnp.float32)

    product = jax.jit(lambda x: x @ x)
    # x + 1, because a jitted identity returns its argument without copying.
    copy = jax.jit(lambda x: x + 1)
    products = time_runs(lambda _: product(square), 2, repeats)
    copies = time_runs(lambda _: copy(row), 2, repeats)
    return {
        "flops": 2 * side**3 / min(products.seconds),
        # Each byte is read once and written once.
        "bandwidth": 2 * row.nbytes / min(copies.seconds),
    }


def read_peak_memory() -> tuple[int, str]:
    """``(bytes, "device" or "process")``: the most memory in use since the process began.

    It is the device's if JAX reports it, else the resident memory of the process.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"], "device"
    unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process"


def read_program_memory(compiled: Any) -> int:
    """Bytes that the compiler allocates for a program on one device.

    Arguments, results that do not reuse an argument's buffer, temporaries and code.
    """
    stats = compiled.memory_analysis()
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    held = stats.argument_size_in_bytes + results + stats.temp_size_in_bytes
    return held + stats.generated_code_size_in_bytes
