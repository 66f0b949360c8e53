"""Which networks are in memory when: loading order and release of networks by name.

A job runs in stages, such as encoding texts, then drawing and decoding. Each stage names the
networks that it uses. They are loaded when they are first asked for, and with ``swap`` those of
earlier stages are released before. So a text encoder of 11 GB and a transformer of 33 GB never are
in memory together, and neither are the networks of a cascade.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from vidlatent.codec.memory import count_tree_bytes, find_free_memory
from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = ["PLANS", "Loadable", "Residency", "choose_plan", "count_device_bytes", "measure_peak"]

PLANS = ("swap", "keep")
# Of the free memory, what parameters may take if all networks are to stay: activations need room.
_SHARE = 0.6


@dataclasses.dataclass(frozen=True)
class Loadable:
    """A network that can be loaded, as often as it was released.

    Attributes:
      load: reads it and puts it onto its devices.
      size: bytes of its parameters on the device that holds most; known without loading it.
    """

    load: Callable[[], Any]
    size: Callable[[], int]


class Residency:
    """Networks by name, loaded and released by the stages of a job.

    Args:
      networks: those that a stage may ask for; they may depend on each other in no way.
      plan: ``'swap'``: a stage releases the networks that it does not name; ``'keep'``: what was
        loaded stays.
    """

    def __init__(self, networks: Mapping[str, Loadable], plan: str = "swap"):
        if plan not in PLANS:
            raise VidlatentError(f"residency {plan!r} is unknown: {did_you_mean(plan, PLANS)}")
        self.plan = plan
        self._networks = dict(networks)
        self._held: dict[str, Any] = {}
        self._stage: tuple[str, ...] = ()
        self._sizes: dict[str, int] = {}
        self._peak: dict[str, int] = {}

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the networks in memory, in the order in which they were loaded."""
        return tuple(self._held)

    @property
    def peak(self) -> dict[str, int]:
        """Estimated bytes by network at the moment when most was held so far."""
        return dict(self._peak)

    def enter(self, *names: str) -> None:
        """Begin a stage that uses these networks; with ``swap`` all others are released."""
        for name in names:
            self._check(name)
        self._stage = names
        if self.plan == "swap":
            self.release(*(name for name in self._held if name not in names))

    def __getitem__(self, name: str) -> Any:
        """The network of this name; one that the stage did not name begins a stage of its own."""
        self._check(name)
        if name not in self._stage:
            self.enter(name)
        if name not in self._held:
            self._held[name] = self._networks[name].load()
            sizes = {name: self.size(name) for name in self._held}
            if sum(sizes.values()) > sum(self._peak.values()):
                self._peak = sizes
        return self._held[name]

    def size(self, name: str) -> int:
        """Bytes of the network's parameters on the device that holds most of them."""
        self._check(name)
        if name not in self._sizes:
            self._sizes[name] = self._networks[name].size()
        return self._sizes[name]

    def release(self, *names: str) -> None:
        """Let go of networks; memory is free once nobody else refers to their parameters."""
        for name in names:
            self._held.pop(name, None)

    def _check(self, name: str) -> None:
        if name not in self._networks:
            raise ValueError(f"no network {name!r} among {', '.join(self._networks)}")


def choose_plan(asked: str, sizes: Sequence[int]) -> str:
    """``'keep'`` if ``asked`` is ``'auto'`` and all networks fit at once, else ``'swap'``.

    Args:
      asked: ``'auto'``, or a plan, which is returned.
      sizes: bytes of each network.
    """
    if asked != "auto":
        return asked
    free, _ = find_free_memory()
    return "keep" if free is not None and sum(sizes) <= _SHARE * free else "swap"


def count_device_bytes(tree: Any) -> int:
    """Bytes of arrays, or of their shapes, on one device: what their shardings leave to it."""

    def own(leaf):
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return count_tree_bytes(jax.tree.map(own, tree))


def measure_peak() -> int | None:
    """Most bytes in use on a device of this process so far; None where devices do not say."""
    found = [(device.memory_stats() or {}) for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in found if "peak_bytes_in_use" in stats]
    return max(peaks, default=None)
