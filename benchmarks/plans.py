"""Plans all published presets for machines that need not be at hand, for ``docs/plans.md``.

    python -m benchmarks.plans                      # make the missing plans and write the page
    python -m benchmarks.plans --only fsvideo       # only cases whose name contains a word
    python -m benchmarks.plans --minutes 30         # start no further plan after so long
    python -m benchmarks.plans --page-only          # write the page from the plans that exist

Each plan is made by its own process, one after another, which frees its memory. Finished plans stay
in ``--folder`` and are not repeated; failed ones, and those stopped by ``--limit``, are tried
again. The page shows the compiler's estimates; nothing is run.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # if run as a file, not with -m

from benchmarks import plans_page
from vidlatent.errors import VidlatentError

__all__ = ["CASES", "Case", "command"]

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Case:
    """A plan to make: its name in the table, and the flags of ``--mode=plan``.

    Attributes:
      name: of its row and file.
      keys: of the config, after ``--config.``.
    """

    name: str
    config: str
    topology: str
    keys: dict[str, Any] = dataclasses.field(default_factory=dict)


def _decode(frames: int, height: int, width: int) -> dict[str, Any]:
    return {"plan.what": "decode", "plan.bucket": f"({frames},{height},{width},1)"}


_FSAE, _PROMAG, _REDUCIO, _IVVAE = (
    {"plan.tokenizer": preset}
    for preset in ("fsae:paper", "promag:paper", "reducio_vae:paper", "ivvae:z4")
)
# Tokens are sharded (mesh.context), not kernels (mesh.tensor), which fit: that sends a sixth as
# much.
_EVALUATION = {"plan.what": "nfe", "sample.batch": 1, "mesh.fsdp": 1, "mesh.context": 4}
_VIDEO_DIT = "fsvideo_dit:paper,stage="
# A tokenizer has hundreds of convolutions, and each takes seconds at the compiler's own effort.
EFFORT = {"plan.effort": -1}

# Those that compile quickly come first. A topology has as many chips as the smallest batch of a
# preset's buckets divides over, and more only where a clip is split between chips (mesh.context).
CASES = (
    Case("latte-ucf101", "latte:paper", "v6e:4x8", _IVVAE),
    # 1152 channels divide over 128 chips, not over 256.
    Case("reducio_dit-1", "reducio_dit:paper", "v6e:16x16", {"mesh.data": 2, **_REDUCIO}),
    Case(
        "reducio_dit-2", "reducio_dit:paper,stage=2", "v6e:16x16", {"mesh.context": 2, **_REDUCIO}
    ),
    Case(
        "reducio_dit-3", "reducio_dit:paper,stage=3", "v6e:16x16", {"mesh.context": 8, **_REDUCIO}
    ),
    Case("promag_dit-1", "promag_dit:paper", "v6e:16x16", _PROMAG),
    Case(
        "promag_dit-2-4x", "promag_dit:paper,stage=2", "v6e:16x16", {"mesh.context": 4, **_PROMAG}
    ),
    Case(
        "promag_dit-3-16x",
        "promag_dit:paper,stage=3,k=16",
        "v6e:16x16",
        {"mesh.context": 4, "plan.tokenizer": "promag:paper,k=16"},
    ),
    Case("fsvideo_dit-nfe", _VIDEO_DIT + "target", "v5p:2x2x1", {**_EVALUATION, **_FSAE}),
    Case("fsvideo_dit-target", _VIDEO_DIT + "target", "v5p:8x8x4", {"mesh.context": 4, **_FSAE}),
    Case("fsvideo_dit-video", _VIDEO_DIT + "video", "v5p:8x8x4", {"mesh.context": 2, **_FSAE}),
    Case("fsvideo_dit-image", _VIDEO_DIT + "image", "v5p:8x8x4", _FSAE),
    # A batch of 32 does not spread over 64 places, so a clip is split eight ways.
    Case(
        "fsvideo_refiner-target",
        "fsvideo_refiner:paper,stage=target",
        "v5p:8x8x4",
        {"mesh.context": 8, **_FSAE},
    ),
    Case("dcae-sana", "dcae:paper", "v6e:8x8"),
    Case("ivvae-1", "ivvae:paper,stage=1", "v6e:8x8"),
    Case("ivvae-2", "ivvae:paper,stage=2", "v6e:4x8"),
    Case("reducio_vae", "reducio_vae:paper", "v6e:4x8"),
    Case("promag-0", "promag:paper,image=true", "v6e:4x8"),
    Case("promag-I", "promag:paper", "v6e:4x8"),
    Case("promag-II", "promag:paper,grow=1", "v6e:4x8"),
    Case("promag-III", "promag:paper,grow=2", "v6e:4x8"),
    Case("fsae-lite-decode", "fsae:lite", "v5p:1x1x1", _decode(121, 768, 1280)),
    Case("fsae-standard-decode", "fsae:standard", "v5p:1x1x1", _decode(121, 768, 1280)),
    Case("fsae-1", "fsae:paper", "v5p:4x4x4"),
    Case("fsae-2", "fsae:paper,stage=2", "v5p:2x2x2"),
    # Its largest batch trains the decoder alone here.
    Case(
        "fsae-3",
        "fsae:paper,stage=3",
        "v5p:4x4x4",
        {"mesh.context": 8, "train.patch_encoder": False},
    ),
    Case("fsae-vf", "fsae:paper,stage=vf", "v5p:2x2x4"),
    Case("fsae-standard", "fsae:standard", "v5p:4x4x4", {"mesh.context": 8}),
    # It fits neither with context 8, as fsae-3 does, nor with the whole batch at once.
    Case("fsae-lite", "fsae:lite", "v5p:4x4x4", {"mesh.context": 16, "optim.accumulate": 2}),
    Case("ivvae-3", "ivvae:paper,stage=3", "v6e:4x4"),
    Case("ivvae-4", "ivvae:paper,stage=4", "v6e:4x4"),
    Case("reducio_vae-ft2", "reducio_vae:paper,time=2", "v6e:2x4"),
    Case("fsvideo_dit-sft", _VIDEO_DIT + "sft", "v5p:8x8x4", {"mesh.context": 4, **_FSAE}),
)


def command(case: Case) -> list[str]:
    """The arguments of ``python -m vidlatent.main`` that make this plan."""
    name, _, preset = case.config.partition(":")
    flags = ["--mode=plan", f"--config=configs/{name}.py:{preset}", f"--topology={case.topology}"]
    keys = {**case.keys, **EFFORT}
    return flags + [f"--config.{key}={value}" for key, value in keys.items()]


def make_plan(case: Case, folder: Path, limit: int) -> dict[str, Any]:
    """Plan a case in its own process; returns the plan and its cost, or the reason of a failure."""
    output, log = folder / f"{case.name}.plan.json", folder / f"{case.name}.log"
    output.unlink(missing_ok=True)
    words = [sys.executable, "-m", "vidlatent.main", *command(case), f"--output={output}"]
    words.append(f"--workdir={folder / 'workdir'}")
    # On the CPU platform a TPU's plan needs no second process. Programs that are compiled ahead of
    # time cannot be read back from a cache.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    begin, made_with = time.monotonic(), versions()
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["bash", "-c", f'ulimit -t {limit}; exec "$@"', "plan", *words],
            cwd=ROOT,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)  # usage of it and its children
    process.returncode = os.waitstatus_to_exitcode(status)
    row = {
        "case": dataclasses.asdict(case),
        "seconds": time.monotonic() - begin,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": 1024 * usage.ru_maxrss,
        **made_with,
    }
    if output.exists():
        return {**row, "plan": json.loads(output.read_text())}
    if process.returncode < 0:
        spent = f"stopped after {row['processor_seconds']:.0f} s of processor"
        return {**row, "failed": spent}
    lines = [line for line in log.read_text().splitlines() if line.strip()] or ["no message"]
    return {**row, "failed": lines[-1][:300]}


def versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "libtpu")
    try:
        told = {name: importlib.metadata.version(name) for name in names}
    except importlib.metadata.PackageNotFoundError as error:
        raise VidlatentError(f"Plans need the package {error.name}: make install-plan.") from error
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=7"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {**told, "commit": commit}


def read_stored(folder: Path) -> dict[str, dict[str, Any]]:
    """What there is of the cases, by name."""
    files = {case.name: folder / f"{case.name}.json" for case in CASES}
    return {name: json.loads(f.read_text()) for name, f in files.items() if f.exists()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "plans")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "plans.md")
    parser.add_argument("--only", default="", help="words of names, commas between")
    parser.add_argument("--limit", type=int, default=1800, help="processor seconds for one plan")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="for all of them")
    parser.add_argument("--again", action="store_true", help="also those that are done")
    parser.add_argument("--page-only", action="store_true")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    wanted = [word for word in options.only.split(",") if word]
    begin, before = time.monotonic(), read_stored(options.folder)
    for case in CASES if not options.page_only else ():
        known = before.get(case.name, {})
        same = known.get("case") == json.loads(json.dumps(dataclasses.asdict(case)))
        if wanted and not any(word in case.name for word in wanted):
            continue
        if same and "plan" in known and not options.again:
            continue
        if time.monotonic() - begin > 60 * options.minutes:
            break
        row = make_plan(case, options.folder, options.limit)
        (options.folder / f"{case.name}.json").write_text(json.dumps(row, indent=1) + "\n")
        print(case.name, row.get("failed", "planned"), f"{row['seconds']:.0f} s", flush=True)
    found = read_stored(options.folder)
    rows = [found.get(case.name, {"case": dataclasses.asdict(case)}) for case in CASES]
    commands = {case.name: " ".join(command(case)) for case in CASES}
    options.page.write_text(plans_page.format_page(rows, commands))
    print(f"wrote {options.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
