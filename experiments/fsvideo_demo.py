"""FSVideo whole, from nothing to a page: a picture and a label become a refined video.

    python -m experiments.fsvideo_demo                  all parts at demo size
    python -m experiments.fsvideo_demo --size=tiny      a few steps each: whether the parts fit

Clips show one coloured shape that moves in one direction, and their label says so. A tokenizer is
trained on them at 9x32x32 and 9x64x64, then the base model on small latents, the upsampler on
pairs of both sizes, and the refiner on what base and upsampler make. The refiner is distilled: its
guidance, then fewer steps, by halving them and by SiDA. Unseen clips' first frames then become
videos through the cascade, with the refiner and, in as few steps, with each of its students.
``report.html``, ``result.json``, ``table.md`` and ``cascade.json`` (for
``vidlatent.load_generator``) are written into the workdir. Parts of other lengths:
``--steps tokenizer=100 base=200``. After an interruption the same command resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from absl import logging
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # if run as a file, not with -m

from experiments.cli import prepare
from experiments.fsvideo_page import Clip, show
from experiments.generator_demo import TOKENIZERS, make_tokenizer_config, run_stage
from vidlatent import config as configs
from vidlatent.data.renderers.shapes import LABELS, make_shape_scene, render_shape
from vidlatent.encode.run import encode_set
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.upsampler import interpolate
from vidlatent.files import write_json
from vidlatent.latents.pairs import halve_pixels
from vidlatent.latents.pixels import from_pixels, to_pixels
from vidlatent.media.sheets import encode_picture
from vidlatent.sample.cascade import CASCADE_FILE, Cascade
from vidlatent.sample.generator import Generator
from vidlatent.train.loop import train

__all__ = ["CHANNELS", "SIZES", "Demo", "Size", "main", "make_base", "make_pairs", "run"]

_Result = TypeVar("_Result")

FRAMES, LOW, HIGH = 9, 32, 64  # of a clip; sides of the small and of the large one
CHANNELS = TOKENIZERS["fsvideo_dit"].channels
_CONFIGS = {
    "base": "configs/fsvideo_dit.py:demo,first=true",
    "upsampler": "configs/fsvideo_upsampler.py",
    "refiner": "configs/fsvideo_refiner.py",
}
# Students of the refiner (2.4.3): the stage of its config, and the run that each learns from.
_STUDENTS = {
    "guidance": ("cfg", "refiner"),
    "halved": ("progressive", "guidance"),
    "sida": ("sida", "guidance"),
}
_FEW = 4  # evaluations at which refiner and students are compared


@dataclasses.dataclass(frozen=True)
class Size:
    """How long everything is trained.

    Attributes:
      clips: number of rendered clips.
      videos: of the cascade, for as many unseen clips.
      steps: by part.
      keys: config keys by part; those of ``dit`` go to base, refiner and students.
    """

    clips: int
    videos: int
    steps: Mapping[str, int]
    keys: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)


_QUICK = {"train.tensorboard": "false", "data.validation_clips": "4"}
SIZES = {
    "demo": Size(
        clips=4096,
        videos=2 * len(LABELS),
        steps={
            **{"tokenizer": 2000, "base": 1200, "upsampler": 300, "refiner": 450},
            # Far fewer than a student needs: a demo of minutes shows that the stages fit.
            **{"guidance": 50, "halved": 50, "sida": 40},
        },
    ),
    "tiny": Size(
        clips=96,
        videos=4,
        steps=dict.fromkeys(("tokenizer", *_CONFIGS, *_STUDENTS), 2),
        keys={
            "tokenizer": {
                **_QUICK,
                "model.encoder_widths": "(4, 8, 8)",
                "model.decoder_widths": "(4, 8, 8)",
                "eval.pictures": "1",
            },
            "dit": {
                **_QUICK,
                "generator.depth": "2",
                "generator.width": "32",
                "generator.hidden": "32",
                "diffusion.eval_levels": "1",
                "sample.grid": "0",
                "sampler.steps": "2",
            },
            "upsampler": {**_QUICK, "generator.width": "8", "generator.blocks": "1"},
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Demo:
    """A run of the demo in ``workdir``."""

    workdir: Path
    size: Size

    def tokenizer_config(self) -> ConfigDict:
        """Trained on clips of both sizes, half of the steps each."""
        kind = TOKENIZERS["fsvideo_dit"]
        buckets = tuple((FRAMES, side, side, kind.batch) for side in (LOW, HIGH))
        keys = {**kind.keys, "data.buckets": str(buckets), "data.bucket_weights": "(1, 1)"}
        keys |= self.size.keys.get("tokenizer", {})
        return make_tokenizer_config(
            dataclasses.replace(kind, keys=keys),
            (FRAMES, HIGH, HIGH),
            channels=CHANNELS,
            clips=self.size.clips,
            steps=self.size.steps["tokenizer"],
            seed=0,
        )

    def encode(self, name: str) -> int:
        """Encode ``pairs`` of both sizes, or ``small`` latents alone; returns the exit status."""
        config = self.tokenizer_config()
        side, low = {"pairs": (HIGH, 2), "small": (LOW, 0)}[name]
        with config.unlocked():
            config.data.buckets = ((FRAMES, side, side, 16),)
            config.data.bucket_weights = ()
            config.encode.low = low
        return encode_set(config, self.workdir / "tokenizer", -1, str(self.workdir / name))

    def part_config(self, part: str) -> ConfigDict:
        """Of ``base``, ``upsampler``, ``refiner`` or one of its students."""
        steps = self.size.steps[part]
        keys = {
            "data.path": str(self.workdir / ("small" if part == "base" else "pairs")),
            "tokenizer.path": str(self.workdir / "tokenizer"),
            "train.steps": str(steps),
            "checkpoint.every": str(max(1, steps // 4)),
            "eval.every": str(max(1, steps // 2)) if steps > 100 else "0",
        }
        keys |= self.size.keys.get("upsampler" if part == "upsampler" else "dit", {})
        if part == "refiner":
            keys |= {f"refiner.{name}": str(self.workdir / name) for name in ("base", "upsampler")}
            keys["train.init_from"] = str(self.workdir / "base")
        if part not in _STUDENTS:
            return configs.load(_CONFIGS[part], keys)
        stage, teacher = _STUDENTS[part]
        keys |= {
            "distill.teacher": str(self.workdir / teacher),
            "sampler.steps": str(_FEW),
            "data.validation_clips": str(min(32, self.size.clips // 16)),
        }
        if part == "halved":
            keys["distill.stages"] = f"({_FEW},)"
        if part == "sida":  # samples; the first of the fake score's batches, as the run is short
            keys |= {f"distill.score.{name}_after": "16" for name in ("generator", "adversarial")}
        return configs.load(f"{_CONFIGS['refiner']}:demo,stage={stage}", keys)


def make_pairs(demo: Demo) -> int:
    """Train the tokenizer and encode ``pairs`` and ``small`` unless done; returns the status."""
    folder, tokenizer = demo.workdir, demo.tokenizer_config()
    return _run_stages(
        demo,
        {
            "tokenizer": (
                _scores(demo, "tokenizer"),
                lambda: train(tokenizer, folder / "tokenizer"),
            ),
            # The first set measures the means and deviations by which all parts normalise.
            "pairs": (folder / "pairs" / "header.json", lambda: demo.encode("pairs")),
            "small": (folder / "small" / "header.json", lambda: demo.encode("small")),
        },
    )


def make_base(demo: Demo) -> int:
    """``make_pairs``, and train the base model unless done; returns the status."""
    base = {"base": (_scores(demo, "base"), _trainer(demo, "base"))}
    return make_pairs(demo) or _run_stages(demo, base)


def run(demo: Demo) -> int:
    """Run all stages that are not done yet; returns the exit status."""
    folder = demo.workdir
    parts = {part: (_scores(demo, part), _trainer(demo, part)) for part in (*_CONFIGS, *_STUDENTS)}
    if status := make_pairs(demo) or _run_stages(demo, parts):
        return status
    write_json(folder / CASCADE_FILE, {name: name for name in ("tokenizer", *_CONFIGS)})
    cascade, clips = _timed(folder, "cascade", lambda: _sample(demo), anew=True)()
    students = _timed(folder, "students", lambda: _sample_students(demo, clips), anew=True)()
    facts = {
        "steps": dict(demo.size.steps),
        "clips": demo.size.clips,
        "nfe": cascade.nfe,
        "checkpoints": cascade.checkpoints,
        "seconds": _read_seconds(folder),
        "seconds_of_parts": cascade.seconds,
    }
    show(folder, clips, facts, cascade.config, students)
    return 0


def _run_stages(demo: Demo, stages: Mapping[str, tuple[Path, Callable[[], int]]]) -> int:
    for name, (finished, stage) in stages.items():
        if status := run_stage(name, finished, _timed(demo.workdir, name, stage), {}):
            return status
    return 0


def _scores(demo: Demo, part: str) -> Path:
    return demo.workdir / part / "eval" / f"step_{demo.size.steps[part]}" / "scores.json"


def _trainer(demo: Demo, part: str) -> Callable[[], int]:
    # The config is read when its turn comes: the refiner's names the runs before it.
    return lambda: train(demo.part_config(part), demo.workdir / part)


def _timed(
    folder: Path, name: str, stage: Callable[[], _Result], anew: bool = False
) -> Callable[[], _Result]:
    """The stage, whose time is added to ``seconds.json``, of interrupted runs of it, too."""

    def timed() -> _Result:
        wall, processor = time.perf_counter(), _count_processor_seconds()
        try:
            return stage()
        finally:
            known = _read_seconds(folder)
            before = {} if anew else known.get(name, {})
            passed = {
                "wall": time.perf_counter() - wall,
                "processor": _count_processor_seconds() - processor,
            }
            known[name] = {k: round(before.get(k, 0.0) + v, 1) for k, v in passed.items()}
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "seconds.json", known)

    return timed


def _count_processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _read_seconds(folder: Path) -> dict[str, dict[str, float]]:
    file = folder / "seconds.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _sample(demo: Demo) -> tuple[Cascade, list[Clip]]:
    """Unseen clips' first frames to videos, by the cascade and by the base model alone."""
    # The config that was stored knows the channels of the latents.
    base = Generator.from_workdir(demo.workdir / "base")
    seed = base.config.sample.seed
    cascade = Cascade.of(base, demo.workdir / "refiner")
    scenes = [
        make_shape_scene(demo.tokenizer_config().seed + 1, index, FRAMES)
        for index in range(demo.size.videos)
    ]
    real = [render_shape(scene, range(FRAMES), HIGH, HIGH) for scene in scenes]
    halves = [np.asarray(halve_pixels(video[None]))[0] for video in real]
    labels = [scene.label for scene in scenes]
    logging.info("%d videos by the cascade, and by the base model alone", len(labels))
    refined = _draw(cascade, labels, [video[0] for video in real], seed)
    # With the same seeds and the halved pictures these are the videos that the cascade refines.
    small = _draw(base, labels, [video[0] for video in halves], seed)
    codec = cascade.refiner.codec
    clips = [
        Clip(
            label,
            real=true,
            real_small=half,
            base=low,
            bicubic=enlarge(low),
            cascade=high,
            restored=codec.decode(codec.encode(true)),
        )
        for label, true, half, low, high in zip(labels, real, halves, small, refined, strict=True)
    ]
    return cascade, clips


def _sample_students(demo: Demo, clips: Sequence[Clip]) -> dict[str, list[np.ndarray]]:
    """Videos of the refiner and of its students in a few steps each, for one clip of each label."""
    base = Generator.from_workdir(demo.workdir / "base")
    shown = clips[: len(LABELS)]
    found = {}
    for name in ("refiner", *_STUDENTS):
        workdir = demo.workdir / name
        refiner = Generator.of(
            configs.read(workdir, {"sampler.steps": str(_FEW)}), workdir, demo.size.steps[name]
        )
        cascade = Cascade(base, refiner, refiner.size)
        logging.info("%d videos by %s in %d steps", len(shown), name, cascade.nfe["refiner"])
        labels, pictures = [clip.label for clip in shown], [clip.real[0] for clip in shown]
        title = name if name == "refiner" else f"refiner, {name}"
        kind = f"{title}: {cascade.nfe['refiner']} evaluations"
        found[kind] = _draw(cascade, labels, pictures, base.config.sample.seed)
    return found


def enlarge(video: np.ndarray) -> np.ndarray:
    """uint8 ``[T, H, W, 3] -> [T, 2 H, 2 W, 3]``, bicubic."""
    return np.asarray(to_pixels(interpolate(from_pixels(video[None]), "cubic")))[0]


def _draw(
    generator: Any, labels: Sequence[str], pictures: Sequence[np.ndarray], seed: int
) -> list[np.ndarray]:
    """A video for each label and first frame; the k-th has the seed ``seed + k``."""
    rows = [
        {"prompt": label, "encoded": encode_picture(picture)}
        for label, picture in zip(labels, pictures, strict=True)
    ]
    requests = generator.requests_for(rows, 1, seed)
    made = {
        request.seed: np.concatenate(list(generator.decode(request, latent)))
        for request, latent in generator.latents(requests)
    }
    return [made[request.seed] for request in requests]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="demo")
    parser.add_argument("--workdir", help="default runs/fsvideo_demo-<size>")
    parser.add_argument("--clips", type=int, help="rendered clips")
    parser.add_argument("--videos", type=int, help="unseen clips to continue")
    parser.add_argument("--steps", nargs="+", default=[], metavar="PART=N")
    args = parser.parse_args(argv)
    prepare()
    try:
        size = SIZES[args.size]
        given = {name: getattr(args, name) for name in ("clips", "videos")}
        given = {name: value for name, value in given.items() if value is not None}
        size = dataclasses.replace(size, steps=_read_steps(size.steps, args.steps), **given)
        return run(Demo(Path(args.workdir or f"runs/fsvideo_demo-{args.size}"), size))
    except VidlatentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _read_steps(steps: Mapping[str, int], words: Sequence[str]) -> dict[str, int]:
    found = dict(steps)
    for word in words:
        part, _, number = word.partition("=")
        if part not in found or not number.isdecimal() or not int(number):
            raise VidlatentError(
                f"--steps {word!r} is no PART=N: name one of {', '.join(found)}, and its steps."
            )
        found[part] = int(number)
    return found


if __name__ == "__main__":
    sys.exit(main())
