"""Encoding and decoding of videos by the codec: whole, streamed, scanned, sharded, in tiles.

    python -m benchmarks.codec                          # every tokenizer's demo size
    python -m benchmarks.codec --cases ivvae-720p       # sizes of the papers, see CASES
    python -m benchmarks.codec --ways whole,stream --clip 37x96x96 --json codec.json

All ways of a case are compiled in one process and then take turns, each round in another order, so
that other load on the machine affects all of them alike. A rate is frames / median of wall seconds,
from frames on the host to a latent on the host and back; the spread is the interquartile range /
median. Processor time, which other load hardly changes, is the least of the rounds. Weights are
random.

Memory on a CPU is the peak of resident memory in a separate run minus what was resident before. An
accelerator's peak counts from the start of the process: ``--apart`` gives each way its own process.

"Off" is the largest difference from ``whole``, or from the first way: of latents relative to the
largest value, of pixels in 8-bit levels. If the peak of the hardware is known (``plan.hardware``),
the share of the roofline is the least time of the decoder's matrix products and convolutions at
that peak / the time that decoding took.

Ways: ``whole`` (all frames in one piece), ``stream`` (one frame group a piece, caches in between),
``scan`` (two pieces a call), ``tile`` (a stream with frames cut up: FSAE's exact tiles, IV-VAE's
strips, ProMAG's layers, Reducio's tiles), ``shard`` (a stream over all devices; on a CPU over
``--cpu-devices`` of them, which share its cores).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # if run as a file, not with -m

from benchmarks.watch import MIB, process_status

WAYS = ("whole", "stream", "scan", "tile", "shard")


@dataclasses.dataclass(frozen=True)
class Case:
    """A config, a clip, codec keys of the way ``tile``, and a published figure to compare with.

    Clips of the demos are a first piece and an even number of later ones, so that ``scan`` has no
    rest.
    """

    config: str
    clip: str
    tile: dict[str, Any]
    dtype: str = ""
    known: str = ""


CASES = {
    "fsae-demo": Case("configs/fsae.py", "37x128x128", {"space": "tiles", "tile_pixels": 64}),
    "ivvae-demo": Case("configs/ivvae.py", "37x128x128", {"space": "strips", "strip_mb": 0.5}),
    "promag-demo": Case("configs/promag.py", "37x128x128", {"space": "layers"}),
    "reducio-demo": Case(
        "configs/reducio_vae.py", "48x128x128", {"space": "tiles", "tile_pixels": 64}
    ),
    "ivvae-720p": Case(
        "configs/ivvae.py:z16",
        "17x720x1280",
        {"space": "strips"},
        "bfloat16",
        known="encoding and decoding: 3.3 s on an A800 (IV-VAE)",
    ),
    "fsae-lite": Case(
        "configs/fsae.py:lite",
        "121x768x1280",
        {"space": "tiles"},
        "bfloat16",
        known="decoding by arithmetic alone: 0.75 s at 790 TFLOP/s",
    ),
    "fsae-standard": Case(
        "configs/fsae.py:standard", "121x768x1280", {"space": "tiles"}, "bfloat16"
    ),
    "reducio-1024": Case(
        "configs/reducio_vae.py:paper", "16x1024x1024", {"space": "tiles"}, "bfloat16"
    ),
}


def codec_keys(case: Case, way: str, frames: int, rule: Any) -> dict[str, Any]:
    """Keys of ``config.codec`` for a way."""
    keys: dict[str, Any] = {"space": "whole", "groups": 1, "scan_groups": 1}
    if way == "whole":
        keys["groups"] = max(1, -(-frames // rule.step))
    elif way == "scan":
        keys["scan_groups"] = 2
    elif way == "tile":
        keys |= case.tile
    return keys


class Arm:
    """One way of a case, ready to run.

    Attributes:
      skipped: why it cannot run; '' if it can.
    """

    def __init__(self, case: Case, way: str, model: Any, params: Any, frames: int, keys: Any):
        import jax

        from vidlatent.codec.codec import Codec
        from vidlatent.codec.options import CodecOptions
        from vidlatent.parallel.mesh import AXES, make_mesh

        self.way, self.skipped = way, ""
        spec = model.latent_spec
        keys = {**keys, **codec_keys(case, way, frames, spec.rule)}
        if not model.streams:  # windows take the place of pieces
            if way == "scan":
                self.skipped = "a decoder that looks ahead has windows, not pieces"
            keys["window_latents"] = -(-frames // spec.t) if way == "whole" else 4
            del keys["scan_groups"]
        mesh = None
        if way == "shard":
            if len(jax.devices()) == 1:
                self.skipped = "one device"
            mesh = make_mesh(dict(zip(AXES, (1, 1, -1, 1), strict=True)))
        if not self.skipped:
            self.codec = Codec(model, params, CodecOptions.of(**keys), mesh)

    def jobs(self, video: Any, coded: Any) -> dict[str, Callable[[], Any]]:
        return {
            "encode": lambda: self.codec.encode(video),
            "decode": lambda: self.codec.decode(coded),
        }


def measure(name: str, ways: Sequence[str], clip: str, repeats: int) -> list[dict[str, Any]]:
    """The rows of a case, in this process."""
    import jax
    import numpy as np

    from benchmarks.vs_torch import random_params
    from vidlatent import config as configs
    from vidlatent.bench.device import Times
    from vidlatent.models.load import abstract_params, model_of

    case = CASES[name]
    frames, height, width = map(int, (clip or case.clip).split("x"))
    config = configs.load(case.config)
    model = model_of(config, case.dtype or None)
    params = jax.tree.map(jax.numpy.asarray, random_params(abstract_params(model)))
    keys = config.codec.to_dict()
    arms = [Arm(case, way, model, params, frames, keys) for way in ways]
    rows = {arm.way: {"skipped": arm.skipped} if arm.skipped else {} for arm in arms}
    arms = [arm for arm in arms if not arm.skipped]
    video = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)
    jobs, first = {}, None
    for arm in arms:  # compiles
        coded = arm.codec.encode(video)
        restored = arm.codec.decode(coded)
        first = first or (coded.latent, restored)
        rows[arm.way] |= compare_results(first, (coded.latent, restored))
        jobs[arm.way] = arm.jobs(video, coded)
    del restored, first
    for way, kinds in jobs.items():
        for kind, run in kinds.items():
            rows[way][f"{kind}_memory_mib"] = measure_memory(run)
    times = {(way, kind): [] for way in jobs for kind in jobs[way]}
    for number in range(repeats):
        turn = number % len(arms)
        for arm in arms[turn:] + arms[:turn]:
            for kind, run in jobs[arm.way].items():
                start = time.perf_counter(), time.process_time()
                run()
                now = time.perf_counter(), time.process_time()
                times[arm.way, kind].append((now[0] - start[0], now[1] - start[1]))
    for (way, kind), found in times.items():
        wall = Times([pair[0] for pair in found]).to_json()
        rows[way][kind] = wall | {"processor_s": min(pair[1] for pair in found)}
        rows[way][f"{kind}_frames_per_s"] = frames / wall["median_s"]
    device = {"device": jax.devices()[0].device_kind}
    for arm in arms:
        row = rows[arm.way]
        row |= device | {"devices": len(jax.devices()) if arm.way == "shard" else 1}
        row |= {"frames": frames, "clip": clip or case.clip, "time": arm.codec.time}
        row |= compute_roofline(model, params, (frames, height, width), row)
    return [{"case": name, "way": way, **row} for way, row in rows.items()]


def compare_results(one: Sequence[Any], other: Sequence[Any]) -> dict[str, float]:
    """Differences between two results ``(latent, pixels)``, as the module explains."""
    import numpy as np

    (latent, pixels), (latent_2, pixels_2) = one, other
    levels = np.abs(pixels.astype(np.int16) - pixels_2)
    return {
        "latent_off": float(np.abs(latent - latent_2).max() / np.abs(latent).max()),
        "pixels_off": int(levels.max()),
        "pixels_off_share": float((levels > 0).mean()),
    }


def measure_memory(run: Callable[[], Any]) -> float | None:
    """Peak MiB of a run beyond what was in use before; None where that cannot be measured."""
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        run()
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / MIB
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)  # return free memory, so that taking it again counts
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = process_status(os.getpid())["VmRSS"]
        run()
        return (process_status(os.getpid())["VmHWM"] - before) / MIB
    except OSError:  # another system
        return None


def compute_roofline(
    model: Any, params: Any, clip: tuple[int, int, int], row: dict[str, Any]
) -> dict[str, Any]:
    """Operations of decoding the clip whole, and the share of the peak that decoding reached."""
    import jax
    import jax.numpy as jnp

    from vidlatent.plan.flops import count_flops
    from vidlatent.plan.hardware import HARDWARE

    spec, coder = model.latent_spec, model.make_frame_coder()
    frames, height, width = clip
    height, width = height + -height % spec.h, width + -width % spec.w
    shape = spec.latent_shape((spec.rule.ceil(frames), height, width))
    latent = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    condition = None
    if model.condition_kind != "none":
        count = max(1, frames // spec.rule.step) if model.condition_kind == "content" else 1
        seen = jax.ShapeDtypeStruct((count, height, width, 3), jnp.float32)
        condition = jax.eval_shape(coder.encode_condition, params, seen)
    program = jax.make_jaxpr(coder.decode)(params, latent, condition)
    flops = count_flops(program)
    kind = jax.devices()[0].device_kind
    peaks = [entry.flops for entry in HARDWARE.values() if kind in entry.kinds and entry.flops]
    seconds = row["decode"]["median_s"] * row["devices"]
    share = {"decode_roofline": flops / peaks[0] / seconds} if peaks else {}
    return {"decode_tflop": flops / 1e12, **share}


def versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def processor_name() -> str:
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor()


def measure_in_process(
    name: str, ways: Sequence[str], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Run ``measure`` in another process."""
    command = [sys.executable, "-m", "benchmarks.codec", "--row", name, ",".join(ways)]
    command += ["--clip", options.clip, "--repeats", str(options.repeats)]
    command += ["--cpu-devices", str(options.cpu_devices if "shard" in ways else 0)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [{"case": name, "way": way, "failed": reason} for way in ways]
    return json.loads(lines[-1])


def format_row(row: dict[str, Any]) -> dict[str, str]:
    """A row of the table."""
    cells = {"case": row["case"], "way": row["way"]}
    for reason in ("skipped", "failed"):
        if reason in row:
            return cells | {"off: latent, levels": f"{reason}: {row[reason]}"}
    for kind in ("encode", "decode"):
        spread = f"{row[f'{kind}_frames_per_s']:.1f} ({row[kind]['spread']:.0%})"
        cells[f"{kind} frames/s (spread)"] = spread
    for kind in ("encode", "decode"):
        cost = 1000 * row[kind]["processor_s"] / row["frames"]
        cells[f"{kind} processor ms/frame"] = f"{cost:.1f}"
    for kind in ("encode", "decode"):
        memory = row[f"{kind}_memory_mib"]
        cells[f"{kind} MiB"] = "" if memory is None else f"{memory:.0f}"
    cells["off: latent, levels"] = f"{row['latent_off']:.0e}, {row['pixels_off']}"
    if "decode_roofline" in row:
        cells["decode of roofline"] = f"{row['decode_roofline']:.0%}"
    return cells


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    demos = ",".join(name for name in CASES if name.endswith("-demo"))
    parser.add_argument("--cases", default=demos, help=f"of {', '.join(CASES)}")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--clip", default="", help="frames x height x width; empty: the case's")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--cpu-devices", type=int, default=2, help="for the way shard, on a CPU")
    parser.add_argument("--apart", action="store_true", help="a process for each way")
    parser.add_argument("--json", default="", help="file for everything")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for key, known in (("cases", list(CASES)), ("ways", list(WAYS))):
        for word in getattr(options, key).split(","):
            if word not in known:
                parser.error(f"--{key} names {word!r}: choose of {', '.join(known)}.")
    return options


def main() -> None:
    options = parse_options()
    if options.row:
        import jax

        from vidlatent.parallel.compilation import keep_compiled

        keep_compiled()
        if options.cpu_devices:
            jax.config.update("jax_num_cpu_devices", options.cpu_devices)
        name, ways = options.row
        print(json.dumps(measure(name, ways.split(","), options.clip, max(2, options.repeats))))
        return
    from vidlatent.report.tables import markdown_table

    about = {"processor": processor_name(), "python": platform.python_version(), **versions()}
    about["usable cores"] = str(len(os.sched_getaffinity(0)))
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    rows: list[dict[str, Any]] = []
    ways = options.ways.split(",")
    for name in options.cases.split(","):
        if CASES[name].known:
            print(f"{name}: known {CASES[name].known}")
        for some in [[way] for way in ways] if options.apart else [ways]:
            rows += measure_in_process(name, some, options)
            print(f"{name}, {', '.join(some)}: done", flush=True)
            if options.json:  # after each, so that an interrupted run keeps what it has
                content = json.dumps({"about": about, "rows": rows}, indent=1)
                Path(options.json).write_text(content + "\n")
    print(markdown_table([format_row(row) for row in rows], aligned=True))


if __name__ == "__main__":
    main()
