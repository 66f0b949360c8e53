"""How much memory is free, and how much a program will need; known before compiling it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import jax
from jax.extend import core as jex

__all__ = ["count_tree_bytes", "estimate_peak_bytes", "find_free_memory", "find_host_memory"]

# Primitives whose result is their input under another shape, or updated in place.
_ALIASES = frozenset("reshape squeeze expand_dims stop_gradient sharding_constraint copy".split())
_UPDATES = frozenset("dynamic_update_slice scatter".split())
# Primitives that compilers fuse into the reader of their result, without writing it to memory.
_VIEWS = _ALIASES | frozenset("broadcast_in_dim convert_element_type iota slice split rev".split())
# Primitives that cannot fuse their inputs: views that they read are written to memory first.
_READERS = frozenset("conv_general_dilated dot_general concatenate pad reduce_window".split())


def find_free_memory(gigabytes: float = 0.0) -> tuple[float | None, str]:
    """Free memory in bytes, and words that say where the number is from.

    On accelerators it is what the device's allocator has left; on CPUs what the kernel could give
    without swapping, within the container's limit. None where it is unknown.

    Args:
      gigabytes: returned (in bytes) unless 0.
    """
    if gigabytes:
        return gigabytes * 2**30, "that config.codec.memory_gb allows"
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            return None, ""
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0), f"left on {device.device_kind}"
    free = find_host_memory()
    return free, "" if free is None else "available on this host"


def find_host_memory() -> float | None:
    """Bytes that the kernel could give without swapping, within the container's limit.

    None where it is unknown.
    """
    found = [size for size in (_available(), _container()) if size is not None]
    return min(found) if found else None


def _available() -> float | None:
    table = Path("/proc/meminfo")
    if table.exists():
        for line in table.read_text().splitlines():
            # Unlike MemFree it counts caches that the kernel would give up.
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return None


def _container() -> float | None:
    """Bytes below the container's limit (control groups, version 2); None without a limit."""
    limit, used = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current"))
    if not limit.exists() or not used.exists() or limit.read_text().strip() == "max":
        return None
    return float(limit.read_text()) - float(used.read_text())


def count_tree_bytes(tree: Any) -> int:
    """Bytes of all arrays, or shapes of arrays, in a tree."""
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree))


def estimate_peak_bytes(jaxpr: Any) -> int:
    """Bytes that a program needs beside its arguments; an estimate, not a measurement.

    Equations run in order, and an array lives from the equation that makes it to the last one that
    reads it. Views (broadcasts, casts, slices) are free until a convolution or product reads them.
    Compilers do better by fusing and worse by reordering, padding and copying;
    ``tests/codec/test_codec_space.py`` compares with what they allocate.

    Args:
      jaxpr: what ``jax.make_jaxpr`` returns.
    """
    return _peak(jaxpr.jaxpr)


def _bytes(x: Any) -> int:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        return 0
    size = x.dtype.itemsize if hasattr(x.dtype, "itemsize") else 8
    return math.prod(x.shape) * size


def _peak(jaxpr: Any) -> int:
    roots, aliases, last = _lives(jaxpr)
    held: dict[Any, int] = {}  # arrays made here and still needed
    now = highest = 0
    for place, eqn in enumerate(jaxpr.eqns):
        kind = eqn.primitive.name
        read = [var for var in eqn.invars if not isinstance(var, jex.Literal)]
        # The passes of a loop reuse the same memory, and only one branch runs: no sum.
        inner = max((_peak(sub) for sub in _subs(eqn)), default=0)
        ends = {root for var in read for root in roots[var] if last[root] == place}
        # Arguments are not ours to free.
        ends &= held.keys()
        made = sum(_bytes(var.aval) for var in eqn.outvars if var in roots[var])
        written = 0
        if kind in _READERS:
            # Views that were free so far are written to memory for it.
            written = sum(_bytes(var.aval) for var in read if var not in aliases)
        # What is read is still held while the result, or an inner program, takes memory.
        highest = max(highest, now + written + max(inner, made))
        if made:
            for var in eqn.outvars:
                if var in last and var in roots[var]:
                    held[var] = _bytes(var.aval)
                    now += held[var]
        for root in ends:
            now -= held.pop(root)
    return max(highest, now)


def _lives(jaxpr: Any) -> tuple[dict[Any, set[Any]], set[Any], dict[Any, int]]:
    """Analyse lifetimes.

    Returns:
      For each variable the arrays that it is a view of; the variables that are arrays themselves;
      and for each array the index of the last equation that reads it.
    """
    roots = {var: {var} for var in (*jaxpr.invars, *jaxpr.constvars)}
    aliases = set(roots)
    last: dict[Any, int] = {}
    for place, eqn in enumerate(jaxpr.eqns):
        read = [var for var in eqn.invars if not isinstance(var, jex.Literal)]
        for var in read:
            for root in roots[var]:
                last[root] = place
        seen = set().union(*(roots[var] for var in read))
        kind = eqn.primitive.name
        for var in eqn.outvars:
            # An update in place gives back the array that it was given, unless that is a view.
            over = kind in _UPDATES and eqn.invars[0] in aliases
            roots[var] = seen if kind in _VIEWS or over else {var}
            if kind not in _VIEWS or (kind in _ALIASES and aliases.issuperset(read)):
                aliases.add(var)
    for var in jaxpr.outvars:
        if not isinstance(var, jex.Literal):
            for root in roots[var]:
                # Results outlive the program.
                last[root] = len(jaxpr.eqns)
    return roots, aliases, last


def _subs(eqn: Any) -> list[Any]:
    """Inner programs of an equation: bodies of loops, calls and branches."""
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, jex.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, jex.Jaxpr):
                found.append(item)
    return found
