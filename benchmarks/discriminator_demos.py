"""The demos' recipes with a discriminator, minutes each on the sample clips, and a page.

    python -m benchmarks.discriminator_demos                every recipe, 5 minutes each, on a GPU
    python -m benchmarks.discriminator_demos --recipes=fsae     recipes by name
    python -m benchmarks.discriminator_demos --size=small   three steps at toy size, on any machine
    python -m benchmarks.discriminator_demos --page-only        the page of what has finished

Each recipe is up to three runs of ``python -m vidlatent.main``: the stage that it starts from, if
any, for the steps of that stage's demo; the recipe, stopped after the given minutes, which count
from the first log entry with the discriminator; an evaluation. Finished runs are not repeated,
interrupted ones resume. The learning rate is constant, since the clock decides the end; everything
else is as in the presets.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # if run as a file, not with -m

from benchmarks.discriminator_demos_page import write_page
from vidlatent import config as configs
from vidlatent.config import split_overrides
from vidlatent.errors import VidlatentError
from vidlatent.parallel.compilation import QUICKEST
from vidlatent.report.writers import read_metrics
from vidlatent.train.loop import INTERRUPTED

ROOT = Path(__file__).resolve().parent.parent
_POLL_S = 0.5  # seconds between looks at the log of a run
# Compile fast, run slowly: for runs of a few steps.
_QUICK = [f"--{name}={int(value)}" for name, value in QUICKEST.items()]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One demo with a discriminator.

    Attributes:
      name: of its folder.
      config: file and preset.
      former: file and preset of the stage that it starts from; '': random weights.
      frames: of a clip.
    """

    name: str
    config: str
    former: str = ""
    frames: int = 17


RECIPES = (
    Recipe("fsae", "fsae:demo,stage=2", "fsae:demo"),
    Recipe("reducio_vae", "reducio_vae:demo,discriminator=true", frames=16),
    Recipe("promag", "promag:demo,gan=true"),
    Recipe("ivvae", "ivvae:demo,stage=4", "ivvae:demo"),
)

# Config keys by size: of every training run, and of those with a discriminator.
_KEYS = {
    "large": {"eval.pictures": 2},
    "small": {
        "eval.pictures": 1,
        "eval.every": 1,
        "train.steps": 3,
        "train.log_every": 1,
        "data.validation_clips": 2,
    },
}
_DISCRIMINATOR_KEYS = {
    "large": {"train.steps": 10**7, "optim.schedule": "constant"},
    "small": {"discriminator.start_step": 1},
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings that all recipes share.

    Attributes:
      size: 'large' or 'small'.
      side, batch: pixels of a clip's height and width; clips a step.
      minutes: of training with the discriminator.
      lpips: file of LPIPS-VGG's weights; '': a small network with random weights instead.
    """

    size: str
    side: int
    batch: int
    minutes: float
    lpips: str = ""

    @property
    def metric(self) -> str:
        return "lpips_vgg" if self.lpips else "lpips_tiny"

    def flags(self, recipe: Recipe, workdir: Path, former: Path | None) -> list[str]:
        """Flags to train a recipe or, if ``former`` is None, the stage that it starts from."""
        name, _, preset = (recipe.former if former is None else recipe.config).partition(":")
        keys = {
            "data.buckets": f"(({recipe.frames},{self.side},{self.side},{self.batch}),)",
            "eval.training_metrics": f"('{self.metric}',)",
            "train.tensorboard": False,
            **_KEYS[self.size],
            **(_DISCRIMINATOR_KEYS[self.size] if former is not None else {}),
        }
        if former is not None and recipe.former:
            keys["train.init_from"] = _relative_path(former)
        return [f"--config=configs/{name}.py:{preset}", *self._rest(workdir, keys)]

    def eval_flags(self, workdir: Path) -> list[str]:
        return ["--mode=eval", *self._rest(workdir, {"eval.metrics": f"('{self.metric}',)"})]

    def _rest(self, workdir: Path, keys: dict[str, Any]) -> list[str]:
        if self.lpips:
            keys = {**keys, "networks.lpips_vgg": self.lpips}
        return [
            f"--workdir={_relative_path(workdir)}",
            *(f"--config.{k}={v}" for k, v in keys.items()),
        ]


def _relative_path(path: Path) -> Path:
    """Relative to the checkout, where the programs run."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _as_typed(flags: Sequence[str]) -> str:
    """The flags as typed in a shell."""
    return " ".join(f'"{flag}"' if "(" in flag else flag for flag in flags)


def carry_out(recipe: Recipe, plan: Plan, folder: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """Train and score one recipe; returns what its section of the page shows."""
    former, workdir = folder / recipe.name / "former", folder / recipe.name / "discriminator"
    commands, quick = [], plan.size == "small"
    if recipe.former:
        commands.append(plan.flags(recipe, former, None))
        if not list(former.glob("eval/*/scores.json")):  # the last file to be written
            _run_main(commands[-1], former, quick=quick)
    commands.append(plan.flags(recipe, workdir, former))
    limit = None if quick else 60 * plan.minutes
    start = configs.load(*_parse_command(commands[-1])).discriminator.start_step
    seconds = _run_main(commands[-1], workdir, limit, after=start, quick=quick)
    commands.append(plan.eval_flags(workdir))
    _run_main(commands[-1], workdir, quick=quick)
    curves = read_metrics(workdir / "metrics.jsonl")
    steps, rates = curves["train/frames_per_second"]
    scored, sheet = _read_last_evaluation(workdir)
    if recipe.former:
        earlier, sheets = _read_validation(former), [_read_last_evaluation(former)[1], sheet]
    else:
        earlier, sheets = _read_validation(workdir, start), [sheet]
    return {
        "recipe": dataclasses.asdict(recipe),
        "plan": dataclasses.asdict(plan),
        "machine": machine,
        "commands": list(map(_as_typed, commands)),
        "steps": steps[-1],
        "minutes": seconds / 60,
        "start_step": start,
        "frames_per_second": statistics.median(
            rate for step, rate in zip(steps, rates, strict=True) if step > start
        ),
        "before": earlier,
        "after": {**scored["scores"], "step": scored["step"]},
        "workdir": str(workdir),
        "sheets": list(map(str, sheets)),
    }


def _parse_command(flags: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Config file and overrides of a command."""
    rest, overrides = split_overrides(list(flags))
    return next(flag for flag in rest if flag.startswith("--config=")).partition("=")[2], overrides


def _run_main(
    flags: Sequence[str],
    workdir: Path,
    limit: float | None = None,
    *,
    after: int = 0,
    quick: bool = False,
) -> float:
    """Run ``vidlatent.main`` in a new process; returns the seconds since its first log entry.

    Time of earlier, interrupted runs in the same workdir is included.

    Args:
      flags: of the command.
      workdir: of the run; the log and the seconds are stored there, too.
      limit: seconds after which it is asked to save and exit; None: it ends by itself.
      after: the time starts with the first log entry of a later step.
      quick: compile with little optimisation, for short runs.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    curves, clock = workdir / "metrics.jsonl", workdir / "seconds.json"
    spent = json.loads(clock.read_text()) if clock.exists() else 0.0
    if limit is not None and spent >= limit:
        return spent
    print(f"python -m vidlatent.main {_as_typed(flags)}", flush=True)
    environment = {"JAX_COMPILATION_CACHE_DIR": str(workdir.parent.parent / "cache"), **os.environ}
    if quick:
        environment["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_QUICK])
    known = curves.stat().st_size if curves.exists() else 0
    with (workdir / "log.txt").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "vidlatent.main", *flags],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        begin, asked = None, False
        try:
            while process.poll() is None:
                time.sleep(_POLL_S)
                if begin is None and curves.exists() and curves.stat().st_size > known:
                    found = read_metrics(curves)
                    if max((steps[-1] for steps, _ in found.values()), default=0) > after:
                        begin = time.monotonic()
                if begin is None or limit is None or asked:
                    continue
                total = spent + time.monotonic() - begin
                clock.write_text(json.dumps(total))
                if total >= limit:
                    process.send_signal(signal.SIGTERM)
                    asked = True
        except KeyboardInterrupt:
            process.wait()  # Ctrl-C reached it as well, and it saves
            raise
    if process.returncode not in ((0, INTERRUPTED) if asked else (0,)):
        last = ([line for line in (workdir / "log.txt").read_text().splitlines() if line] or [""])[
            -1
        ]
        raise VidlatentError(f"{workdir} ended with {process.returncode}: {last[:300]}")
    return spent + (time.monotonic() - begin if begin is not None else 0.0)


def _read_last_evaluation(workdir: Path) -> tuple[dict[str, Any], Path]:
    """``(scores.json, path of the contact sheet)`` of the last evaluation."""
    files = sorted(workdir.glob("eval/*/scores.json"), key=lambda file: file.stat().st_mtime)
    return json.loads(files[-1].read_text()), files[-1].with_name("contact_sheet.png")


def _read_validation(workdir: Path, until: float = float("inf")) -> dict[str, Any]:
    """Scores of the last validation up to step ``until``; empty if there was none."""
    found: dict[str, Any] = {}
    for name, (steps, values) in read_metrics(workdir / "metrics.jsonl").items():
        early = [(s, v) for s, v in zip(steps, values, strict=True) if s <= until]
        if name.startswith("val/") and early:
            found |= {"step": early[-1][0], name.removeprefix("val/"): early[-1][1]}
    return found


_ABOUT = """
import importlib.metadata, json, platform, jax
names = ("jax", "jaxlib", "flax")
print(json.dumps({
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in names},
}))
"""


def describe_machine(commit: str) -> dict[str, Any]:
    """Device and versions; another process reads them, so that this one leaves the device free."""
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, "-c", _ABOUT]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    if not commit:
        asked = ["git", "describe", "--always", "--dirty", "--abbrev=7"]
        told = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
        commit = told.stdout.strip() or "unknown"
    return {**json.loads(said.stdout.splitlines()[-1]), "commit": commit}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", default="", help=f"of {', '.join(r.name for r in RECIPES)}")
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="of each, with the discriminator"
    )
    parser.add_argument("--size", choices=("large", "small"), default="large")
    parser.add_argument("--side", type=int, default=0, help="pixels; 0: 128, of small 32")
    parser.add_argument("--batch", type=int, default=0, help="clips a step; 0: 8, of small 1")
    parser.add_argument("--lpips", default="", help="file of LPIPS-VGG's weights")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "discriminator_demos")
    parser.add_argument("--page", type=Path, help="default: discriminator_demos.md in the folder")
    parser.add_argument("--commit", default="", help="to name on the page; default: git's")
    parser.add_argument("--page-only", action="store_true")
    options = parser.parse_args(argv)
    wanted = options.recipes.split(",") if options.recipes else [r.name for r in RECIPES]
    if unknown := set(wanted) - {recipe.name for recipe in RECIPES}:
        parser.error(f"no recipe is called {', '.join(sorted(unknown))}")
    small = options.size == "small"
    plan = Plan(
        options.size,
        options.side or (32 if small else 128),
        options.batch or (1 if small else 8),
        0.0 if small else options.minutes,
        options.lpips,
    )
    folder, machine = options.folder.resolve(), None
    for recipe in RECIPES if not options.page_only else ():
        file = folder / recipe.name / "result.json"
        if recipe.name not in wanted or _is_finished(file, recipe, plan):
            continue
        machine = machine or describe_machine(options.commit)
        found = carry_out(recipe, plan, folder, machine)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(part, file)
    files = [folder / recipe.name / "result.json" for recipe in RECIPES]
    results = [json.loads(file.read_text()) for file in files if file.exists()]
    if not results:
        parser.error(f"{folder} holds no finished recipe to make a page of")
    page = options.page or folder / "discriminator_demos.md"
    write_page(results, page)
    print(f"wrote {page}")
    return 0


def _is_finished(file: Path, recipe: Recipe, plan: Plan) -> bool:
    """Whether there is a result; raises ``VidlatentError`` if it is of another plan."""
    if not file.exists():
        return False
    found = json.loads(file.read_text())
    if (found["recipe"], found["plan"]) != (dataclasses.asdict(recipe), dataclasses.asdict(plan)):
        raise VidlatentError(
            f"{file} is of other settings than asked for: take another --folder, or --page-only."
        )
    return True


if __name__ == "__main__":
    sys.exit(main())
