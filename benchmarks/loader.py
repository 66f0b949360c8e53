"""How many windows a second the loader decodes.

    python benchmarks/loader.py                     # makes 720p H.264 files, two GOP lengths
    python benchmarks/loader.py --input my.mp4      # measures a file of yours
    python benchmarks/loader.py --frames 17 --size 256 --json loader.json

"decode" is one thread that calls ``read_window`` at random positions: wall and processor time of a
window, without the loader around it. The other rows are the whole loader with its batches delivered
to this process, for each number of worker processes and of threads in each. "clips/s" is the total,
"per worker" is divided by max(1, workers). Compare clips/s with what training consumes (batch size
x steps a second): as long as it is larger, the device does not wait for data. If wall time exceeds
processor time in "decode", the machine was busy with other work. Key frames every 12 to 16 frames
make random access much cheaper than an encoder's default of 250: re-encode training clips like that
if the loader is too slow.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vidlatent.data import make_loader, probe, read_window  # noqa: E402
from vidlatent.data.renderers.scenes import make_scene, render  # noqa: E402
from vidlatent.spec import FrameRule  # noqa: E402


def make_file(path: str, gop: int, frames: int = 300) -> None:
    """Encode a rendered 1280x720 scene at 25 frames a second."""
    scene = make_scene(0, 2)
    with av.open(path, "w") as container:
        track = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        track.width, track.height, track.pix_fmt = 1280, 720, "yuv420p"
        track.codec_context.gop_size = gop
        # Noise, so that packets are as large as those of real video.
        grain = np.random.default_rng(0).integers(-6, 7, (4, 720, 1280, 1), dtype=np.int16)
        for number in range(frames):
            image = render(scene, [number / 8], 720, 1280)[0]
            image = np.clip(image + grain[number % 4], 0, 255).astype(np.uint8)
            container.mux(track.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(track.encode())


def measure_decode(path: str, frames: int, size: int, windows: int) -> dict[str, float]:
    """Milliseconds a window of one thread, wall and processor time."""
    info = probe(path)
    starts = np.random.default_rng(0).integers(info.starts(frames, 0.0), size=windows)
    wall, cpu = time.perf_counter(), time.process_time()
    for start in starts:
        read_window(path, start / info.fps, frames, size=(size, size))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall_ms": 1000 * wall / windows, "cpu_ms": 1000 * cpu / windows}


def options(folder: str, frames: int, size: int, batch: int, workers: int, threads: int) -> dict:
    """``config.data`` for a folder, without a cache of clips in memory."""
    return dict(
        source="folder",
        path=folder,
        tfds_name="",
        tfds_field="",
        fps=0.0,
        buckets=((frames, size, size, batch),),
        bucket_weights=(),
        validation_share=0.0,
        num_workers=workers,
        read_threads=threads,
        prefetch=4,
        decode_timeout_s=60.0,
        max_pixels=2**25,
        bad_clip_budget=0.05,
        bad_clip_window=1000,
        crop="random",
        flip=True,
        synthetic=dict(clips=1, frames=1, height=16, width=16),
        memory_mb=0,
        verify="header",
    )


def measure_loader(data: dict, batches: int, frames: int) -> dict[str, float]:
    """Clips a second, without the first batch, which includes the start of the workers."""
    rule = FrameRule(frames, 1)
    began = time.perf_counter()
    with make_loader(data, split="train", rule=rule, seed=0) as loader:
        next(loader)
        first = time.perf_counter() - began
        # Skip the batches that were decoded ahead while the workers started.
        for _ in range(data["prefetch"] + data["num_workers"] * data["read_threads"]):
            next(loader)
        began, clips = time.perf_counter(), 0
        for _ in range(batches):
            clips += len(next(loader)["clip"])
        seconds = time.perf_counter() - began
    rate = clips / seconds
    return {
        "workers": data["num_workers"],
        "threads": data["read_threads"],
        "clips_per_s": rate,
        "clips_per_s_per_worker": rate / max(1, data["num_workers"]),
        "first_batch_s": first,
    }


def run(name: str, path: str, args: argparse.Namespace) -> dict:
    """All measurements of one file."""
    result = {"file": name, "decode": measure_decode(path, args.frames, args.size, args.windows)}
    result["loader"] = [
        measure_loader(
            options(os.path.dirname(path), args.frames, args.size, args.batch, workers, threads),
            args.batches,
            args.frames,
        )
        for workers in args.workers
        for threads in args.threads
    ]
    return result


def table(results: list[dict]) -> str:
    lines = []
    for result in results:
        lines.append(
            f"{result['file']}: decode {result['decode']['wall_ms']:.0f} ms wall, "
            f"{result['decode']['cpu_ms']:.0f} ms processor a window"
        )
        lines.append("  workers threads   clips/s  per worker  first batch s")
        for row in result["loader"]:
            lines.append(
                f"  {row['workers']:>7} {row['threads']:>7} {row['clips_per_s']:>9.1f} "
                f"{row['clips_per_s_per_worker']:>11.1f} {row['first_batch_s']:>14.1f}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", default="", help="a video; default: make 720p H.264 files")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--batches", type=int, default=20, help="batches measured in each row")
    parser.add_argument("--windows", type=int, default=20, help="windows of the decode row")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", default="", help="file for the numbers")
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        if args.input:
            os.makedirs(f"{folder}/own")
            path = f"{folder}/own/{os.path.basename(args.input)}"
            os.symlink(os.path.abspath(args.input), path)
            results.append(run(os.path.basename(args.input), path, args))
        else:
            for gop in (250, 12):
                os.makedirs(f"{folder}/{gop}")
                make_file(f"{folder}/{gop}/clip.mp4", gop)
                results.append(run(f"720p gop {gop}", f"{folder}/{gop}/clip.mp4", args))
    print(table(results))
    report = {
        "frames": args.frames,
        "size": args.size,
        "batch": args.batch,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "results": results,
    }
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
