"""A picture of what a refiner is given: condition and mask, and what became of each frame."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.diffusion.guidance import drop_masks
from vidlatent.diffusion.refiner_given import Given
from vidlatent.latents.refiner_inputs import RefinerInputs
from vidlatent.latents.space import Latents
from vidlatent.media.sheets import contact_sheet
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, replicated
from vidlatent.sample.decoding import ClipDecoder

__all__ = ["LEGEND", "describe_given", "draw_given_sheet", "mark_frames", "render_given"]

_SHOWN = 4  # clips
_LOOKED_AT = 8  # batches, of which the first one of videos is shown
_SEED = 0  # the same draws at every evaluation
# What becomes of a frame -> the colour around it.
_REAL, _UPSAMPLED = "real: mask 1", "upsampled: masked below 1"
_MOVED, _DROPPED = "upsampled, from another place", "dropped: mask 0"
LEGEND = {
    _REAL: (24, 148, 72),
    _UPSAMPLED: (52, 112, 214),
    _MOVED: (236, 132, 16),
    _DROPPED: (206, 32, 44),
}


def draw_given_sheet(
    inputs: RefinerInputs,
    frozen: Mapping[str, Any],
    mesh: Mesh,
    batches: Iterable[Any],
    config: ConfigDict,
    latents: Latents,
) -> bytes:
    """PNG of one batch; b'' if there are single pictures alone, or several processes.

    Args:
      inputs: of training, with shuffled, real and missing frames.
      frozen: parameters of its frozen networks, on the devices.
      mesh: of the run.
      batches: of the validation loader.
      config: of the run; its tokenizer decodes, where there is one.
      latents: facts about the latents.
    """
    if jax.process_count() > 1:
        return b""  # every process holds other rows
    learned = inputs.arrays[0]
    videos = (b for b in itertools.islice(batches, _LOOKED_AT) if b[learned].shape[1] > 1)
    batch = next(videos, None)
    if batch is None:
        return b""
    rows = batch_sharding(mesh)

    def give(frozen, arrays):
        high, _, given = inputs.give(arrays, frozen, jax.random.key(_SEED))
        return high, given

    places = jax.tree.map(lambda leaf: leaf.sharding, frozen)
    run = jax.jit(give, in_shardings=(places, rows), out_shardings=replicated(mesh))
    arrays = {name: batch[name] for name in inputs.arrays}
    high, given = jax.device_get(run(frozen, to_global(arrays, rows)))
    if given is None:
        return b""  # short clips have one latent frame only

    decoder, options = ClipDecoder(config, latents), config.conditions
    drops = drop_masks(jax.random.key(_SEED), len(high), options.drop.to_dict(), options.joint)
    names = [
        [name for group, mask in drops.items() if mask[row] for name in group.split("+")]
        for row in range(len(high))
    ]

    def decode(latent, row):
        clip = decoder.describe(batch, row)
        return decoder(latents.restore(latent), clip) if decoder.can_decode(clip) else None

    return render_given(high, given, np.asarray(batch["mask"]), decode, names)


def render_given(
    high: np.ndarray,
    given: Given,
    mask: np.ndarray,
    decode: Callable[[np.ndarray, int], np.ndarray | None] = lambda latent, row: None,
    missing: Sequence[Sequence[str]] = (),
) -> bytes:
    """PNG with rows for each clip: its own latent, the condition, both decoded, the mask.

    Latents are shown by their first three channels, as red, green and blue; of decoded frames one
    is shown for each latent frame. Lines around the frames of the condition say what they are.

    Args:
      high: own latents, ``[B, t, h, w, c]``.
      given: of the same clips, on the host.
      mask: ``[B]``, 0 for padding.
      decode: ``(latent [t, h, w, c], row) -> frames [T, H, W, 3]``, or None for none.
      missing: of each clip the conditions that are dropped; ``first`` takes all that is given
        with it.
    """
    rows: list[np.ndarray] = []
    labels: list[str] = []
    marks: list[list[str]] = []
    shown = np.flatnonzero(mask)[:_SHOWN]
    for row in shown:
        names = missing[row] if missing else ()
        there = float("first" not in names)
        condition = there * np.asarray(given.condition[row], np.float32)
        trust = there * np.asarray(given.mask[row], np.float32).mean(-1, keepdims=True)
        words = mark_frames(given, row, names)
        scale = max(float(np.quantile(np.abs(high[row]), 0.99)), 1e-6)
        for latent, name, own in (
            (np.asarray(high[row], np.float32), "own latent", []),
            (condition, f"condition\n{describe_given(given, row, names)}", words),
        ):
            rows.append(_colour(latent / scale))
            labels.append(name)
            marks.append(own)
            if (frames := decode(latent, row)) is not None:
                rows.append(frames[_pick_of_latents(len(frames), len(latent))])
                labels.append("the same, decoded")
                marks.append(own)
        rows.append(np.repeat(2.0 * trust - 1.0, 3, axis=-1))
        labels.append(f"mask\n{trust.min():.2f} (black: 0) to {trust.max():.2f} (white: 1)")
        marks.append(words)
    title = "What the refiner is given: channels 0 to 2 of latents, frames, and the mask"
    return contact_sheet(
        rows, labels, title=title, group=len(rows) // len(shown), marks=marks, legend=LEGEND
    )


def mark_frames(given: Given, row: int, missing: Sequence[str] = ()) -> list[str]:
    """For each latent frame of a clip a word of ``LEGEND``; ``missing`` as in ``render_given``."""
    order, real = np.asarray(given.order[row]), np.asarray(given.real[row])
    if "first" in missing:
        return [_DROPPED] * len(order)
    upsampled = np.where(order == np.arange(len(order)), _UPSAMPLED, _MOVED)
    # In the order of training, in which dropping comes last.
    words = [_REAL if known else word for known, word in zip(real, upsampled.tolist(), strict=True)]
    if given.dropped[row]:
        words = [_DROPPED] * len(words)
    return [_REAL, *words[1:]]  # the picture itself


def _pick_of_latents(frames: int, latents: int) -> list[int]:
    """A frame out of the part of a clip that each of its latent frames stands for."""
    return [round(k * (frames - 1) / max(1, latents - 1)) for k in range(latents)]


def describe_given(given: Given, row: int, missing: Sequence[str] = ()) -> str:
    """Lines about one clip: order of its frames, which show the truth, what is dropped."""
    order, real = np.asarray(given.order[row]), np.flatnonzero(given.real[row])
    shuffled = (order != np.arange(len(order))).any()
    lines = ["frames " + " ".join(map(str, order)) if shuffled else "frames in order"]
    if len(real):
        lines.append("real " + " ".join(map(str, real)))
    if given.dropped[row]:
        lines.append("small video dropped")
    lines += [f"{name} dropped" for name in missing]
    return "\n".join(lines)


def _colour(latent: np.ndarray) -> np.ndarray:
    """``[t, h, w, c] -> [t, h, w, 3]``; a latent of fewer channels repeats its last."""
    latent = np.asarray(latent, np.float32)
    return latent[..., [min(k, latent.shape[-1] - 1) for k in range(3)]]
