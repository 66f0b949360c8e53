"""Peak rates and memory of accelerators from their makers' data sheets, and topology names.

Sources:

* TPUs: the pages on v5e, v5p and v6e in Google Cloud's TPU documentation (key specifications). They
  give the interconnect of a chip for both directions together; ``link`` is one direction. Memory is
  what the compiler lets a program use, according to its out-of-memory messages (libtpu 0.0.42); the
  pages say 16, 95 and 32 GB.
* GPUs: NVIDIA's data sheets of the H100 and H200 SXM. bfloat16 is dense: half of the figure with
  sparsity. NVLink is one direction, inside a node of 8. So is PCIe 5.0, the way from the host.
"""

from __future__ import annotations

import dataclasses
import math
import re

from vidlatent.errors import VidlatentError

__all__ = ["HARDWARE", "Hardware", "Topology", "parse_topology"]

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One device. Rates are peaks; 0 where none is published.

    Attributes:
      name: as in ``--topology``.
      platform: ``'cpu'``, ``'gpu'`` or ``'tpu'``.
      memory: bytes that a program may use.
      flops: dense bfloat16 operations a second.
      bandwidth: bytes a second between the device and its memory.
      link: bytes a second that the device can send to all its neighbours together.
      host: bytes a second from the host's memory to the device.
      kinds: JAX's ``device_kind`` of such devices.
    """

    name: str
    platform: str
    memory: float = math.inf
    flops: float = 0.0
    bandwidth: float = 0.0
    link: float = 0.0
    host: float = 0.0
    kinds: tuple[str, ...] = ()


HARDWARE = {
    entry.name: entry
    for entry in (
        Hardware("v5e", "tpu", 15.75 * GIB, 197e12, 819e9, 200e9, 0.0, ("TPU v5 lite", "TPU v5e")),
        Hardware("v5p", "tpu", 95.74 * GIB, 459e12, 2765e9, 600e9, 0.0, ("TPU v5", "TPU v5p")),
        Hardware("v6e", "tpu", 31.25 * GIB, 918e12, 1600e9, 400e9, 0.0, ("TPU v6 lite", "TPU v6e")),
        Hardware("h100", "gpu", 80e9, 989e12, 3350e9, 450e9, 64e9, ("NVIDIA H100 80GB HBM3",)),
        Hardware("h200", "gpu", 141e9, 989e12, 4800e9, 450e9, 64e9, ("NVIDIA H200",)),
        Hardware("cpu", "cpu", kinds=("cpu",)),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A grid of devices of one kind, such as ``v5p:8x8x4``."""

    hardware: Hardware
    grid: tuple[int, ...]

    @property
    def devices(self) -> int:
        return math.prod(self.grid)

    def __str__(self) -> str:
        return f"{self.hardware.name}:{'x'.join(map(str, self.grid))}"


# Number of axes that a grid of this kind may have.
# Chips of v5e and v6e form a 2D torus, those of v5p a 3D one.
_AXES = {"v5e": (2,), "v6e": (2,), "v5p": (3,), "cpu": (1,), "h100": (1,), "h200": (1,)}


def parse_topology(text: str) -> Topology:
    """``v5p:8x8x4``, ``v6e:16x16``, ``v5e:2x4``, ``h200:8`` or ``cpu:8``.

    Raises:
      VidlatentError: the text has another form, or names hardware that is not in the table.
    """
    name, _, sizes = text.partition(":")
    if name not in HARDWARE:
        raise VidlatentError(
            f"--topology={text}: unknown hardware {name!r}; known: {', '.join(HARDWARE)}."
        )
    axes = _AXES[name]
    grid = tuple(map(int, sizes.split("x"))) if re.fullmatch(r"\d+(x\d+)*", sizes) else ()
    if len(grid) not in axes or 0 in grid:
        example = {1: "8", 2: "4x4", 3: "4x4x4"}[axes[0]]
        raise VidlatentError(f"--topology={text}: give the grid as in {name}:{example}.")
    return Topology(HARDWARE[name], grid)
