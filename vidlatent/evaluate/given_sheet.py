"""A picture of what a refiner is given: condition, mask, order, real and missing frames."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vidlatent.diffusion.refiner_given import Given
from vidlatent.latents.refiner_inputs import RefinerInputs
from vidlatent.media.sheets import contact_sheet
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, replicated

__all__ = ["describe_given", "draw_given_sheet", "render_given"]

_SHOWN = 4  # clips
_LOOKED_AT = 8  # batches, of which the first one of videos is shown
_SEED = 0  # the same draws at every evaluation


def draw_given_sheet(
    inputs: RefinerInputs, frozen: Mapping[str, Any], mesh: Mesh, batches: Iterable[Any]
) -> bytes:
    """PNG of one batch; b'' if there are single pictures alone, or several processes.

    Args:
      inputs: of training, with shuffled, real and missing frames.
      frozen: parameters of its frozen networks, on the devices.
      mesh: of the run.
      batches: of the validation loader.
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
    # Short clips have one latent frame only.
    return b"" if given is None else render_given(high, given, np.asarray(batch["mask"]))


def render_given(high: np.ndarray, given: Given, mask: np.ndarray) -> bytes:
    """PNG with three rows a clip: its own latent, the condition, the mask.

    Latents are shown by their first three channels, as red, green and blue.

    Args:
      high: own latents, ``[B, t, h, w, c]``.
      given: of the same clips, on the host.
      mask: ``[B]``, 0 for padding.
    """
    rows, labels = [], []
    for row in np.flatnonzero(mask)[:_SHOWN]:
        scale = max(float(np.quantile(np.abs(high[row]), 0.99)), 1e-6)
        rows += [_colour(high[row] / scale), _colour(given.condition[row] / scale)]
        trust = np.asarray(given.mask[row], np.float32).mean(-1, keepdims=True)
        rows.append(np.repeat(2.0 * trust - 1.0, 3, axis=-1))
        labels += ["own latent", "condition\n" + describe_given(given, row)]
        labels.append(f"mask\n{trust.min():.2f} (black: 0) to {trust.max():.2f} (white: 1)")
    title = "What the refiner is given: channels 0 to 2 of latents, and the mask"
    return contact_sheet(rows, labels, title=title, group=3)


def describe_given(given: Given, row: int) -> str:
    """Lines about one clip: order of its frames, which show the truth, whether all are missing."""
    order, real = np.asarray(given.order[row]), np.flatnonzero(given.real[row])
    shuffled = (order != np.arange(len(order))).any()
    lines = ["frames " + " ".join(map(str, order)) if shuffled else "frames in order"]
    if len(real):
        lines.append("real " + " ".join(map(str, real)))
    if given.dropped[row]:
        lines.append("small video dropped")
    return "\n".join(lines)


def _colour(latent: np.ndarray) -> np.ndarray:
    """``[t, h, w, c] -> [t, h, w, 3]``; a latent of fewer channels repeats its last."""
    latent = np.asarray(latent, np.float32)
    return latent[..., [min(k, latent.shape[-1] - 1) for k in range(3)]]
