"""Hyper-parameters that the modules of a Reducio-VAE share, and which level halves what."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["ReducioConfig", "make_window", "plan_resampling"]


@dataclasses.dataclass(frozen=True)
class ReducioConfig:
    """One of the three networks: video encoder, content encoder, decoder.

    Attributes:
      widths: channels per resolution level, pixels first.
      blocks: residual blocks per level (the decoder has them before and after the fusion).
      steps: per level but the last, whether ``(time, space)`` is halved after it, see
        ``plan_resampling``.
      volume: 3x3x3 convolutions; False for 3x3 (the content frame, or a network of single frames).
      causal: convolutions look back in time only, over zeros before the clip.
      groups: of the group norms.
      heads: of the self-attention.
      window: ``(rows, columns)`` of the windows that self-attention falls back to on larger maps;
        zeros: never.
      residual_scale, up_form, remat, implementation, dtype: fields of ``ReducioVAE``.
    """

    widths: tuple[int, ...]
    blocks: int
    steps: tuple[tuple[bool, bool], ...]
    volume: bool
    causal: bool
    groups: int
    heads: int
    window: tuple[int, int]
    residual_scale: float
    up_form: str
    remat: bool
    implementation: str
    dtype: Any

    @property
    def last(self) -> int:
        return len(self.widths) - 1


def make_window(sides: int | tuple[int, int]) -> tuple[int, int]:
    """``(rows, columns)`` of a window that a config gives by one side or by both."""
    return tuple(sides) if isinstance(sides, tuple) else (sides, sides)


def plan_resampling(levels: int, time: int, space: int) -> tuple[tuple[bool, bool], ...]:
    """For each level but the last: are ``(time, space)`` halved after it?

    Halvings happen as deep as possible, so that full-size convolutions see all frames.

    Args:
      levels: resolution levels.
      time, space: how often each is halved in all.
    """
    return tuple((i >= levels - 1 - time, i >= levels - 1 - space) for i in range(levels - 1))
