"""Trains a tokenizer and a generator, and measures whether videos match their labels.

    python -m experiments.generator_demo                     FSVideo's DiT with layer memory
    python -m experiments.generator_demo --system=latte      or reducio_dit, promag_dit
    python -m experiments.generator_demo --steps=200 --tokenizer_steps=100 --samples=1

It takes minutes on two cores. Clips show one coloured shape that moves in one direction, and their
class says so, "red square moving left". A small tokenizer is trained on the clips, and a small
diffusion transformer on its latents with the class as condition. Then colour, shape and direction
are read from videos that it generates, and compared with the class that was asked for.
(Reducio-DiT is also given a frame, which shows the first two.) The result is in ``report.html``,
``result.json`` and ``table.md`` in the workdir. ``--config.a.b=value`` sets keys of the generator's
config. After an interruption the same command resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # if run as a file, not with -m

from experiments.cli import prepare
from vidlatent import config as configs
from vidlatent.config import split_overrides
from vidlatent.data.loader import make_loader
from vidlatent.data.renderers.shapes import (
    COLOURS,
    DIRECTIONS,
    LABELS,
    SHAPES,
    label_of,
    make_shape_scene,
    read_label,
    render_shape,
)
from vidlatent.data.split import VALIDATION
from vidlatent.encode.run import encode_set
from vidlatent.errors import VidlatentError
from vidlatent.latents.channels import check_with_tokenizer
from vidlatent.media.sheets import contact_sheet
from vidlatent.report.page import write_report
from vidlatent.report.tables import markdown_table
from vidlatent.sample.generator import Generator
from vidlatent.train.loop import train

__all__ = [
    "ASPECTS",
    "TOKENIZERS",
    "Demo",
    "Tokenizer",
    "accuracy_rows",
    "main",
    "make_tokenizer_config",
    "measure_label_accuracy",
    "prepare_latents",
    "run_stage",
]

ASPECTS = ("colour", "shape", "direction")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A system's tokenizer: its config, its training, and config keys that replace its demo's."""

    config: str
    steps: int = 800
    batch: int = 8
    channels: int = 8
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)


# Flat shapes on a plain ground are learned soonest if residual branches start at full scale. Most
# of the gradient of the absolute error comes from the ground, so it gets little weight.
# Convolutions take half as long as attention here.
_FSAE = {
    "model.block_types": "('res', 'res', 'res')",
    "model.norm_scale_init": "1.0",
    "loss.l1": "0.1",
    "optim.lr": "1e-3",
}
TOKENIZERS = {
    "fsvideo_dit": Tokenizer("fsae", 2400, 4, keys=_FSAE),
    "latte": Tokenizer("ivvae"),
    "reducio_dit": Tokenizer("reducio_vae", channels=16),
    "promag_dit": Tokenizer("promag"),
}
_SHEET = 16  # classes on the contact sheet


@dataclasses.dataclass(frozen=True)
class Demo:
    """Settings of the demo.

    Attributes:
      system: config of the generator.
      workdir: folder of everything that is written.
      tokenizer_steps, steps: of training the tokenizer and the generator.
      clips: number of rendered clips.
      samples: generated videos of each class.
      overrides: keys of the generator's config.
    """

    system: str
    workdir: Path
    tokenizer_steps: int
    steps: int
    clips: int
    samples: int
    overrides: Mapping[str, str]

    def generator_config(self) -> ConfigDict:
        keys = {
            "data.path": str(self.workdir / "latents"),
            "tokenizer.path": str(self.workdir / "tokenizer"),
            "train.steps": str(self.steps),
            "checkpoint.every": str(max(1, self.steps // 4)),
            "eval.every": str(max(1, self.steps // 4)),
            "sample.grid": "8",
            "generator.latent_channels": str(TOKENIZERS[self.system].channels),
        }
        return configs.load(self.system, keys | dict(self.overrides))

    def tokenizer_config(self) -> ConfigDict:
        """A small tokenizer of the system's kind for rendered shapes.

        Latent channels and clip size are those that the generator's config asks for.
        """
        wanted = self.generator_config()
        return make_tokenizer_config(
            TOKENIZERS[self.system],
            wanted.data.buckets[-1][:3],
            channels=wanted.generator.latent_channels,
            clips=self.clips,
            steps=self.tokenizer_steps,
            seed=wanted.seed,
        )


def make_tokenizer_config(
    kind: Tokenizer,
    size: Sequence[int],
    *,
    channels: int,
    clips: int,
    steps: int,
    seed: int,
) -> ConfigDict:
    """A small tokenizer's config on ``clips`` rendered shapes of a size (frames, height, width).

    ``kind.keys`` prevail.
    """
    frames, height, width = size
    keys = {
        "model.latent_channels": str(channels),
        "data.source": "synthetic",
        "data.synthetic.kind": "shapes",
        "data.synthetic.clips": str(clips),
        "data.synthetic.frames": str(frames),
        "data.synthetic.height": str(height),
        "data.synthetic.width": str(width),
        "data.synthetic.fps": "8.0",
        "data.fps": "0.0",
        "data.flip": "false",
        "data.buckets": str(((frames, height, width, kind.batch),)),
        "data.validation_share": "0.05",
        "data.validation_clips": "96",
        "train.steps": str(steps),
        "train.log_every": "50",
        "checkpoint.every": str(max(1, steps // 2)),
        "eval.every": "0",
        "seed": str(seed),
        **kind.keys,
    }
    config = configs.load(kind.config, keys)
    with config.unlocked():
        # With absolute error alone training long shows the plain ground only, since shapes are few
        # pixels.
        config.loss.l2 = 4.0
    return config


def prepare_latents(demo: Demo, seconds: dict[str, float]) -> int:
    """Train the tokenizer and encode its latents unless done already; returns the exit status."""
    tokenizer, folder = demo.tokenizer_config(), demo.workdir / "tokenizer"
    latents = demo.workdir / "latents"
    scored = folder / "eval" / f"step_{demo.tokenizer_steps}" / "scores.json"
    return run_stage("tokenizer", scored, lambda: train(tokenizer, folder), seconds) or run_stage(
        "latents",
        latents / "header.json",
        lambda: encode_set(tokenizer, folder, -1, str(latents)),
        seconds,
    )


def run_stage(
    name: str, finished: Path, stage: Callable[[], int], seconds: dict[str, float]
) -> int:
    """Run a stage unless the file ``finished`` tells that it was; returns the exit status."""
    if finished.is_file():
        logging.info("%s: done already", name)
        return 0
    logging.info("%s: begins", name)
    began = time.perf_counter()
    status = stage()
    seconds[name] = round(time.perf_counter() - began, 1)
    return status


def run(demo: Demo) -> int:
    """Run all stages that are not done yet; returns the exit status."""
    seconds: dict[str, float] = {}
    workdir, config = demo.workdir / "generator", demo.generator_config()
    # Now, and not after the minutes that the tokenizer takes.
    check_with_tokenizer(config, demo.tokenizer_config())
    if status := prepare_latents(demo, seconds):
        return status
    scored = workdir / "eval" / f"step_{demo.steps}" / "scores.json"
    if status := run_stage("generator", scored, lambda: train(config, workdir), seconds):
        return status
    logging.info("%d videos of each class", demo.samples)
    began = time.perf_counter()
    generator = Generator.of(config, workdir, -1)
    rows = [{"prompt": label, **_make_content_frame(demo, generator, label)} for label in LABELS]
    requests = generator.requests_for(rows, demo.samples, config.sample.seed)
    made = [
        (request.prompt, np.concatenate(list(generator.decode(request, latent))))
        for request, latent in generator.latents(requests)
    ]
    seconds["samples"] = round(time.perf_counter() - began, 1)
    _report(demo, generator, made, _make_references(demo, generator), seconds)
    return 0


def _make_content_frame(demo: Demo, generator: Generator, label: str) -> dict[str, str]:
    """``{"image": path}`` of an unseen clip of the class, for generators with a content frame."""
    if "content" not in generator.model.reads:
        return {}
    frames, height, width = generator.size
    seed = demo.tokenizer_config().seed + 1
    scenes = (make_shape_scene(seed, index, frames) for index in range(len(LABELS)))
    scene = next(scene for scene in scenes if scene.label == label)
    picture = render_shape(scene, [(frames - 1) // 2], height, width)[0]
    path = demo.workdir / "content" / f"{label.replace(' ', '_')}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture).save(path)
    return {"image": str(path)}


def _make_references(demo: Demo, generator: Generator) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Held-out clips, and their reconstructions: the best that a generator can reach."""
    data = demo.tokenizer_config().data.to_dict()
    rule, seed = generator.known.spec.rule, demo.tokenizer_config().seed
    real, restored = [], []
    with make_loader(data, split=VALIDATION, rule=rule, seed=seed) as loader:
        for batch in loader:
            for row in np.flatnonzero(batch["mask"]):
                label = loader.labels[int(batch["label"][row])]
                video = np.asarray(batch["video"][row])
                real.append((label, video))
                restored.append((label, generator.codec.decode(generator.codec.encode(video))))
    return {"rendered clips": real, "through the tokenizer": restored}


def measure_label_accuracy(videos: Sequence[tuple[str, np.ndarray]]) -> dict[str, Any]:
    """How often videos show what their labels say.

    Args:
      videos: (label, uint8 ``[T, H, W, 3]``).

    Returns:
      ``n``; for each aspect and ``all``, the share of videos that match the label and its standard
      error; ``rows``, one for each video, with what was read from it.
    """
    rows = []
    for label, video in videos:
        words = label.split()
        said = dict(zip(ASPECTS, (words[0], words[1], words[3]), strict=True))
        read = dict(zip(ASPECTS, read_label(video), strict=True))
        right = {name: said[name] == read[name] for name in ASPECTS}
        rows.append({"label": label, "read": read, **right, "all": all(right.values())})
    found: dict[str, Any] = {"n": len(rows), "rows": rows}
    for name in (*ASPECTS, "all"):
        share = float(np.mean([row[name] for row in rows]))
        error = math.sqrt(share * (1 - share) / len(rows))
        found[name] = {"share": share, "standard_error": error}
    return found


def chance_shares() -> dict[str, float]:
    """Shares of a generator that draws readable clips of random classes."""
    sizes = dict(zip(ASPECTS, (len(COLOURS), len(SHAPES), len(DIRECTIONS)), strict=True))
    return {
        **{name: 1 / size for name, size in sizes.items()},
        "all": 1 / math.prod(sizes.values()),
    }


def accuracy_rows(kinds: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A table's rows: results of ``measure_label_accuracy`` by kind, and ``chance_shares``."""
    names = (*ASPECTS, "all")
    for kind, found in kinds.items():
        cells = {
            name: f"{found[name]['share']:.1%} ± {found[name]['standard_error']:.1%}"
            for name in names
        }
        yield {"videos": kind, "n": found["n"], **cells}
    yield {"videos": "by chance", "n": "", **{n: f"{v:.1%}" for n, v in chance_shares().items()}}


def _report(demo, generator, made, references, seconds) -> None:
    found = {"generated": measure_label_accuracy(made)}
    found |= {name: measure_label_accuracy(videos) for name, videos in references.items()}
    table = list(accuracy_rows(found))
    folder = demo.workdir
    result = {
        "system": demo.system,
        "steps": {"tokenizer": demo.tokenizer_steps, "generator": demo.steps},
        "clips": demo.clips,
        "samples_per_class": demo.samples,
        "config": configs.config_hash(generator.config),
        "sampler": generator.config.sampler.to_dict(),
        "nfe": generator.sampler.nfe,
        "seconds": seconds,
        "follows": found,
        "chance": chance_shares(),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "table.md").write_text(markdown_table(table) + "\n")
    sheet = _draw_sheet(made, found["generated"]["rows"])
    (folder / "contact_sheet.png").write_bytes(sheet)
    scores = {f"{name} matches": found["generated"][name]["share"] for name in (*ASPECTS, "all")}
    by_class = [
        {"asked": row["label"], **{f"{n} read": row["read"][n] or "?" for n in ASPECTS}}
        for row in found["generated"]["rows"]
    ]
    write_report(
        folder / "report.html",
        title=f"{demo.system}: do videos match their labels?",
        subtitle="Colour, shape and direction are read by the renderer's geometry; a single run.",
        scores={**scores, "videos": len(made)},
        tables={"Shares of videos that match": table, "Each video": by_class},
        sheets=[("Generated videos, and what was read from them", sheet)],
        config=generator.config.to_dict(),
    )
    print((folder / "table.md").read_text())
    print(f"look at {folder / 'report.html'} and {folder / 'contact_sheet.png'}")


def _draw_sheet(made: Sequence[tuple[str, np.ndarray]], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A contact sheet with one video each of up to 16 classes."""
    first = {label: number for number, (label, _) in reversed(list(enumerate(made)))}
    numbers = sorted(first.values())
    numbers = numbers[:: max(1, len(numbers) // _SHEET)][:_SHEET]
    labels = []
    for number in numbers:
        read = rows[number]["read"]
        words = label_of(*(read[name] or "?" for name in ASPECTS))
        labels.append(f"{made[number][0]}\n" + ("as asked" if rows[number]["all"] else words))
    videos = [made[number][1] for number in numbers]
    return contact_sheet(videos, labels, cell=96, columns=9, group=len(videos))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--system", choices=sorted(TOKENIZERS), default="fsvideo_dit")
    parser.add_argument("--workdir", help="default runs/generator_demo-<system>")
    parser.add_argument("--tokenizer_steps", type=int, help="default: the tokenizer's own")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--clips", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=4, help="videos of each class")
    words, overrides = split_overrides(list(sys.argv[1:] if argv is None else argv))
    args = parser.parse_args(words)
    prepare()
    demo = Demo(
        args.system,
        Path(args.workdir or f"runs/generator_demo-{args.system}"),
        args.tokenizer_steps or TOKENIZERS[args.system].steps,
        args.steps,
        args.clips,
        args.samples,
        overrides,
    )
    try:
        return run(demo)
    except VidlatentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
