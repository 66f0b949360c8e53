"""Which form of a kernel runs where."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import jax

from vidlatent.registry import did_you_mean
from vidlatent.typing import VidlatentError

__all__ = ["choose", "current_platform", "needs_manual", "prefer", "say_once", "wanted"]

log = logging.getLogger(__name__)

_PREFERRED: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar(
    "forms", default=MappingProxyType({})
)


def current_platform() -> str:
    """``'cpu'``, ``'gpu'`` or ``'tpu'``: the ambient mesh's, else the default backend's.

    The mesh comes first so that compiling ahead of time for a TPU topology on a CPU host picks
    the TPU forms.
    """
    mesh = jax.sharding.get_abstract_mesh()
    platform = None if mesh.empty else mesh.abstract_device.platform
    platform = platform or jax.default_backend()
    return "gpu" if platform in ("cuda", "rocm") else platform


@contextlib.contextmanager
def prefer(**forms: str) -> Iterator[None]:
    """Named forms in place of ``'auto'`` for whatever is traced inside: ``attention='xla'``.

    A function that has been traced before keeps the forms it was traced with.
    """
    token = _PREFERRED.set({**_PREFERRED.get(), **forms})
    try:
        yield
    finally:
        _PREFERRED.reset(token)


def wanted(kind: str, implementation: str) -> str:
    """``implementation``, or what ``prefer`` says where it is ``'auto'``."""
    return _PREFERRED.get().get(kind, "auto") if implementation == "auto" else implementation


def choose(
    kind: str,
    implementation: str,
    known: tuple[str, ...],
    auto: dict[str, str],
    platform: str | None = None,
) -> str:
    """Resolve ``'auto'`` by platform (``auto['default']`` for one not listed) and check a name."""
    implementation = wanted(kind, implementation)
    if implementation == "auto":
        return auto.get(platform or current_platform(), auto["default"])
    if implementation not in known:
        hint = did_you_mean(implementation, ("auto", *known))
        raise VidlatentError(f"unknown implementation {implementation!r} of {kind}: {hint}")
    return implementation


@functools.lru_cache
def say_once(sentence: str) -> None:
    """Log why another form is taken than the one looked for, once for each reason."""
    log.info("%s", sentence)


def needs_manual() -> bool:
    """Whether an opaque kernel must be told its share: several devices, and nobody has done it."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and not mesh.manual_axes
