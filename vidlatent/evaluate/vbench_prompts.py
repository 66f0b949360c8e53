"""Prompts of VBench, with their pictures for image to video, as files that --mode=sample reads.

python -m vidlatent.evaluate.vbench_prompts vbench2_i2v_full_info.json --images=crop/16-9 \\
    --output=prompts

The JSON file comes with VBench (``VBench_full_info.json``, ``vbench2_i2v_full_info.json``): a list
of objects with ``prompt_en``, ``dimension`` (a list) and, for image to video, ``image_name``. Each
prompt (with its picture) is written once to ``prompts.jsonl``, since dimensions share videos; with
``--by_dimension`` to ``<dimension>.jsonl`` of each of its dimensions, for a folder of videos each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from vidlatent.errors import VidlatentError
from vidlatent.files import write_text
from vidlatent.paths import as_path
from vidlatent.registry import did_you_mean

__all__ = ["main", "read_vbench_prompts"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files; the exit status is 1 for a mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m vidlatent.evaluate.vbench_prompts", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("info", help="VBench's list of prompts, .json")
    parser.add_argument("--images", default="", help="folder of the pictures (image to video)")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--dimensions", default="", help="only these, with commas between")
    parser.add_argument("--by_dimension", action="store_true", help="one file a dimension")
    options = parser.parse_args(arguments)
    try:
        wanted = tuple(filter(None, options.dimensions.split(",")))
        found = read_vbench_prompts(options.info, options.images, wanted)
        files = found if options.by_dimension else {"prompts": _merge(found)}
        folder = as_path(options.output)
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in files.items():
            write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            print(f"{folder / name}.jsonl: {len(rows)} prompts")
    except (VidlatentError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read_vbench_prompts(
    info: str, images: str = "", dimensions: Sequence[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """Dimension -> rows ``{"prompt": ..., "image": ...}`` as ``--prompts`` takes them.

    Args:
      info: VBench's JSON file.
      images: folder of the pictures that ``image_name`` is in; needed if there are any.
      dimensions: only these; () for all.

    Raises:
      VidlatentError: another file, an unknown dimension, or a picture that is missing.
    """
    file = as_path(info)
    if not file.is_file():
        raise VidlatentError(f"there is no file {info}: name VBench's list of prompts.")
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        for entry in json.loads(file.read_text(encoding="utf-8-sig")):
            row: dict[str, Any] = {"prompt": str(entry["prompt_en"])}
            if "image_name" in entry:
                row["image"] = _find_picture(images, str(entry["image_name"]))
            for name in entry["dimension"]:
                found.setdefault(str(name), []).append(row)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise VidlatentError(
            f"{info} is no list of VBench's prompts (objects with prompt_en and dimension): "
            f"{error!r}."
        ) from error
    for name in dimensions:
        if name not in found:
            raise VidlatentError(f"{info} has no dimension {name!r}: {did_you_mean(name, found)}")
    return {name: rows for name, rows in found.items() if not dimensions or name in dimensions}


def _find_picture(folder: str, name: str) -> str:
    if not folder:
        raise VidlatentError(
            "these prompts have pictures: give their folder by --images=crop/16-9."
        )
    path = as_path(folder, name)
    if not path.is_file():
        raise VidlatentError(f"there is no picture {path}: name the folder of VBench's pictures.")
    return str(path.resolve())


def _merge(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Every row once, in the order in which the dimensions name them."""
    unique = {tuple(row.items()): row for rows in found.values() for row in rows}
    return list(unique.values())


if __name__ == "__main__":
    sys.exit(main())
