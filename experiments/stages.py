"""Trains the stages of a tokenizer, each from the weights of the one before; one command.

    python -m experiments.stages                       ProMAG at demo size: 4x, grown to 8x and 16x
    python -m experiments.stages configs/promag.py:mode=plain configs/promag.py:grow=1,mode=plain
    python -m experiments.stages --config.train.steps=100 --workdir=runs/short

The configs are trained in the order given; ``--config.a.b=value`` applies to all of them. Every
stage keeps its checkpoints, curves and pictures in ``<workdir>/<n>_<latent>``; ``stages.md`` and
``stages.png`` show them together. After an interruption the same command resumes.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # if run as a file, not with -m

from experiments.cli import prepare
from vidlatent import config as configs
from vidlatent.config import split_overrides
from vidlatent.errors import VidlatentError
from vidlatent.models.load import model_of
from vidlatent.report.tables import markdown_table
from vidlatent.train.loop import train

__all__ = ["main", "run_stages"]

GROWTH = ("configs/promag.py", "configs/promag.py:grow=1", "configs/promag.py:grow=2")


def run_stages(specs: Sequence[str], overrides: Mapping[str, str], workdir: Path) -> int:
    """Train one stage after another; returns the exit status of the last one.

    Args:
      specs: configs, ``path[:argument]``; the first one starts from its own ``train.init_from``.
      overrides: config keys of every stage.
      workdir: folder of all stages.
    """
    before, rows, sheets = "", [], []
    for number, spec in enumerate(specs, 1):
        config = configs.load(spec, overrides)
        if before:
            with config.unlocked():
                config.train.init_from = before
        folder = workdir / f"{number}_{model_of(config).latent_spec.name}"
        scored = folder / "eval" / f"step_{config.train.steps}"
        if not (scored / "scores.json").is_file():
            logging.info("stage %d of %d: %s", number, len(specs), spec)
            if status := train(config, folder):
                return status
        rows.append(_row(number, spec, config, json.loads((scored / "scores.json").read_text())))
        if (scored / "contact_sheet.png").is_file():
            sheets.append((scored / "contact_sheet.png").read_bytes())
        _write(workdir, rows, sheets)
        before = str(folder)
    return 0


def _row(number: int, spec: str, config: ConfigDict, scored: Mapping[str, Any]) -> dict[str, str]:
    latent = model_of(config).latent_spec
    fps = f"{config.data.fps:g}" if config.data.fps else "own"
    scores = {
        "PSNR, dB": "psnr",
        "SSIM": "ssim",
        "PSNR of each clip's mean colour, dB": "psnr_constant_colour",
    }
    return {
        "stage": str(number),
        "config": f"`{spec}`",
        "latent": f"{latent.t}x{latent.h}x{latent.w}, {latent.channels} channels",
        "compression": f"{latent.compression:.0f}",
        "frames/s": fps,
        "steps": str(config.train.steps),
        **{title: f"{scored['scores'][name]:.2f}" for title, name in scores.items()},
    }


def _write(workdir: Path, rows: Sequence[Mapping[str, str]], sheets: Sequence[bytes]) -> None:
    (workdir / "stages.md").write_text(markdown_table(rows) + "\n")
    if sheets:
        pictures = [Image.open(io.BytesIO(sheet)).convert("RGB") for sheet in sheets]
        size = max(p.width for p in pictures), sum(p.height for p in pictures)
        whole, top = Image.new("RGB", size, "white"), 0
        for picture in pictures:
            whole.paste(picture, (0, top))
            top += picture.height
        whole.save(workdir / "stages.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", default=list(GROWTH), metavar="config")
    parser.add_argument("--workdir", default="runs/promag-growth")
    try:
        words, overrides = split_overrides(list(sys.argv[1:] if argv is None else argv))
        args = parser.parse_args(words)
        prepare()
        status = run_stages(args.configs, overrides, Path(args.workdir))
    except VidlatentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if status == 0:
        print((Path(args.workdir) / "stages.md").read_text())
        print(f"look at {args.workdir}/stages.png")
    return status


if __name__ == "__main__":
    sys.exit(main())
