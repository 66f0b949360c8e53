"""``Program``: a job's jitted function with abstract arguments, for ``plan`` and ``bench``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.parallel.sharding import ACTIVATION_AXES

__all__ = ["DoesNotFit", "DoesNotSpread", "Program", "check_batch", "format_size"]


class DoesNotFit(VidlatentError):
    """The program needs more memory than a device has.

    Attributes:
      needed: bytes that it needs on a device; NaN where the compiler does not say.
    """

    def __init__(self, message: str, needed: float = math.nan):
        super().__init__(message)
        self.needed = needed


class DoesNotSpread(VidlatentError):
    """The mesh cannot divide the batch, however much memory there is."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and the arguments that it is called with.

    Attributes:
      name: ``'train'``, ``'sample'``, ``'nfe'``, ``'encode'`` or ``'decode'``.
      about: one line for reports: what a single call does.
      function: jitted; called with the mesh set.
      arguments: pytrees of ShapeDtypeStructs with shardings.
      parts: subtrees of the arguments by name, such as the optimizer state, to report their size.
      initial: position of an argument -> function (to be jitted) that makes its first value, for
        arguments that cannot be random, such as parameters.
      carries: ``(result, argument)`` positions: that result is the argument of the next call, whose
        buffer is donated, such as the training state. None if calls are independent.
      frames: video frames that one call processes on all devices; for one of several tiles, its
        share of them.
    """

    name: str
    about: str
    function: Any
    arguments: tuple[Any, ...]
    parts: Mapping[str, Any]
    initial: Mapping[int, Callable[[], Any]]
    carries: tuple[int, int] | None
    frames: float


def check_batch(config: ConfigDict, mesh: Mesh, batch: int) -> None:
    """Check that the mesh divides the batch, or each piece of it with gradient accumulation.

    Raises:
      DoesNotSpread: it does not.
    """
    ways = math.prod(mesh.shape[axis] for axis in ACTIVATION_AXES["batch"])
    pieces = config.optim.accumulate
    if batch % (ways * pieces):
        each = f" in {pieces} pieces" if pieces > 1 else ""
        raise DoesNotSpread(
            f"a batch of {batch}{each} does not spread over data {mesh.shape['data']} x fsdp "
            f"{mesh.shape['fsdp']}: change the batch of config.data.buckets or config.mesh."
        )


def format_size(size: Iterable[float]) -> str:
    """``9x64x64``."""
    return "x".join(map(str, size))
