"""A contact sheet of a latent data set: a few windows, decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidlatent.codec.codec import Codec
from vidlatent.codec.options import CodecOptions
from vidlatent.codec.preview import FILE as PREVIEW
from vidlatent.codec.preview import Preview, enlarge_preview
from vidlatent.data.latent_set import Window
from vidlatent.data.sources.latents import LatentSource
from vidlatent.media.sheets import contact_sheet, pick_frames

__all__ = ["draw_pictures"]

SHEET = "contact_sheet.png"


def draw_pictures(
    folder: Path,
    model: Any,
    params: Any,
    coding: CodecOptions,
    workdir: Path,
    count: int,
    read: Callable[[Sequence[Window]], Sequence[np.ndarray]],
) -> Path:
    """Write ``contact_sheet.png`` beside the header, with windows evenly spaced over the set.

    Each is below the frames that it was made of. They are decoded by the workdir's preview if it
    has one and windows are coded whole, as the map needs; else by the tokenizer.

    Args:
      folder: of the set.
      model, params: the tokenizer.
      coding: how the set's clips were cut.
      workdir: of the tokenizer.
      count: windows shown.
      read: the frames of windows, uint8 ``[T, H, W, 3]`` each.
    """
    source = LatentSource(str(folder))
    spec = source.header.spec
    quick = spec.chunks is None and (workdir / PREVIEW).is_file()
    preview = Preview.load(workdir / PREVIEW, spec, source.header.encoder) if quick else None
    # Parameters go through the host: they lie on the encoder's mesh, and this codec has none.
    codec = None if preview else Codec(model, jax.tree.map(np.asarray, params), coding)
    picked = [source.windows[number] for number in pick_frames(len(source.windows), count)]
    rows, labels = [], []
    for window, original in zip(picked, read(picked), strict=True):
        arrays = source.read_arrays(window.name)
        rows.append(original)
        if preview is not None:
            rows.append(enlarge_preview(preview, arrays["latent"]))
        elif codec is not None:
            size = (window.height, window.width)
            content = arrays["content"] if "content" in arrays else None
            rows.append(codec.decode(arrays["latent"], window.frames, size, content))
        said = window.caption or window.label
        labels.append(f"{window.clip} at {window.start:.1f} s" + (f"\n{said}" if said else ""))
        labels.append("linear preview of the latent" if quick else "decoded latent")
    title = f"{len(picked)} of {source.header.windows} windows of {spec.name}"
    title += f", {spec.channels} channels for {spec.t}x{spec.h}x{spec.w} pixels"
    contact_sheet(rows, labels, folder / SHEET, title=title)
    return folder / SHEET
