"""What planning and measuring share: a job's program with abstract arguments."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.parallel.sharding import ACTIVATION_AXES

__all__ = ["DoesNotFit", "Program", "check_batch", "sized"]


class DoesNotFit(VidlatentError):
    """A program that a machine has no place for.

    Attributes:
      needed: bytes of a device it asked for; NaN where that is not known.
    """

    def __init__(self, message: str, needed: float = math.nan):
        super().__init__(message)
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and what it is called with.

    Attributes:
      name: ``'train'``, ``'sample'``, ``'nfe'``, ``'encode'`` or ``'decode'``.
      about: what one run of it does, in a few words.
      function: jitted; called with the mesh set.
      arguments: pytrees of ShapeDtypeStructs with shardings.
      parts: names for parts of the arguments, such as the optimizer's moments.
      initial: for an argument that is not free, what makes it (under ``jit``); by position.
      carries: ``(result, argument)``: what a run hands to the next, given up by donation; None
        where runs have nothing to do with each other.
      frames: video frames that a run turns over, on all devices; a tile's share of them.
    """

    name: str
    about: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    parts: Mapping[str, Any]
    initial: Mapping[int, Callable[[], Any]]
    carries: tuple[int, int] | None
    frames: float


def check_batch(config: ConfigDict, mesh: Mesh, batch: int) -> None:
    """A batch, and each piece of it that is accumulated, is spread evenly over the mesh.

    Raises:
      DoesNotFit: it is not.
    """
    ways = math.prod(mesh.shape[axis] for axis in ACTIVATION_AXES["batch"])
    pieces = config.optim.accumulate
    if batch % (ways * pieces):
        each = f" in {pieces} pieces" if pieces > 1 else ""
        raise DoesNotFit(
            f"a batch of {batch}{each} does not spread over data {mesh.shape['data']} x fsdp "
            f"{mesh.shape['fsdp']}: change the batch of config.data.buckets or config.mesh."
        )


def sized(size: Sequence[int]) -> str:
    """``9x64x64``."""
    return "x".join(map(str, size))
