"""Which form of a kernel runs where.

``implementation=`` of every kernel is ``'auto'``, the name of a form, or several names, the first
of which that can do it runs. A form that was named and cannot do it raises; ``'auto'`` takes the
plain form then. What ``'auto'`` stands for is decided, in this order, by ``prefer``, by
``config.kernels`` (``use_forms``) and by the platform.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax

from vidlatent.errors import VidlatentError
from vidlatent.registry import did_you_mean

__all__ = [
    "FORMS",
    "KernelForm",
    "Names",
    "choose",
    "current_platform",
    "list_wanted",
    "needs_manual",
    "pick",
    "prefer",
    "say_once",
    "use_forms",
]

log = logging.getLogger(__name__)

# Forms of each kernel; the keys of config.kernels.
FORMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attention": ("xla", "splash", "cudnn"),
        "qk_norm_rope": ("xla", "pallas"),
        "layer_mix": ("xla", "pallas"),
        "conv3d": ("native", "taps", "fold2d", "shifts", "rows"),
    }
)
Names = str | Sequence[str]

_PREFERRED: contextvars.ContextVar[Mapping[str, Names]] = contextvars.ContextVar(
    "forms", default=MappingProxyType({})
)
# Of the process, for its threads have contexts of their own.
_CONFIGURED: dict[str, Names] = {}


class KernelForm(NamedTuple):
    """A form and why it was taken."""

    name: str
    why: str


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
def prefer(**forms: Names) -> Iterator[None]:
    """Named forms in place of ``'auto'`` for whatever is traced inside: ``attention='xla'``.

    A function that has been traced before keeps the forms it was traced with.

    Raises:
      VidlatentError: an unknown kernel.
    """
    for kind in forms.keys() - FORMS.keys():
        raise VidlatentError(f"there is no kernel {kind!r}: {did_you_mean(kind, FORMS)}")
    token = _PREFERRED.set({**_PREFERRED.get(), **forms})
    try:
        yield
    finally:
        _PREFERRED.reset(token)


def use_forms(settings: Mapping[str, str]) -> None:
    """Named forms in place of ``'auto'`` in all of the process from now on: ``config.kernels``.

    Args:
      settings: ``'auto'``, a form, or several with commas between, by the keys of ``FORMS``.

    Raises:
      VidlatentError: an unknown form.
    """
    for kind, text in settings.items():
        for name in _split(text):
            if name not in FORMS[kind]:
                hint = did_you_mean(name, ("auto", *FORMS[kind]))
                raise VidlatentError(
                    f"config.kernels.{kind}={text}: there is no form {name!r}; {hint}"
                )
    _CONFIGURED.clear()
    _CONFIGURED.update(settings)


def list_wanted(kind: str, implementation: Names) -> tuple[str, ...]:
    """The forms asked for, in order; none where that is ``'auto'`` and nobody has said more."""
    names = _split(implementation)
    return names or _split(_PREFERRED.get().get(kind, _CONFIGURED.get(kind, "auto")))


def _split(names: Names) -> tuple[str, ...]:
    parts = names.split(",") if isinstance(names, str) else names
    parts = tuple(part.strip() for part in parts)
    return () if parts == ("auto",) else parts


def choose(
    kind: str,
    implementation: Names,
    auto: Mapping[str, str],
    *,
    platform: str | None = None,
    lacks: Callable[[str], str] = lambda name: "",
) -> KernelForm:
    """The form of a kernel to run, and why; what ``'auto'`` takes is logged once.

    Args:
      kind: a key of ``FORMS``.
      implementation: as above.
      auto: the form for each platform, and ``'default'`` for one not listed.
      platform: in place of ``current_platform()``.
      lacks: why a form cannot (or should not) do it, ``''`` where it can. The first of the
        kernel's forms can do anything.

    Raises:
      VidlatentError: an unknown form, or none of those named can do it.
    """
    return pick(kind, list_wanted(kind, implementation), FORMS[kind], auto, platform, lacks)


def pick(
    kind: str,
    names: tuple[str, ...],
    known: tuple[str, ...],
    auto: Mapping[str, str],
    platform: str | None = None,
    lacks: Callable[[str], str] = lambda name: "",
) -> KernelForm:
    """As ``choose``, of the forms ``known``, where ``list_wanted`` has been asked."""
    for name in names:
        if name not in known:
            hint = did_you_mean(name, ("auto", *known))
            raise VidlatentError(f"unknown implementation {name!r} of {kind}: {hint}")
    if not names:
        return _automatic(kind, known[0], auto, platform or current_platform(), lacks)
    reasons = []
    for name in names:
        reason = lacks(name)
        if not reason:
            why = "; ".join(reasons) or "asked for"
            if reasons:
                say_once(f"{kind}: {why}; {name!r} runs instead")
            return KernelForm(name, why)
        reasons.append(f"{name!r} {reason}")
    raise VidlatentError(f"{kind} form {'; '.join(reasons)}: take {known[0]!r} or 'auto'.")


def _automatic(
    kind: str,
    plain: str,
    auto: Mapping[str, str],
    platform: str,
    lacks: Callable[[str], str],
) -> KernelForm:
    name = auto.get(platform, auto["default"])
    reason = lacks(name)
    if reason:
        form = KernelForm(plain, f"{name!r} {reason}")
    elif platform in auto:
        form = KernelForm(name, f"the usual form on {platform}")
    else:
        form = KernelForm(name, f"no other is made for {platform}")
    # On CPUs there is little to explain, and a line a kernel would be in every run's log.
    level = logging.DEBUG if platform == "cpu" else logging.INFO
    say_once(f"{kind} on {platform}: {form.name!r}, {form.why}", level)
    return form


@functools.lru_cache
def say_once(sentence: str, level: int = logging.INFO) -> None:
    """Log why a form is taken, once for each reason."""
    log.log(level, "%s", sentence)


def needs_manual() -> bool:
    """Whether an opaque kernel must be told its share: several devices, and nobody has done it."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and not mesh.manual_axes
