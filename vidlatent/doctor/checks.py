"""The checks of ``--mode=doctor``: each looks at one part of an installation, and changes nothing.

What is printed is meant to be made public: no user's name, no host's, and of variables that may
hold addresses only that they are set.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement

import vidlatent
from vidlatent.media.decode import iter_frames
from vidlatent.media.write import write_video
from vidlatent.parallel.compilation import cache_folder
from vidlatent.paths import as_path, is_remote

__all__ = ["CHECKS", "FAILED", "OK", "WARNING", "Row", "hide_home"]

OK, WARNING, FAILED = "ok", "warning", "failed"
_GIB = 2**30
_LEAST_DISK = 5.0  # GiB; checkpoints of a demo take less than one
# Codecs that videos of users have; each is a decoder of FFmpeg, which PyAV brings.
_DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4", "prores", "gif")
_ENCODERS = ("libx264", "libsvtav1")
_SHOWN = (
    "JAX_PLATFORMS",
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "JAX_ENABLE_X64",
    "CUDA_VISIBLE_DEVICES",
)
_MINE = re.compile(r"^(JAX|XLA|LIBTPU|TPU|MEGASCALE|CUDA|NCCL|SLURM_NTASKS|VIDLATENT)")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      part: what was looked at.
      found: in words.
      verdict: 'ok', 'warning' or 'failed'.
      remedy: what to do unless it is 'ok'.
    """

    part: str
    found: str
    verdict: str = OK
    remedy: str = ""


def hide_home(text: str) -> str:
    """A text without the name of the user's folder."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def check_system(folder: Path) -> list[Row]:
    """Versions of vidlatent, Python and the system; processors and memory."""
    version = f"vidlatent {vidlatent.__version__}"
    if commit := _find_commit():
        version += f", commit {commit}"
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
        size = f", {memory:.0f} GiB"
    except (AttributeError, ValueError, OSError):  # not every system tells
        size = ""
    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return [Row("version", version), Row("system", f"{python}, {os.cpu_count()} cores{size}")]


def _find_commit() -> str:
    """Of a clone that the package is run from; '' for an installed one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def check_packages(folder: Path) -> list[Row]:
    """Versions of what vidlatent needs, against the bounds that it was made for."""
    wanted = _read_requirements()
    if wanted is None:
        remedy = "run pip install -e . in the repository's folder"
        return [Row("packages", "vidlatent is not installed, only run", WARNING, remedy)]
    missing, other, found = [], [], []
    for need in wanted[""]:
        version = _version_of(need.name)
        if version is None:
            missing.append(need.name)
        elif not need.specifier.contains(version, prereleases=True):
            other.append(f"{need.name} {version} ({need.specifier})")
        else:
            found.append(f"{need.name} {version}")
    if missing or other:
        problems = [f"missing {name}" for name in missing] + other
        remedy = "run pip install --upgrade vidlatent, or the same with -e . in a clone"
        bad = Row("packages", ", ".join(problems), FAILED if missing else WARNING, remedy)
        return [bad, Row("other packages", ", ".join(found))]
    return [Row("packages", ", ".join(found))]


def check_extras(folder: Path) -> list[Row]:
    """Which extras are complete; a missing one is no fault."""
    rows = []
    for extra, needs in sorted((_read_requirements() or {}).items()):
        missing = {name for need in needs for name in _find_missing(need)}
        if extra:
            text = f"not installed: {', '.join(sorted(missing))}" if missing else "complete"
            rows.append(Row(f"extra {extra}", text))
    return rows


def _find_missing(need: Requirement) -> set[str]:
    """Packages that a requirement lacks, those of its own extras included: ``jax[tpu]``."""
    if _version_of(need.name) is None:
        return {need.name}
    lines = importlib.metadata.requires(need.name) or []
    return {
        inner.name
        for extra in need.extras
        for inner in map(Requirement, lines)
        if inner.marker and _asks_for(inner, extra) and _version_of(inner.name) is None
    }


def _asks_for(need: Requirement, extra: str) -> bool:
    """Whether a requirement belongs to an extra and is not there without it."""
    marker = need.marker
    return bool(marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}))


def _read_requirements() -> Mapping[str, list[Requirement]] | None:
    """Requirements by extra, '' for those of the package itself; None if it is not installed."""
    try:
        about = importlib.metadata.metadata("vidlatent")
    except importlib.metadata.PackageNotFoundError:
        return None
    needs = [Requirement(line) for line in importlib.metadata.requires("vidlatent") or []]
    found = {"": [n for n in needs if not n.marker or n.marker.evaluate({"extra": ""})]}
    for extra in about.get_all("Provides-Extra") or []:
        found[extra] = [need for need in needs if _asks_for(need, extra)]
    return found


def _version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_devices(folder: Path) -> list[Row]:
    """What JAX finds, and that a small product is right there."""
    import jax
    import jax.numpy as jnp

    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    found = f"{len(devices)} x {', '.join(kinds)} ({devices[0].platform}), jax {jax.__version__}"
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        found += f", {limit / _GIB:.1f} GiB each"
    product = jnp.ones((8, 8)) @ jnp.ones((8, 8))
    if not bool(jnp.all(product == 8.0)):
        return [Row("devices", f"{found}; a product is wrong", FAILED, "restart the machine")]
    card = Path("/dev/nvidia0")
    if devices[0].platform == "cpu" and card.exists():
        return [Row("devices", f"{found}; a GPU is there, too", WARNING,
                    "install the extra 'gpu' to use it")]  # fmt: skip
    return [Row("devices", found)]


def check_decoders(folder: Path) -> list[Row]:
    """PyAV's decoders, and a video that is written and read again."""
    import av

    lacks = [name for name in _DECODERS if name not in av.codecs_available]
    lacks_writers = [name for name in _ENCODERS if name not in av.codecs_available]
    found = f"PyAV {av.__version__}, FFmpeg {getattr(av, 'ffmpeg_version_info', 'unknown')}"
    remedy = "install PyAV's wheel: pip install --force-reinstall av"
    rows = [
        Row("decoders", f"{found}, lacks {', '.join(lacks)}", WARNING, remedy)
        if lacks
        else Row("decoders", f"{found}: {', '.join(_DECODERS)}")
    ]
    if lacks_writers:
        rows.append(Row("encoders", f"lacks {', '.join(lacks_writers)}", WARNING, remedy))
    with tempfile.TemporaryDirectory() as place:
        frames = np.zeros((3, 32, 32, 3), np.uint8)
        frames[1:] = 128
        write_video(f"{place}/video.mp4", frames, 8.0)
        read = np.stack(list(iter_frames(f"{place}/video.mp4")[1]))
    far = int(np.abs(read.astype(int) - frames).max()) if read.shape == frames.shape else 255
    if far > 8:  # 8-bit YCbCr of plain frames is within a few levels
        rows.append(Row("video there and back", f"off by {far} of 255 levels", FAILED, remedy))
    else:
        rows.append(Row("video there and back", f"within {far} of 255 levels"))
    return rows


def check_cache(folder: Path) -> list[Row]:
    """The cache of compiled programs: where, how large, whether it can be written."""
    place = cache_folder()
    if not place.is_dir():
        return [Row("cache of programs", hide_home(f"{place}, not there yet"))]
    sizes = [entry.stat().st_size for entry in os.scandir(place) if entry.is_file()]
    found = hide_home(f"{place}, {len(sizes)} files, {sum(sizes) / _GIB:.2f} GiB")
    if not os.access(place, os.W_OK):
        remedy = "name another folder by JAX_COMPILATION_CACHE_DIR: programs are compiled anew"
        return [Row("cache of programs", f"{found}, cannot be written", WARNING, remedy)]
    return [Row("cache of programs", found)]


def check_disk(folder: Path) -> list[Row]:
    """Free space where runs are written, and for temporary files."""
    rows = []
    places = [("disk for temporary files", as_path(tempfile.gettempdir()))]
    if not is_remote(folder):
        # A run's folder is made when it begins.
        parents = (folder.absolute(), *folder.absolute().parents)
        places.insert(0, ("disk", next(place for place in parents if place.is_dir())))
    for name, place in places:
        free = shutil.disk_usage(place).free / _GIB
        found = hide_home(f"{free:.1f} GiB free at {place}")
        if free < _LEAST_DISK:
            rows.append(Row(name, found, WARNING, "free some, or name another --workdir"))
        else:
            rows.append(Row(name, found))
    return rows


def check_variables(folder: Path) -> list[Row]:
    """Variables that change what JAX does; values only of those that name no machine."""
    found = [f"{name}={os.environ[name]}" for name in _SHOWN if name in os.environ]
    found += sorted(name for name in os.environ if _MINE.match(name) and name not in _SHOWN)
    return [Row("variables", hide_home(", ".join(found) or "none"))]


CHECKS: tuple[Callable[[Path], list[Row]], ...] = (
    check_system,
    check_packages,
    check_devices,
    check_decoders,
    check_extras,
    check_cache,
    check_disk,
    check_variables,
)
