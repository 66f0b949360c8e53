"""Requests to a generator: prompts, classes, first frames and seeds, from flags and files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vidlatent.data.text.captions import read_text
from vidlatent.errors import VidlatentError
from vidlatent.files import parse_json
from vidlatent.paths import as_path
from vidlatent.registry import did_you_mean

__all__ = ["COMMAND", "PYTHON", "Request", "Wording", "find_class", "make_requests", "read_prompts"]

_KEYS = ("prompt", "seed", "image")
# VBench scores only near-static videos in this dimension, so it asks for five times as many.
_VIDEOS_PER_PROMPT = {"temporal_flickering": 5}


@dataclasses.dataclass(frozen=True)
class Request:
    """One video.

    Attributes:
      prompt: text, or the name of a class; '' for none.
      seed: everything random about it; the same again gives the same video.
      number: place among the videos of this prompt.
      label: class, -1 for none.
      image: file of its first (or content) frame; '' for none.
      folder: that its file goes to, below that of the others; '' for none.
      encoded: that frame as the bytes of a picture file, in place of ``image``.
    """

    prompt: str
    seed: int
    number: int = 0
    label: int = -1
    image: str = ""
    folder: str = ""
    encoded: bytes = dataclasses.field(default=b"", repr=False)

    @property
    def picture(self) -> str | bytes | None:
        """File or bytes of its picture; None for none."""
        return self.encoded or self.image or None


@dataclasses.dataclass(frozen=True)
class Wording:
    """How a caller gives what is asked for, for errors.

    Attributes:
      prompt, image, tokenizer: the arguments, with an example of each.
      cascade: how base model, upsampler and refiner make a video together.
    """

    prompt: str
    image: str
    tokenizer: str
    cascade: str


COMMAND = Wording(
    "--prompt='...' or --prompts=file.txt",
    '--input=picture.png, or as "image" in --prompts=file.jsonl',
    "--config.tokenizer.path=runs/fsae-demo",
    "--mode=sample --workdir=BASE --config.sample.refine=REFINER",
)
PYTHON = Wording(
    "prompt='...'",
    "image='picture.png'",
    "load_generator(..., tokenizer='runs/fsae-demo')",
    "load_generator('cascade.json'), a file that names base, upsampler and refiner",
)


def read_prompts(path: str) -> list[dict[str, object]]:
    """Prompts of a file: one a line, or in ``.jsonl`` one object a line.

    Objects have ``prompt`` and may have ``seed`` (of the first of its videos) and ``image``. A
    folder of files ``<dimension>.txt`` or ``<dimension>.jsonl``, such as VBench's prompts by
    dimension, the latter with pictures, is read whole; the rows of a file then have it as their
    ``folder``.

    Raises:
      VidlatentError: no such file, an empty one, or a line that is no such object.
    """
    file = as_path(path)
    if file.is_dir():
        files = sorted([*file.glob("*.txt"), *file.glob("*.jsonl")])
        if not files:
            raise VidlatentError(
                f"--prompts={path}: this folder holds no .txt or .jsonl file of prompts."
            )
        return [{**row, "folder": one.stem} for one in files for row in read_prompts(str(one))]
    if not file.is_file():
        raise VidlatentError(f"--prompts={path}: there is no such file.")
    lines = [line.strip() for line in read_text(path).splitlines()]
    if file.suffix != ".jsonl":
        rows: list[dict[str, object]] = [{"prompt": line} for line in lines if line]
    else:
        rows = [_parse(line, f"{path}:{i}") for i, line in enumerate(lines, 1) if line]
    if not rows:
        raise VidlatentError(f"--prompts={path} is empty: write one prompt a line.")
    return rows


def _parse(line: str, where: str) -> dict[str, object]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise VidlatentError(f"{where} is not JSON: {error}.") from error
    if not isinstance(row, dict) or "prompt" not in row:
        raise VidlatentError(f'{where}: write {{"prompt": "...", "seed": 1, "image": "a.png"}}.')
    for key in row:
        if key not in _KEYS:
            raise VidlatentError(f"{where}: unknown key {key!r}: {did_you_mean(key, _KEYS)}")
    # A number is the number of a class.
    if not isinstance(row["prompt"], str | int) or not isinstance(row.get("image", ""), str):
        raise VidlatentError(f"{where}: prompt and image are texts in quotes.")
    seed = row.get("seed", 0)
    # True and False are integers in Python.
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise VidlatentError(f"{where}: seed {seed!r} is no whole number from 0 on.")
    return row


def find_class(prompt: str, names: Sequence[str], classes: int) -> int:
    """The class that a prompt names, by name (whatever its case) or by number.

    Raises:
      VidlatentError: there is no such class.
    """
    wanted = " ".join(prompt.casefold().split())
    # Names before numbers: a class may be called 7.
    for number, name in enumerate(names):
        if " ".join(name.casefold().split()) == wanted:
            return number
    if wanted.isdecimal() and int(wanted) < classes:
        return int(wanted)
    known = names or [f"0 to {classes - 1}"]
    raise VidlatentError(f"there is no class {prompt!r}: {did_you_mean(prompt, known)}")


def make_requests(
    rows: Sequence[dict[str, object]],
    *,
    count: int,
    seed: int,
    label_names: Sequence[str] | None = None,
    classes: int = 0,
) -> list[Request]:
    """``count`` requests for each row, each with the next seed.

    Args:
      rows: as from ``read_prompts``; a row's own ``seed`` is that of its first video. Seeds start
        anew in each ``folder``, so that a file by itself gives the same videos.
      label_names: of the classes, where prompts name them; None where they are texts.
      classes: how many there are.
    """
    found: list[Request] = []
    places: dict[str, int] = {}
    for row in rows:
        prompt, folder = str(row["prompt"]), str(row.get("folder", ""))
        videos = count * _VIDEOS_PER_PROMPT.get(folder, 1)
        place = places.get(folder, 0)
        places[folder] = place + videos
        first = int(str(row["seed"])) if "seed" in row else seed + place
        label = -1
        if label_names is not None and prompt:
            label = find_class(prompt, label_names, classes)
            prompt = label_names[label] if label < len(label_names) else prompt
        image = str(row["image"]) if "image" in row else ""
        encoded = row.get("encoded", b"")
        assert isinstance(encoded, bytes)
        for number in range(videos):
            found.append(Request(prompt, first + number, number, label, image, folder, encoded))
    return found
