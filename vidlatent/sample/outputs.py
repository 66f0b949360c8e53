"""What a request for videos leaves: a folder of its own, with videos, a page and all settings."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vidlatent.config import config_hash
from vidlatent.errors import VidlatentError
from vidlatent.files import dump_json, write_json, write_text
from vidlatent.media.sheets import contact_sheet, encode_picture
from vidlatent.paths import as_path
from vidlatent.report.page import GalleryVideo, write_report
from vidlatent.sample.requests import Request

__all__ = [
    "Sample",
    "check_output",
    "collect_settings",
    "describe_memory",
    "make_folder",
    "name_video",
    "write_samples",
]

# File systems allow 255 bytes; the rest is for the number and the ending.
_LONGEST, _VBENCH_LONGEST = 200, 240  # bytes of a file name, its ending excluded
_FOLDER_LONGEST = 60
_SHOWN = 48  # videos on the contact sheet
_SETTINGS = "samples.json"


@dataclasses.dataclass(frozen=True)
class Sample:
    """A video that was written.

    Attributes:
      request: that it answers.
      file: relative to the folder.
      frames: some of its frames, uint8 ``[n, H, W, 3]``, for the contact sheet.
      given: the picture that it starts from, uint8 ``[H, W, 3]``; None for none.
    """

    request: Request
    file: str
    frames: np.ndarray
    given: np.ndarray | None = None

    def describe(self) -> dict[str, Any]:
        """Its row in ``samples.json``."""
        request = self.request
        return {
            "file": self.file,
            "prompt": request.prompt,
            "label": request.label,
            "seed": request.seed,
            "number": request.number,
            "image": as_path(request.image).name,
        }


def _plain(prompt: str) -> str:
    """Lower case with letters, digits and underscores."""
    kept = "".join(c if c.isalnum() else "_" for c in prompt.casefold())
    return "_".join(filter(None, kept.split("_"))) or "sample"


def _cut(text: str, longest: int) -> str:
    # In bytes, as file systems count; half a character at the end is dropped.
    return text.encode()[:longest].decode(errors="ignore")


def name_video(prompt: str, number: int, taken: set[str], *, vbench: bool = False) -> str:
    """A file name for video ``number`` of a prompt; adds it to ``taken``.

    With ``vbench`` it is ``<prompt>-<number>.mp4`` with the prompt unchanged, as VBench's scripts
    expect (slashes become blanks); otherwise lower case with letters, digits and underscores.
    """
    text = prompt.replace("/", " ").replace("\0", " ") if vbench else _plain(prompt)
    text = _cut(text, _VBENCH_LONGEST if vbench else _LONGEST)
    name, again = f"{text}-{number}.mp4", 0
    while name in taken:  # two prompts may become the same name
        again += 1
        name = f"{text}-{number}.{again}.mp4"
    taken.add(name)
    return name


def check_output(output: str) -> None:
    """Raise ``VidlatentError`` if a folder holds samples already: none are overwritten."""
    if output and (as_path(output) / _SETTINGS).exists():
        raise VidlatentError(
            f"--output={output} holds samples already, which are never overwritten: name another "
            "folder, or leave it out for a new one below the workdir."
        )


def make_folder(parent: Path, requests: Sequence[Request]) -> Path:
    """A new folder ``0001-<prompt>`` below ``parent``, numbered on from those that are there."""
    prompts = list(dict.fromkeys(request.prompt for request in requests))
    words = prompts[0] if len(prompts) == 1 else f"{len(prompts)} prompts"
    name = _cut(_plain(words), _FOLDER_LONGEST)
    parent.mkdir(parents=True, exist_ok=True)
    # In an object store there is no empty folder.
    inside = parent.iterdir() if parent.is_dir() else ()
    taken = [path.name.partition("-")[0] for path in inside if path.is_dir()]
    first = 1 + max((int(number) for number in taken if number.isdecimal()), default=0)
    for number in itertools.count(first):
        folder = parent / f"{number:04d}-{name}"
        try:
            folder.mkdir()
        except FileExistsError:  # another process was faster
            continue
        return folder
    raise AssertionError("there is a number for every folder")


def collect_settings(config: ConfigDict, **more: Any) -> dict[str, Any]:
    """Everything that determines what was generated, ready for JSON."""
    return {
        "system": config.name,
        "preset": config.preset,
        "config": config_hash(config),
        "generator": config.generator.to_dict(),
        "schedule": config.diffusion.schedule.to_dict(),
        "sampler": config.sampler.to_dict(),
        "sample": config.sample.to_dict(),
        **more,
        "all_keys": config.to_dict(),
    }


def describe_memory(memory: Mapping[str, Any]) -> str:
    """``Generator.memory`` in words."""
    parts = [f"{name} {_format_bytes(size)}" for name, size in memory["parameters"].items()]
    if memory["working"] is not None:
        parts.append(f"working memory {_format_bytes(memory['working'])}")
    text = f"{_format_bytes(memory['estimated'])} estimated ({', '.join(parts)})"
    if memory["measured"] is None:
        return f"{text}; this device does not say what was used"
    return f"{text}, at most {_format_bytes(memory['measured'])} measured"


def _format_bytes(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def write_samples(
    folder: Path,
    samples: Sequence[Sample],
    settings: Mapping[str, Any],
    picks: Sequence[int],
    title: str,
) -> list[Path]:
    """Write ``samples.json``, ``contact_sheet.png`` and ``index.html``; the files to look at.

    Prompts go into ``captions.jsonl``, too, as a folder of captioned videos has them.

    Args:
      folder: with the videos.
      samples: those that were written.
      settings: from ``collect_settings``.
      picks: numbers of the frames on the sheet, those of ``Sample.frames``.
      title: of the page.
    """
    rows = [sample.describe() for sample in samples]
    write_json(folder / _SETTINGS, {**settings, "videos": rows})
    _write_captions(folder, rows)
    shown = samples[:_SHOWN]
    pictured = any(sample.given is not None for sample in shown)
    contact_sheet(
        [_sheet_row(sample, pictured) for sample in shown],
        [f"{sample.request.prompt or 'sample'}\nseed {sample.request.seed}" for sample in shown],
        folder / "contact_sheet.png",
        group=len(shown),
        columns=len(picks) + pictured,
        numbers=[*["given"] * pictured, *picks],
    )
    gallery = [
        GalleryVideo(
            sample.file,
            sample.request.prompt or "sample",
            f"seed {sample.request.seed}",
            b"" if sample.given is None else encode_picture(sample.given),
        )
        for sample in samples
    ]
    made = {
        "frames, height, width": settings["size"],
        "latent": settings["latent_shape"],
        "frames per second": settings["fps"],
        "checkpoint": f"step {settings['step']}",
        "memory of a device": describe_memory(settings["memory"]),
    }
    write_report(
        folder / "index.html",
        title=title,
        subtitle="Videos are files beside this page. samples.json holds every setting.",
        scores={"videos": len(samples), "evaluations each": _count_evaluations(settings["nfe"])},
        gallery=gallery,
        tables={
            "Made with": [{"what": what, "value": str(value)} for what, value in made.items()],
            "Videos": rows,
        },
        config=settings["all_keys"],
    )
    return [folder / name for name in ("index.html", "contact_sheet.png", _SETTINGS)]


def _write_captions(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    captions = [{"file": row["file"], "caption": row["prompt"]} for row in rows if row["prompt"]]
    if captions:
        write_text(folder / "captions.jsonl", "".join(f"{dump_json(x)}\n" for x in captions))


def _count_evaluations(nfe: int | Mapping[str, int]) -> int:
    return nfe if isinstance(nfe, int) else sum(nfe.values())


def _sheet_row(sample: Sample, pictured: bool) -> np.ndarray:
    """A row of the sheet; where some videos start from a picture, it comes first, or white."""
    if not pictured:
        return sample.frames
    blank = np.full_like(sample.frames[0], 255)
    return np.stack([blank if sample.given is None else sample.given, *sample.frames])
