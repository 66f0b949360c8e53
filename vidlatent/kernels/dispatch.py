"""Which form of a kernel runs where.

``implementation=`` of every kernel is ``'auto'``, the name of a form, or several names in order of
preference. The first named form that supports the inputs runs; if none does, that is an error.
``'auto'`` falls back to the plain form instead. What ``'auto'`` means is decided, in this order, by
``prefer``, by ``config.kernels`` (``use_forms``) and by the platform.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
from absl import logging

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
# A plain global besides: threads that were started earlier do not see a context variable.
_CONFIGURED: dict[str, Names] = {}


class KernelForm(NamedTuple):
    """A form and why it was chosen."""

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
    # JAX names GPU platforms after the vendor's software.
    return "gpu" if platform in ("cuda", "rocm") else platform


@contextlib.contextmanager
def prefer(**forms: Names) -> Iterator[None]:
    """Sets what ``'auto'`` means for functions traced inside ``with``, such as ``attention='xla'``.

    A function that was traced before keeps the forms that it was traced with.

    Raises:
      VidlatentError: an unknown kernel.
    """
    for kind in forms.keys() - FORMS.keys():
        raise VidlatentError(f"there is no kernel {kind!r}: {did_you_mean(kind, FORMS)}")
    # An inner `prefer` changes only the kernels that it names.
    token = _PREFERRED.set({**_PREFERRED.get(), **forms})
    try:
        yield
    finally:
        _PREFERRED.reset(token)


def use_forms(settings: Mapping[str, str]) -> None:
    """Sets what ``'auto'`` means in the whole process from now on: ``config.kernels``.

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
    """The forms asked for, in order of preference; empty where the platform decides."""
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
    """The form of a kernel to run, and why; what ``'auto'`` chooses is logged once.

    Args:
      kind: a key of ``FORMS``.
      implementation: as above.
      auto: the form for each platform, and ``'default'`` for one not listed.
      platform: in place of ``current_platform()``.
      lacks: of a form's name, why it cannot (or should not) take these inputs; ``''`` if it can.
        The first of a kernel's forms takes everything.

    Raises:
      VidlatentError: an unknown form, or none of those named supports the inputs.
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
    """``choose`` among the forms ``known``, given the result of ``list_wanted`` as ``names``."""
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
    # On CPUs the choice is never a surprise, and one line per kernel would clutter every log.
    level = logging.DEBUG if platform == "cpu" else logging.INFO
    say_once(f"{kind} on {platform}: {form.name!r}, {form.why}", level)
    return form


# The cache is what makes it 'once': a repeated sentence never reaches the log.
@functools.lru_cache
def say_once(sentence: str, level: int = logging.INFO) -> None:
    """Log ``sentence``, once in the life of the process."""
    logging.log(level, "%s", sentence)


def needs_manual() -> bool:
    """True if a custom kernel must be wrapped in ``shard_map`` here.

    That is on a mesh of several devices, unless the caller is inside a ``shard_map`` already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1 and not mesh.manual_axes
