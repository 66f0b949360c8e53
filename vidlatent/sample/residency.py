"""Which networks are in memory when: loading order and release of networks by name.

A job runs in stages, such as encoding texts, then drawing and decoding. Each stage names the
networks that it uses. They are loaded when they are first asked for, and with ``swap`` those of
earlier stages are released before. So a text encoder of 11 GB and a transformer of 33 GB never are
in memory together.

With ``swap`` on an accelerator, a stage may name a network of a later one: a thread reads it into
the host's memory, if there is room, while the stage computes, and ``copy_ahead`` sends it to the
devices while the last steps run. Of a cascade, base model and refiner are on the devices together
for these steps alone, and only if both fit. What is in the host's memory stays there for the next
job.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from absl import logging

from vidlatent.codec.memory import count_tree_bytes, find_free_memory, find_host_memory
from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = [
    "PLANS",
    "Loadable",
    "Residency",
    "choose_plan",
    "count_device_bytes",
    "hold_on_host",
    "measure_peak",
]

PLANS = ("swap", "keep")
# Of the free memory, what parameters may take if all networks are to stay: activations need room.
_SHARE = 0.6
# Host memory for a network of one byte: as the checkpoint has it (float32), cast, and pinned.
_HOST_BYTES = 4
# Of the device's free memory, what a network that is copied ahead may take with what is reserved.
_AHEAD_SHARE = 0.95
_PINNED = "pinned_host"


@dataclasses.dataclass(frozen=True)
class Loadable:
    """A network that can be loaded, as often as it was released.

    Attributes:
      load: reads it and puts it onto its devices.
      size: bytes of its parameters on the device that holds most; known without loading it.
      read, place: ``load`` in two steps, for large networks: into the host's memory, and from there
        onto the devices by a copy that goes on after ``place`` has returned.
    """

    load: Callable[[], Any]
    size: Callable[[], int]
    read: Callable[[], Any] | None = None
    place: Callable[[Any], Any] | None = None


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
        self._later: tuple[str, ...] = ()
        self._sizes: dict[str, int] = {}
        self._peak: dict[str, int] = {}
        # In the host's memory, or being read into it.
        self._hosted: dict[str, Future[Any]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-weights")

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the networks in memory, in the order in which they were loaded."""
        return tuple(self._held)

    @property
    def peak(self) -> dict[str, int]:
        """Estimated bytes by network at the moment when most was held so far."""
        return dict(self._peak)

    def enter(self, *names: str, then: Sequence[str] = ()) -> None:
        """Begin a stage that uses these networks; with ``swap`` all others are released.

        Args:
          names: of the networks.
          then: those of a later stage: they are read into the host's memory meanwhile, and stay
            if they are on the devices.
        """
        for name in (*names, *then):
            self._check(name)
        self._stage, self._later = names, tuple(then)
        if self.plan == "swap":
            self.release(*(name for name in self._held if name not in (*names, *then)))
            for name in then:
                self._host(name)
        if jax.process_count() > 1:
            # A stage may ask in one process alone, but reading a checkpoint takes all of them.
            for name in names:
                self[name]

    def __getitem__(self, name: str) -> Any:
        """The network of this name; one that the stage did not name begins a stage of its own."""
        self._check(name)
        if name not in self._stage:
            self.enter(name)
        if name not in self._held:
            self._bring(name)
        return self._held[name]

    def copy_ahead(self, name: str, reserve: float = 0.0) -> bool:
        """Begin to copy a network of a later stage to the devices, and return at once.

        Nothing is done while it is still being read into the host's memory, or where the devices
        have no room for it: then the stage that uses it brings it.

        Args:
          name: one of ``enter``'s ``then``.
          reserve: bytes of a device that the present stage needs beside what it has allocated now.

        Returns:
          Whether the network is on the devices, or on its way.
        """
        if name in self._held:
            return True
        hosted = self._hosted.get(name)
        if name not in self._later or hosted is None or not hosted.done():
            return False
        free, _ = find_free_memory()
        if free is None or self.size(name) + reserve > _AHEAD_SHARE * free:
            return False
        self._bring(name)
        return True

    def _bring(self, name: str) -> None:
        """Put a network onto its devices, from the host's memory if it is there."""
        network = self._networks[name]
        if name in self._hosted:
            assert network.place is not None
            try:
                self._held[name] = network.place(self._hosted[name].result())
            except Exception:
                del self._hosted[name]  # what could not be read is tried anew
                raise
        else:
            self._held[name] = network.load()
        sizes = {name: self.size(name) for name in self._held}
        if sum(sizes.values()) > sum(self._peak.values()):
            self._peak = sizes

    def _host(self, name: str) -> None:
        """Begin to read a network into the host's memory, if that is of use and there is room."""
        network = self._networks[name]
        if name in self._hosted or name in self._held or network.read is None:
            return
        if _has_host_room(self.size(name)):
            self._hosted[name] = self._reader.submit(network.read)

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


def hold_on_host(tree: Any, where: Any) -> Any:
    """Arrays in pinned host memory, which devices read while the processor does other things.

    Args:
      tree: NumPy arrays; they are returned where devices have no such memory.
      where: their shardings on the devices.
    """
    kinds = {memory.kind for memory in jax.local_devices()[0].addressable_memories()}
    if _PINNED not in kinds:
        return tree
    pinned = jax.tree.map(lambda sharding: sharding.with_memory_kind(_PINNED), where)
    try:
        return jax.block_until_ready(jax.device_put(tree, pinned))
    except jax.errors.JaxRuntimeError as error:
        # There is a limit on pinned memory; from other memory the copy is slower, and the same.
        logging.warning(
            "weights are not pinned in the host's memory: %s", str(error).split("\n")[0]
        )
        return tree


def _has_host_room(size: float) -> bool:
    """Whether a network of so many bytes a device can be kept in the host's memory."""
    # A device that computes in the host's memory gains nothing from a second copy there. Several
    # processes would have to read in step, which a thread cannot promise.
    if jax.local_devices()[0].platform == "cpu" or jax.process_count() > 1:
        return False
    free = find_host_memory()
    return free is not None and _HOST_BYTES * size * jax.local_device_count() <= free


def measure_peak() -> int | None:
    """Most bytes in use on a device of this process so far; None where devices do not say."""
    found = [(device.memory_stats() or {}) for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in found if "peak_bytes_in_use" in stats]
    return max(peaks, default=None)
