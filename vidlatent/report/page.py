"""``write_report``: one HTML page with scores, pictures, curves, tables and settings inside.

The page loads nothing from the network and has no scripts, so it can be mailed, archived and opened
anywhere. It follows the reader's light or dark colour scheme. All text is escaped.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import html
import importlib.metadata
import io
import math
import os
import pathlib
import platform
import shlex
import sys
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import vidlatent
from vidlatent.errors import VidlatentError
from vidlatent.files import write_text
from vidlatent.nested import flatten
from vidlatent.paths import as_path
from vidlatent.report.curves import draw_curve, finite_points
from vidlatent.report.meanings import find_meaning

__all__ = ["GalleryVideo", "write_report"]

# Matplotlib draws in these two colours, which are then replaced by the page's own, so that charts
# follow the reader's colour scheme.
_INK, _LINE = "#010203", "#010204"
_PLAYING = 48  # videos of a gallery that play by themselves; browsers stall at hundreds
_FIRST_ROWS = 40  # of a table; the others are folded away

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --faint: #667080; --paper: #ffffff;
  --card: #f5f6f8; --rule: #dfe3e8; --accent: #2f6fde; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --faint: #98a2b3;
  --paper: #14171b; --card: #1d2127; --rule: #323842; --accent: #7aa7f7; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 3rem; max-width: 1340px; color: var(--ink);
  background: var(--paper); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .2rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .7rem; }
.faint { color: var(--faint); margin: 0; }
.scores { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.3rem 0 0; padding: 0; }
.scores div { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: .7rem 1.1rem; min-width: 8.5rem; }
.scores dt { color: var(--faint); font-size: .85rem; }
.scores dd { margin: 0; font-size: 1.55rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.scores small { font-size: .9rem; font-weight: 400; color: var(--faint); }
.scores .better { font-size: .75rem; }
figure { margin: 0 0 1.2rem; }
figure img, figure video { max-width: 100%; height: auto; border: 1px solid var(--rule);
  border-radius: 8px; background: #ffffff; }
figcaption { color: var(--faint); margin-bottom: .4rem; }
.charts { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); }
.charts figure { margin: 0; background: var(--card); border: 1px solid var(--rule);
  border-radius: 10px; padding: .6rem .8rem .4rem; }
.charts figcaption { color: var(--ink); font-weight: 600; margin: 0; }
.charts svg { display: block; width: 100%; height: auto; color: var(--ink); }
.charts + .scroll { margin-top: 1.2rem; }
.gallery { display: grid; gap: 1rem; margin-top: 1.4rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)); }
.gallery figure { margin: 0; }
.gallery .pair { display: flex; gap: .4rem; align-items: flex-start; }
.gallery .pair > * { flex: 1; min-width: 0; width: 100%; image-rendering: pixelated; }
.gallery figcaption { color: var(--ink); margin: .3rem 0 0; }
.gallery small { color: var(--faint); display: block; }
.scroll { overflow-x: auto; }
.moving { min-width: min(100%, 26rem); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .28rem 1.1rem .28rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
th { color: var(--faint); font-weight: 600; font-size: .85rem; }
th:not(.number), td:not(.number) { min-width: 8rem; }
th.number, td.number { text-align: right; white-space: nowrap; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--accent); }
code { font: .9em/1.4 ui-monospace, Menlo, Consolas, monospace; }
footer { margin-top: 2.5rem; padding-top: 1rem; border-top: 1px solid var(--rule);
  color: var(--faint); font-size: .88rem; }
footer p { margin: .15rem 0; }
"""


@dataclasses.dataclass(frozen=True)
class GalleryVideo:
    """A video on a page that lies beside its file.

    Attributes:
      file: address relative to the page.
      title, about: what is written below it.
      picture: a PNG that is shown beside it; b'' for none.
    """

    file: str
    title: str
    about: str = ""
    picture: bytes = b""


def _decimals(size: float) -> int:
    """Decimals that show about four digits of a number of this size."""
    return 4 if size < 1 else 3 if size < 10 else 2 if size < 1000 else 1


def _number(value: float, decimals: int | None = None) -> str:
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("-" if value < 0 else "") + "infinite"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e7):
        return f"{value:.3g}"
    return f"{value:,.{_decimals(size) if decimals is None else decimals}f}"


def _is_number(value: Any) -> bool:
    # To Python, bool is a kind of int.
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float | np.number) or (
        isinstance(value, np.ndarray | jax.Array) and value.ndim == 0
    )


def _text(value: Any, decimals: int | None = None) -> str:
    """Any cell as HTML."""
    if value is None:
        return ""
    if _is_number(value):
        value = np.asarray(value).item()
        return html.escape(str(value) if isinstance(value, int) else _number(value, decimals))
    return html.escape(str(value))


def _with_unit(name: str) -> str:
    unit = find_meaning(name).unit
    return f"{name} ({unit})" if unit else name


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    # In the order in which rows first name them, which a set would lose.
    columns = list(dict.fromkeys(name for row in rows for name in row))
    decimals: dict[str, int | None] = {}  # by column, of those with numbers only
    for column in columns:
        cells = [row[column] for row in rows if row.get(column) is not None]
        if all(map(_is_number, cells)):
            sizes = [abs(float(cell)) for cell in cells if math.isfinite(cell)]
            # One number of decimals for the whole column, so that its points line up.
            decimals[column] = _decimals(max(sizes, default=0.0))

    def line(cells: Iterable[str], tag: str) -> str:
        marked = (
            f"<{tag}{' class=number' if column in decimals else ''}>{cell}</{tag}>"
            for column, cell in zip(columns, cells, strict=True)
        )
        return f"<tr>{''.join(marked)}</tr>"

    head = line((html.escape(_with_unit(str(column))) for column in columns), "th")
    body = "".join(line((_text(r.get(c), decimals.get(c)) for c in columns), "td") for r in rows)
    return f'<div class="scroll"><table>{head}{body}</table></div>'


def _table_section(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    parts = [f"<h2>{html.escape(title)}</h2>"]
    if not rows:
        return parts[0] + '<p class="faint">Nothing to show.</p>'
    first = next(iter(rows[0]))
    # Two points make no curve.
    if first == "frame" and len(rows) > 2:
        names = [n for n in rows[0] if n != first and all(_is_number(r.get(n)) for r in rows)]
        positions = [row[first] for row in rows]
        curves = {n: (positions, [float(row[n]) for row in rows]) for n in names}
        parts.append(_charts(curves, across="frame"))
    parts.append(_table(rows[:_FIRST_ROWS]))
    if len(rows) > _FIRST_ROWS:
        rest = rows[_FIRST_ROWS:]
        parts.append(f"<details><summary>{len(rest)} more rows</summary>{_table(rest)}</details>")
    return "".join(parts)


def _data_address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _picture(caption: str, data: bytes) -> str:
    """A PNG, GIF or MP4, by its first bytes."""
    words = html.escape(caption)
    # An MP4 file begins with the size of its first box, then the box's kind.
    if data[4:8] == b"ftyp":
        source = _data_address("video/mp4", data)
        shown = f'<video class=moving src="{source}" controls loop muted playsinline></video>'
    elif data.startswith((b"\x89PNG", b"GIF8")):
        kind = "image/png" if data.startswith(b"\x89PNG") else "image/gif"
        moving = " class=moving" if kind == "image/gif" else ""
        shown = f'<img{moving} src="{_data_address(kind, data)}" alt="{words}">'
    else:
        raise VidlatentError(f"the picture {caption!r} of a report is neither PNG, GIF nor MP4.")
    return f"<figure><figcaption>{words}</figcaption>{shown}</figure>"


def _gallery(videos: Sequence[GalleryVideo]) -> str:
    """Videos side by side; they play by themselves if they are few."""
    plays = "autoplay" if len(videos) <= _PLAYING else 'preload="none"'
    figures = []
    for video in videos:
        given = ""
        if video.picture:
            address = _data_address("image/png", video.picture)
            given = f'<img src="{address}" alt="given picture" title="given picture">'
        source = html.escape(urllib.parse.quote(video.file))
        shown = f'<video src="{source}" controls loop muted playsinline {plays}></video>'
        about = f"<small>{html.escape(video.about)}</small>" if video.about else ""
        words = f"<figcaption>{html.escape(video.title)}{about}</figcaption>"
        figures.append(f'<figure><div class="pair">{given}{shown}</div>{words}</figure>')
    return f'<div class="gallery">{"".join(figures)}</div>' if figures else ""


def _chart(steps: Sequence[float], values: Sequence[Any], across: str) -> str:
    """One curve as inline SVG; '' if none of its points is finite."""
    import matplotlib
    from matplotlib.figure import Figure

    x, y = finite_points(steps, values)
    if not len(y):
        return ""
    # Text stays text instead of outlines. Ids in the drawing are random unless there is a salt.
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "vidlatent",
        "font.family": "sans-serif",
        "font.size": 9.5,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "grid.color": _INK,
        "grid.alpha": 0.12,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.6, 2.5), layout="constrained")
        draw_curve(figure.add_subplot(), x, y, across, _LINE)
        buffer = io.StringIO()
        # Transparent, so that the background is the page's, light or dark.
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    return (
        # SVG inside of HTML has no XML declaration.
        drawing[drawing.index("<svg") :]
        .replace(_INK, "currentColor")
        .replace(_LINE, "var(--accent)")
    )


def _charts(curves: Mapping[str, tuple[Sequence[float], Sequence[Any]]], across: str) -> str:
    figures = []
    for name, (steps, values) in curves.items():
        drawing = _chart(steps, values, across)
        if drawing:
            better = find_meaning(name).better
            words = _with_unit(name) + (f", {better} is better" if better else "")
            caption = f"<figcaption>{html.escape(words)}</figcaption>"
            figures.append(f"<figure>{caption}{drawing}</figure>")
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _command() -> str:
    program = pathlib.Path(sys.argv[0])
    start = "python -m vidlatent.main" if program.stem in ("main", "__main__") else program.name
    return " ".join([start, *map(shlex.quote, sys.argv[1:])])


def _footer(command: str) -> str:
    packages = ("jax", "jaxlib", "flax", "numpy")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    versions = [
        f"vidlatent {vidlatent.__version__}",
        f"Python {platform.python_version()}",
        *versions,
    ]
    devices = jax.devices()
    hardware = (
        f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}), "
        f"{jax.process_count()} process(es), {os.cpu_count()} CPU cores, {platform.system()} "
        f"{platform.machine()}"
    )
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    lines = [
        f"<code>{html.escape(command)}</code>",
        *map(html.escape, (", ".join(versions), hardware)),
    ]
    return "<footer>" + "".join(f"<p>{line}</p>" for line in [*lines, now]) + "</footer>"


def _scores(scores: Mapping[str, Any]) -> str:
    cards = []
    for name, value in scores.items():
        meaning = find_meaning(name)
        unit = f" <small>{html.escape(meaning.unit)}</small>" if meaning.unit else ""
        words = (
            f'<small class="better">{meaning.better} is better</small>' if meaning.better else ""
        )
        title = f' title="{html.escape(meaning.definition)}"' if meaning.definition else ""
        name = html.escape(name)
        cards.append(f"<div{title}><dt>{name}</dt><dd>{_text(value)}{unit}</dd>{words}</div>")
    return f'<dl class="scores">{"".join(cards)}</dl>'


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    scores: Mapping[str, Any],
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    sheets: Iterable[tuple[str, bytes]] = (),
    gallery: Sequence[GalleryVideo] = (),
    curves: Mapping[str, tuple[Sequence[float], Sequence[Any]]] | None = None,
    config: Mapping[str, Any] | None = None,
    subtitle: str = "",
    command: str | None = None,
) -> None:
    """Write a page; one of that name is replaced as a whole. All is in it but a gallery's videos.

    Args:
      path: the HTML file; its folder is made.
      title: heading, as is every other text taken literally (no HTML).
      scores: the few numbers to see first.
      tables: heading → rows, each a dict of cells by column. If the first column is ``frame``, the
        other columns are drawn as charts too.
      sheets: (caption, PNG, GIF or MP4 bytes) pairs, shown in order.
      gallery: videos that are files beside the page; they are not part of it.
      curves: name → (steps, values); points that are None or not finite are left out.
      config: settings of the run, nested or flat, shown folded.
      subtitle: a faint line under the heading.
      command: how the page came about; None: this process's command line.

    Raises:
      VidlatentError: a picture of an unknown kind, or the file cannot be written.
    """
    sections = [f"<h1>{html.escape(title)}</h1>"]
    if subtitle:
        sections.append(f'<p class="faint">{html.escape(subtitle)}</p>')
    sections.append(_scores(scores))
    if gallery:
        sections.append(_gallery(gallery))
    pictures = [_picture(caption, data) for caption, data in sheets]
    if pictures:
        sections += ["<h2>Pictures</h2>", *pictures]
    charts = _charts(curves or {}, across="step")
    if charts:
        sections += ["<h2>Curves</h2>", charts]
    sections += [_table_section(heading, rows) for heading, rows in (tables or {}).items()]
    if config:
        sections.append(_settings(config))
    sections.append(_footer(_command() if command is None else command))
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        "<body>\n" + "\n".join(sections) + "\n</body></html>\n"
    )
    _write(path, page)


def _settings(config: Mapping[str, Any]) -> str:
    flat = flatten(config, ".", keep_empty=True)
    table = _table([{"key": key, "value": str(value)} for key, value in flat.items()])
    return f"<h2>Settings</h2><details><summary>Show</summary>{table}</details>"


def _write(target: str | os.PathLike[str], text: str) -> None:
    try:
        as_path(target).parent.mkdir(parents=True, exist_ok=True)
        write_text(target, text)
    except OSError as error:
        raise VidlatentError(f"cannot write the report {target}: {error}") from error
