"""Pictures for people: contact sheets of clips, latent channels, maps of weights, captions."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vidlatent.errors import VidlatentError
from vidlatent.paths import as_path

__all__ = [
    "caption_bar",
    "channel_sheet",
    "contact_sheet",
    "encode_picture",
    "pick_frames",
    "to_uint8",
    "weight_map",
]

_PAPER = (255, 255, 255)
_INK = (28, 30, 34)
_FAINT = (112, 118, 128)
_RULE = (214, 218, 224)
_DEEP = (16, 62, 124)  # colour of a weight of 1
_MARK = (214, 92, 24)
_MARGIN = 14
_GAP = 3


def to_uint8(pixels: Any) -> np.ndarray:
    """Pixels in [-1, 1] (any float dtype) as uint8; uint8 passes through."""
    pixels = np.asarray(pixels)
    if pixels.dtype == np.uint8:
        return pixels
    # NaN becomes mid-grey, because its conversion to integers is undefined.
    scaled = (np.nan_to_num(pixels.astype(np.float32)) + 1.0) * 127.5
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def pick_frames(total: int, count: int) -> list[int]:
    """At most ``count`` frame numbers, evenly spread over a clip, with its first and last frame."""
    if total <= count:
        return list(range(total))
    return [round(i * (total - 1) / max(1, count - 1)) for i in range(count)]


@functools.lru_cache(maxsize=32)
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


def _fit_text(text: str, width: int, size: int, smallest: int = 8) -> tuple[str, Any]:
    """Text and font that fit ``width`` pixels: the font is made smaller first, then text is cut."""
    while size > smallest and _font(size).getlength(text) > width:
        size -= 1
    font = _font(size)
    if font.getlength(text) <= width:
        return text, font
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return (text + "..." if text else ""), font


@functools.lru_cache(maxsize=64)
def caption_bar(text: str, width: int, height: int = 20) -> np.ndarray:
    """A dark bar ``[height, width, 3]`` uint8 with ``text`` in it, for the top of a video."""
    bar = Image.new("RGB", (width, height), _INK)
    text, font = _fit_text(text, width - 8, max(8, height - 7))
    ImageDraw.Draw(bar).text((width // 2, height // 2), text, fill=_PAPER, font=font, anchor="mm")
    return np.asarray(bar)


def _check_clip(clip: Any, row: int) -> np.ndarray:
    clip = to_uint8(clip)
    if clip.ndim != 4 or clip.shape[-1] != 3 or 0 in clip.shape:
        raise VidlatentError(
            f"row {row} of a contact sheet must be [T, H, W, 3], not {clip.shape}."
        )
    return clip


def _add_differences(
    clips: list[np.ndarray], labels: list[str], gain: float
) -> tuple[list[np.ndarray], list[str]]:
    """Add a row after each pair: the absolute difference of the two, times ``gain``."""
    if len(clips) % 2:
        raise VidlatentError("difference rows need an even number of rows: pairs to compare.")
    rows, names = [], []
    for i in range(0, len(clips), 2):
        a, b = clips[i], clips[i + 1]
        if a.shape != b.shape:
            raise VidlatentError(f"rows {i} and {i + 1} differ in size: {a.shape} and {b.shape}.")
        # int16, because differences of uint8 wrap around below 0.
        apart = np.abs(a.astype(np.int16) - b.astype(np.int16)) * gain
        rows += [a, b, np.clip(apart, 0, 255).astype(np.uint8)]
        names += [labels[i], labels[i + 1], f"difference x{gain:g}"]
    return rows, names


def _cell_size(height: int, width: int, wanted: int) -> tuple[int, int, Any]:
    """Height, width and filter of a thumbnail whose longer side is about ``wanted``."""
    longer = max(height, width)
    if longer <= wanted:  # whole multiples keep the pixels of small clips square
        factor = max(1, wanted // longer)
        return height * factor, width * factor, Image.Resampling.NEAREST
    scale = wanted / longer
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return *size, Image.Resampling.LANCZOS


def _label_lines(label: str, width: int) -> list[str]:
    """Words of ``label`` in lines of at most ``width`` pixels; its own line breaks are kept."""
    lines = []
    for part in label.split("\n"):
        line = ""
        for word in part.split():
            longer = f"{line} {word}".strip()
            if line and _font(13).getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def _draw_label(draw: ImageDraw.ImageDraw, label: str, x: int, middle: int, width: int) -> None:
    lines = _label_lines(label, width)
    top = middle - 8 * len(lines)
    for number, line in enumerate(lines):
        line, font = _fit_text(line, width, 13)
        colour = _INK if number == 0 else _FAINT
        draw.text((x, top + 16 * number + 8), line, fill=colour, font=font, anchor="lm")


def contact_sheet(
    rows: Sequence[Any],
    labels: Sequence[str],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str = "",
    columns: int = 8,
    cell: int = 160,
    difference: float = 0.0,
    group: int = 0,
    numbers: Sequence[int | str] = (),
    marks: Sequence[Sequence[str]] = (),
    legend: Mapping[str, tuple[int, int, int]] | None = None,
) -> bytes:
    """A PNG with one row of evenly picked frames for each clip.

    Args:
      rows: clips ``[T, H, W, 3]``, uint8 or float in [-1, 1]; sizes may differ between rows.
      labels: one text a row, drawn at its left; lines after the first are drawn fainter.
      path: also write the PNG here.
      title: a line at the top.
      columns: most frames a row.
      cell: about the longer side of a picture in pixels; small frames are enlarged by whole
        factors.
      difference: if positive, rows are pairs (original, reconstruction) and each pair gets a third
        row with their absolute difference times this number.
      group: so many rows belong together, with a gap before the next group (0: 3 with
        ``difference``, else 2 if the number of rows is even, else 1).
      numbers: the number to print for each frame of a clip, or a word in its place; empty: 0, 1,
        ...
      marks: for each row the words of its frames, of ``legend``; ``''`` and an empty row are not
        marked.
      legend: word -> colour of the line around such a frame; explained below the title.

    Returns:
      The PNG file's bytes.

    Raises:
      VidlatentError: no rows, a wrong shape, labels that do not match, or an unwritable path.
    """
    if not rows or len(rows) != len(labels):
        raise VidlatentError(f"a contact sheet got {len(rows)} rows and {len(labels)} labels.")
    clips = [_check_clip(clip, i) for i, clip in enumerate(rows)]
    labels = list(labels)
    group = group or (3 if difference else 2 - len(clips) % 2)
    if difference:
        clips, labels = _add_differences(clips, labels, difference)
    sheet = _compose(clips, labels, title, columns, cell, group, numbers, marks, legend or {})
    return _png(sheet, path)


def enlarge(pixels: np.ndarray, times: int, across: int = 0) -> np.ndarray:
    """``[..., H, W, 3]`` with each pixel as ``times`` rows and ``across`` (0: as many) columns."""
    return pixels.repeat(times, axis=-3).repeat(across or times, axis=-2)


def encode_picture(picture: np.ndarray) -> bytes:
    """uint8 ``[H, W, 3]`` as the bytes of a PNG file."""
    return _png(Image.fromarray(picture))


def _png(sheet: Image.Image, path: str | os.PathLike[str] | None = None) -> bytes:
    buffer = io.BytesIO()
    # Pillow's "optimize" takes ten times as long for 3 % fewer bytes.
    sheet.save(buffer, format="PNG")
    if path is not None:
        try:
            as_path(path).write_bytes(buffer.getvalue())
        except OSError as error:
            raise VidlatentError(f"cannot write the picture {os.fspath(path)}: {error}") from error
    return buffer.getvalue()


def _compose(
    clips: list[np.ndarray],
    labels: list[str],
    title: str,
    columns: int,
    cell: int,
    group: int,
    numbers: Sequence[int | str],
    marks: Sequence[Sequence[str]],
    legend: Mapping[str, tuple[int, int, int]],
) -> Image.Image:
    # First the size of everything, because Pillow's canvas cannot grow; then the drawing.
    sizes = [_cell_size(*clip.shape[1:3], cell) for clip in clips]
    picks = [pick_frames(len(clip), columns) for clip in clips]
    # One line of frame numbers serves all rows if their columns line up.
    same_times = all(pick == picks[0] for pick in picks) and len({s[1] for s in sizes}) == 1
    texts = (line for label in labels for line in label.split("\n"))
    # Longer labels are broken into lines instead of widening the sheet.
    label_width = min(180, 8 + max(int(_font(13).getlength(line)) for line in texts))
    wide = max(len(pick) * (size[1] + _GAP) for pick, size in zip(picks, sizes, strict=True))
    top = _MARGIN + (30 if title else 0) + (22 if legend else 0)
    times_height = 18
    heights = [size[0] + _GAP for size in sizes]
    breaks = (len(clips) - 1) // group
    headers = 1 if same_times else breaks + 1
    height = top + headers * times_height + sum(heights) + 14 * breaks + _MARGIN
    sheet = Image.new("RGB", (2 * _MARGIN + label_width + wide, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        text, font = _fit_text(title, sheet.width - 2 * _MARGIN, 17)
        draw.text((_MARGIN, _MARGIN + 8), text, fill=_INK, font=font, anchor="lm")
    _draw_legend(draw, legend, top - 16)
    left, y = _MARGIN + label_width, top
    for i, (clip, (high, width, resample), pick) in enumerate(
        zip(clips, sizes, picks, strict=True)
    ):
        if i and i % group == 0:
            y += 14
            draw.line((_MARGIN, y - 9, sheet.width - _MARGIN, y - 9), fill=_RULE)
        if i == 0 or (i % group == 0 and not same_times):
            called = [numbers[frame] for frame in pick] if numbers else pick
            _draw_times(draw, called, left, y, width)
            y += times_height
        _draw_label(draw, labels[i], _MARGIN, y + high // 2, label_width - 8)
        for column, frame in enumerate(pick):
            picture = Image.fromarray(clip[frame]).resize((width, high), resample)
            x = left + column * (width + _GAP)
            sheet.paste(picture, (x, y))
            if marks and marks[i] and (word := marks[i][frame]):
                # In the gap around the picture and over its outermost pixels.
                box = (x - 2, y - 2, x + width + 1, y + high + 1)
                draw.rectangle(box, outline=legend[word], width=4)
        y += heights[i]
    return sheet


def _draw_legend(
    draw: ImageDraw.ImageDraw, legend: Mapping[str, tuple[int, int, int]], y: int
) -> None:
    x = _MARGIN
    for word, colour in legend.items():
        draw.rectangle((x, y, x + 11, y + 11), outline=colour, width=3)
        draw.text((x + 17, y + 6), word, fill=_FAINT, font=_font(12), anchor="lm")
        x += 17 + int(_font(12).getlength(word)) + 16


def _draw_times(draw: Any, pick: Sequence[int | str], left: int, y: int, width: int) -> None:
    for column, frame in enumerate(pick):
        words = frame if isinstance(frame, str) else f"frame {frame}"
        text, font = _fit_text(words, width, 11)
        x = left + column * (width + _GAP) + width // 2
        draw.text((x, y + 8), text, fill=_FAINT, font=font, anchor="mm")


def channel_sheet(
    maps: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    frames: Any | None = None,
    title: str = "",
    shown: int = 3,
    columns: int = 16,
    cell: int = 64,
) -> bytes:
    """A PNG with every channel of a few latent frames as a small grey picture.

    Args:
      maps: ``[t, h, w, c]`` in [-1, 1], black to white.
      path: also write the PNG here.
      frames: ``[t, H, W, 3]``, a picture for each latent frame, drawn at its left.
      title: a line at the top.
      shown: latent frames at most, evenly spread over the clip.
      columns: channels a row.
      cell: about the longer side of a channel's picture in pixels; small maps are enlarged by whole
        factors.

    Returns:
      The PNG file's bytes.

    Raises:
      VidlatentError: a wrong shape, or an unwritable path.
    """
    maps = to_uint8(maps)
    if maps.ndim != 4 or 0 in maps.shape:
        raise VidlatentError(f"latent maps must be [t, h, w, c], not {maps.shape}.")
    beside = None if frames is None else _check_clip(frames, 0)
    if beside is not None and len(beside) != len(maps):
        raise VidlatentError(f"{len(beside)} pictures do not go with {len(maps)} latent frames.")
    grids = [_channel_grid(maps[k], columns, cell) for k in pick_frames(len(maps), shown)]
    high, wide = grids[0].height, grids[0].width
    # Width of the column of pictures at the left.
    room = 0 if beside is None else min(180, max(64, high)) + 4 * _GAP
    top, heading = _MARGIN + (30 if title else 0), 22
    size = (2 * _MARGIN + room + wide, top + len(grids) * (heading + max(high, room)) + _MARGIN)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        text, font = _fit_text(title, sheet.width - 2 * _MARGIN, 17)
        draw.text((_MARGIN, _MARGIN + 8), text, fill=_INK, font=font, anchor="lm")
    y = top
    for number, grid in zip(pick_frames(len(maps), shown), grids, strict=True):
        caption = f"latent frame {number}"
        draw.text((_MARGIN + room, y + 10), caption, fill=_INK, font=_font(13), anchor="lm")
        sheet.paste(grid, (_MARGIN + room, y + heading))
        if beside is not None:
            height, width, resample = _cell_size(*beside.shape[1:3], room - 4 * _GAP)
            picture = Image.fromarray(beside[number]).resize((width, height), resample)
            sheet.paste(picture, (_MARGIN, y + heading + 14))
        y += heading + max(high, room)
    return _png(sheet, path)


def _channel_grid(maps: np.ndarray, columns: int, cell: int) -> Image.Image:
    """Maps ``[h, w, c]`` in rows, each under its channel's number."""
    height, width, resample = _cell_size(*maps.shape[:2], cell)
    channels, over = maps.shape[-1], 14
    columns = min(columns, channels)
    rows = -(-channels // columns)
    size = (columns * (width + _GAP), rows * (height + over + _GAP))
    grid = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(grid)
    for channel in range(channels):
        x, y = channel % columns * (width + _GAP), channel // columns * (height + over + _GAP)
        middle = (x + width // 2, y + over // 2)
        draw.text(middle, str(channel), fill=_FAINT, font=_font(11), anchor="mm")
        picture = (
            Image.fromarray(maps[..., channel]).convert("RGB").resize((width, height), resample)
        )
        grid.paste(picture, (x, y + over))
    return grid


def weight_map(
    rows: Sequence[Sequence[float]],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str = "",
    down: str = "row",
    across: str = "column",
    first: tuple[int, int] = (0, 0),
) -> bytes:
    """A PNG of weights in [0, 1] as shaded cells; the largest of each row is framed.

    Args:
      rows: weights; rows may differ in length.
      path: also write the PNG here.
      title: a line at the top.
      down, across: what rows and columns are.
      first: numbers of the first row and the first column.

    Returns:
      The PNG file's bytes.

    Raises:
      VidlatentError: no weight, or an unwritable path.
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise VidlatentError("a map of weights needs a row with a weight.")
    cell = min(56, max(16, 720 // max(columns, len(rows))))
    # Above the map: title, explanation, numbers of the columns.
    left, top = _MARGIN + 30, _MARGIN + 24 + 20 + 22
    # At least 400 pixels, for the title and the explanation.
    size = (left + max(columns * cell, 400) + _MARGIN, top + len(rows) * cell + _MARGIN)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    room = size[0] - 2 * _MARGIN
    about = (
        f"{down} (downwards) and {across} (across); white 0, blue 1; framed: the largest of a row"
    )
    for text, y, points, ink in ((title, 8, 17, _INK), (about, 32, 12, _FAINT)):
        text, font = _fit_text(text, room, points)
        draw.text((_MARGIN, _MARGIN + y), text, fill=ink, font=font, anchor="lm")
    small = _font(min(11, cell - 6))
    for column in range(columns):
        x = left + column * cell + cell // 2
        draw.text((x, top - 9), str(first[1] + column), fill=_FAINT, font=small, anchor="mm")
    for number, row in enumerate(rows):
        y = top + number * cell
        at = (left - 6, y + cell // 2)
        draw.text(at, str(first[0] + number), fill=_FAINT, font=small, anchor="rm")
        _draw_weights(draw, np.asarray(row, np.float64), left, y, cell)
    return _png(sheet, path)


def _draw_weights(draw: ImageDraw.ImageDraw, row: np.ndarray, left: int, y: int, cell: int) -> None:
    for column, weight in enumerate(np.clip(np.nan_to_num(row), 0, 1)):
        x = left + column * cell
        shade = tuple(
            round(a + weight * (b - a)) for a, b in zip((255, 255, 255), _DEEP, strict=True)
        )
        frame = _MARK if column == row.argmax() else _RULE
        box = (x, y, x + cell - 2, y + cell - 2)
        draw.rectangle(box, fill=shade, outline=frame, width=2 if frame == _MARK else 1)
        # In smaller cells the number would not fit.
        if cell >= 32:
            # Legible on dark cells and on light ones.
            ink = _PAPER if weight > 0.5 else _INK
            middle = (x + cell // 2 - 1, y + cell // 2 - 1)
            draw.text(middle, f"{weight:.2f}", fill=ink, font=_font(11), anchor="mm")
