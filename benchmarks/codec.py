"""Encoding and decoding of videos by the codec: whole, streamed, scanned, in parts, on a mesh.

    python -m benchmarks.codec                          # every tokenizer's demo size
    python -m benchmarks.codec --cases ivvae-720p       # sizes of the papers, see CASES
    python -m benchmarks.codec --ways whole,stream --clip 17x96x96 --json codec.json

Each row runs in a process of its own, one after the other, so that its peak is its own: the
resident memory of the process on a CPU (with interpreter and compiler, some 0.5 GiB), the
allocator's peak on an accelerator. Weights are random. Rates count frames of the video against wall
seconds, from frames on the host to a latent on the host and back; the first pass, which compiles,
does not count. Where the hardware's peak is known (``tools.hardware``), the share of the roofline
is what the decoder's matrix products and convolutions would take at that peak, over the time that
decoding took.

Ways: ``whole`` (all frames in one piece), ``stream`` (pieces, caches in between), ``scan`` (several
pieces a call), ``parts`` (a stream with frames cut up: FSAE's exact tiles, IV-VAE's strips,
ProMAG's layers, Reducio's tiles), ``shard`` (a stream over all devices; ``--cpu-devices 8`` for
trying it).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WAYS = ("whole", "stream", "scan", "parts", "shard")


@dataclasses.dataclass(frozen=True)
class Case:
    """A config, a clip, how frames are cut up in the way ``parts``, and a figure to compare with.

    Attributes:
      groups: frame groups in a piece; 0: the config's.
    """

    config: str
    clip: str
    parts: dict[str, Any]
    dtype: str = ""
    groups: int = 0
    known: str = ""


CASES = {
    "fsae-demo": Case("configs/fsae.py", "17x128x128", {"space": "tiles", "tile_pixels": 64}),
    "ivvae-demo": Case("configs/ivvae.py", "17x128x128", {"space": "strips", "strip_mb": 0.5}),
    "promag-demo": Case("configs/promag.py", "17x128x128", {"space": "layers"}),
    "reducio-demo": Case(
        "configs/reducio_vae.py", "32x128x128", {"space": "tiles", "tile_pixels": 64}
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


def coding_of(case: Case, way: str, frames: int, rule: Any) -> dict[str, Any]:
    """Keys of ``config.codec`` for a way."""
    keys: dict[str, Any] = {"space": "whole", "scan_groups": 1}
    keys |= {"groups": case.groups} if case.groups else {}
    if way == "whole":
        keys["groups"] = max(1, -(-frames // rule.step))
    elif way == "scan":
        keys |= {"groups": 1, "scan_groups": 2}
    elif way == "parts":
        keys |= case.parts
    return keys


def measure(name: str, way: str, clip: str, repeats: int) -> dict[str, Any]:
    """One row, in this process."""
    import jax
    import numpy as np

    from benchmarks.vs_torch import random_params
    from vidlatent import config as configs
    from vidlatent.dist.mesh import AXES, make_mesh
    from vidlatent.infer.codec import Codec
    from vidlatent.infer.coding import Coding
    from vidlatent.infer.load import abstract_params, model_of

    case = CASES[name]
    frames, height, width = map(int, (clip or case.clip).split("x"))
    config = configs.load(case.config)
    model = model_of(config, case.dtype or None)
    looks_ahead = hasattr(model, "streams") and not model.streams
    params = jax.tree.map(jax.numpy.asarray, random_params(abstract_params(model)))
    keys = coding_of(case, way, frames, model.latent_spec.rule)
    if looks_ahead:  # windows take the place of pieces
        if way == "scan":
            return {"skipped": "a decoder that looks ahead has windows, not pieces"}
        keys["window_latents"] = -(-frames // model.latent_spec.t) if way == "whole" else 4
        del keys["scan_groups"]
    mesh = None
    if way == "shard":
        if len(jax.devices()) == 1:
            return {"skipped": "one device"}
        mesh = make_mesh(dict(zip(AXES, (1, 1, -1, 1), strict=True)))
    codec = Codec(model, params, Coding.of({**config.codec.to_dict(), **keys}), mesh)
    video = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)
    found: dict[str, Any] = {}
    coded = codec.encode(video)
    codec.decode(coded)
    for kind, run in (
        ("encode", lambda: codec.encode(video)),
        ("decode", lambda: codec.decode(coded)),
    ):
        wall, processor = [], []
        for _ in range(repeats):
            start = time.perf_counter(), time.process_time()
            run()
            wall.append(time.perf_counter() - start[0])
            processor.append(time.process_time() - start[1])
        found[f"{kind}_s"] = min(wall)
        found[f"{kind}_processor_s"] = min(processor)
        found[f"{kind}_frames_per_s"] = frames / min(wall)
    found["peak_gib"] = peak() / 2**30
    found["device"] = jax.devices()[0].device_kind
    found["devices"] = len(jax.devices())
    return found | roofline(model, params, (frames, height, width), found["decode_s"])


def peak() -> int:
    """Bytes: of the device's allocator, or of this process."""
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def roofline(model: Any, params: Any, clip: tuple[int, int, int], seconds: float) -> dict[str, Any]:
    """Operations of decoding the clip whole, and the share of their time at the hardware's peak."""
    import jax
    import jax.numpy as jnp

    from vidlatent.infer.steps import Steps
    from vidlatent.tools.hardware import HARDWARE
    from vidlatent.tools.plan_flops import count_flops

    spec, steps = model.latent_spec, Steps(model)
    frames, height, width = clip
    height, width = height + -height % spec.h, width + -width % spec.w
    shape = spec.latent_shape((spec.rule.ceil(frames), height, width))
    latent = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    condition = None
    if steps.content != "none":
        count = max(1, frames // spec.rule.step) if steps.content == "clip" else 1
        seen = jax.ShapeDtypeStruct((count, height, width, 3), jnp.uint8)
        condition = jax.eval_shape(steps.pieces["look"], params, seen)
    program = jax.make_jaxpr(steps.pieces["decode"])(params, latent, None, condition)
    flops = count_flops(program)
    kind = jax.devices()[0].device_kind
    peaks = [entry.flops for entry in HARDWARE.values() if kind in entry.kinds and entry.flops]
    share = {"decode_roofline": flops / peaks[0] / seconds / len(jax.devices())} if peaks else {}
    return {"decode_tflop": flops / 1e12, **share}


def versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def processor_name() -> str:
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor()


def row_of(name: str, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """``measure`` in another process."""
    command = [sys.executable, "-m", "benchmarks.codec", "--row", name, way]
    command += ["--clip", options.clip, "--repeats", str(options.repeats)]
    command += ["--cpu-devices", str(options.cpu_devices if way == "shard" else 0)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"case": name, "way": way, "failed": reason}
    return {"case": name, "way": way, **json.loads(lines[-1])}


def show(row: dict[str, Any]) -> None:
    head = f"{row['case']:14} {row['way']:7}"
    for reason in ("skipped", "failed"):
        if reason in row:
            print(f"{head} {reason}: {row[reason]}")
            return
    share = f"{row['decode_roofline']:8.0%}" if "decode_roofline" in row else " " * 8
    print(
        f"{head} {row['encode_frames_per_s']:10.2f} {row['decode_frames_per_s']:10.2f}"
        f" {row['encode_processor_s']:10.2f} {row['decode_processor_s']:10.2f}"
        f" {row['peak_gib']:9.2f} {share}  {row['devices']} x {row['device']}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    demos = ",".join(name for name in CASES if name.endswith("-demo"))
    parser.add_argument("--cases", default=demos, help=f"of {', '.join(CASES)}")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--clip", default="", help="frames x height x width; empty: the case's")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cpu-devices", type=int, default=0, help="for the way shard, on a CPU")
    parser.add_argument("--json", default="", help="file for everything")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        if options.cpu_devices:
            import jax

            jax.config.update("jax_num_cpu_devices", options.cpu_devices)
        print(json.dumps(measure(*options.row, options.clip, options.repeats)))
        return
    about = {"processor": processor_name(), "python": platform.python_version(), **versions()}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    titles = ("enc fr/s", "dec fr/s", "enc cpu s", "dec cpu s")
    columns = " ".join(f"{title:>10}" for title in titles)
    print(f"{'case':14} {'way':7} {columns} {'peak GiB':>9} {'roofline':>8}")
    rows = []
    for name in options.cases.split(","):
        if CASES[name].known:
            print(f"{name}: known {CASES[name].known}")
        for way in options.ways.split(","):
            rows.append(row_of(name, way, options))
            show(rows[-1])
    if options.json:
        Path(options.json).write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
