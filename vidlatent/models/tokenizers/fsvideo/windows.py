"""FSAE's frames whole, and streams of a decoder that looks both ways in time, in windows.

A window of latent frames is decoded together with the latent frames around it that its video
depends on: the inner stages on 29 more at either side in the published model, the outer ones,
where the work is, on 13. The result is that of decoding the whole clip. (A decoder that continues
from a cache needs none of this.)
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.models.tokenizers.cutting import FrameCoder, WindowProgram
from vidlatent.models.tokenizers.fsvideo.reach import (
    compute_decoder_reach,
    compute_window_margins,
    find_outer_stage,
)

__all__ = ["WindowedFrames", "decode_part", "run_inner"]


@functools.partial(jax.jit, static_argnums=(0, 3))
def run_inner(model: Any, params: Any, latent: jax.Array, stage: int, condition: Any) -> jax.Array:
    """The stages within ``stage``, with all attention, of a latent; as ``model.decode_inner``."""
    x, _ = model.apply({"params": params}, latent, stage, condition, method="decode_inner")
    return x


# Sizes are static and starts traced, so that all windows of one size share a program.
@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def decode_part(
    model: Any,
    params: Any,
    x: jax.Array,
    stage: int,
    size: tuple[int, int, int],
    start: tuple[Any, Any, Any],
    condition: Any,
) -> jax.Array:
    """The outer stages on a part of ``run_inner``'s ``x`` ``[B, t', h', w', C]``.

    Args:
      model: the autoencoder.
      params: its parameters.
      x: output of the inner stages.
      stage: the last of these.
      size: frames, rows and columns of cells.
      start: the first of each; may be traced.
      condition: features of frame 0, whole.
    """
    part = lax.dynamic_slice(x, (0, *start, 0), (x.shape[0], *size, x.shape[-1]))
    video, _ = model.apply(
        {"params": params}, part, stage, condition, start[1:], method="decode_outer"
    )
    return video


class WindowedFrames(FrameCoder):
    """FSAE's operations with whole frames, and decoding in windows of latent frames."""

    def decode_windows(
        self, params: Any, latents: Iterable[jax.Array], size: int, condition: Any = None
    ) -> Iterator[jax.Array]:
        """As ``FrameCoder.decode_windows``; the last window takes all that is computed for it."""
        stage, step = find_outer_stage(self.model), self.model.latent_spec.t
        before, after, inner = compute_window_margins(self.model)
        stream = iter(latents)
        held: list[jax.Array] = []
        base = begin = 0  # clip positions of held[0] and of the next wanted latent frame
        done = False
        while True:
            # Read ahead until all that this window depends on is there, or the clip ends.
            while not done and base + len(held) < begin + size + after + inner.right:
                frame = next(stream, None)
                done = frame is None
                held += [] if done else [frame]
            total = base + len(held)
            if begin >= total:
                return
            end = min(begin + size, total)
            # The outer stages decode first..last; the inner ones read low..high around it.
            first, last = max(0, begin - before), min(total, end + after)
            if done and last == total:  # computed to the end for this window already
                end = total
            low = max(0, first - inner.left)
            high = min(total, last + inner.right)
            piece = jnp.stack(held[low - base : high - base], axis=1)
            x = run_inner(self.model, params, piece, stage, condition)
            video = self.decode_frames(params, x, first - low, last - first, condition)
            # The first latent frame of a part stands for one frame, every later one for ``step``.
            skip = 0 if begin == 0 else step * (begin - first - 1) + 1
            yield video[:, skip : step * (end - first - 1) + 1]
            # Forget the frames that the next window no longer reads.
            drop = max(0, end - before - inner.left) - base
            held, base, begin = held[drop:], base + drop, end

    def decode_frames(
        self, params: Any, x: jax.Array, first: int, count: int, condition: Any
    ) -> Any:
        """The outer stages on ``count`` frames of ``run_inner``'s ``x``, from ``first`` on."""
        size = (count, *x.shape[2:4])
        stage = find_outer_stage(self.model)
        return decode_part(self.model, params, x, stage, size, (first, 0, 0), condition)

    def count_window_latents(self, size: int) -> int:
        reach = compute_decoder_reach(self.model, find_outer_stage(self.model))
        return size + -(-(reach.left + reach.right) // self.model.latent_spec.t)

    def plan_window(
        self, params: Any, latent: Any, size: int, condition: Any = None
    ) -> WindowProgram:
        read, count, made = self._first_window(latent.shape[1], size)
        model, stage, spec = self.model, find_outer_stage(self.model), self.model.latent_spec

        def decode(params, latent, condition):
            x = run_inner(model, params, latent, stage, condition)
            part = (count, *x.shape[2:4])
            return decode_part(model, params, x, stage, part, (0, 0, 0), condition)

        sides = (latent.shape[2] * spec.h, latent.shape[3] * spec.w)
        latent = jax.ShapeDtypeStruct((1, read, *latent.shape[2:]), latent.dtype)
        return WindowProgram(decode, (latent, condition), made, count, 1, sides)

    def _first_window(self, total: int, size: int) -> tuple[int, int, int]:
        """Latent frames that the first window's inner and outer stages read; frames it adds."""
        before, after, inner = compute_window_margins(self.model)
        new = min(size, total)
        count = min(total, before + new + after)
        # As in decode_windows: a window that is computed to the clip's end takes all of it.
        new = total if new + after >= total else new
        read = min(total, count + inner.left + inner.right)
        step = self.model.latent_spec.t
        return read, count, step * new - (step - 1)
