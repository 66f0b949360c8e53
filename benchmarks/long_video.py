"""A long video through a small codec: memory over time, and a kill in the middle of encoding.

    python -m benchmarks.long_video --folder long                  # ten minutes of 1280x720
    python -m benchmarks.long_video --folder long --minutes 0.5    # a try
    python -m benchmarks.long_video --folder long --run runs/fsae-demo    # another tokenizer

The parts run one after another and are stored in the folder; the same command resumes:

``video``        renders an H.264 file: textures that slide over each other
``codec``        trains a very narrow FSAE (16x16x4 into 16 channels) for some seconds on the sample
                 clips, unless ``--run`` names a tokenizer
``encode``       ``--mode=encode`` of that clip, cut into windows; killed by SIGKILL in the middle
                 of a shard after half of them, then run again to the end
``check``        every window is there exactly once and can be read; shards that were finished at
                 the kill are unchanged; the one that was being written then equals, byte by byte,
                 that of an undisturbed process
``reconstruct``  ``--mode=reconstruct`` of the whole video

Resident memory of the process and its children is sampled every second. Its growth is the
difference between the medians of the last and the first third of the time, beginning with the first
shard (encode) or the first frames (reconstruct). ``report`` writes ``long_video.json``, ``.md`` and
``.png``.
"""

from __future__ import annotations

import argparse
import collections
import functools
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # if run as a file, not with -m

from benchmarks.watch import read_place, watch
from vidlatent.errors import VidlatentError

PARTS = ("video", "codec", "encode", "check", "reconstruct", "report")
RESULT, VIDEO = "long_video", "long.mp4"
WIDTHS, DEPTHS = (4, 4, 8, 16, 32), (0, 1, 1, 1, 1)
CODEC = {
    **{f"model.{side}_widths": WIDTHS for side in ("encoder", "decoder")},
    **{f"model.{side}_depths": DEPTHS for side in ("encoder", "decoder")},
    "model.block_types": ("res",) * 5,
    "model.multiscales": ((),) * 5,
    "eval.every": 0,
    "train.tensorboard": False,
    "train.log_every": 20,
}


def parse_options(words: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", required=True, help="of everything that is made")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--fps", type=int, default=24)
    parser.add_argument("--size", default="1280x720", help="width x height")
    parser.add_argument("--window", type=int, default=17, help="frames of a window")
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument(
        "--run", default="", help="workdir of a tokenizer; empty: train a small one"
    )
    parser.add_argument("--codec-steps", type=int, default=100, help="of its training")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--every", type=float, default=1.0, help="seconds from sample to sample")
    parser.add_argument(
        "--limit-s", type=float, default=0.0, help="end reconstruct after; 0: never"
    )
    options = parser.parse_args(words)
    try:
        options.width, options.height = (int(side) for side in options.size.split("x"))
    except ValueError as error:
        raise VidlatentError(f"--size={options.size}: give width x height, 1280x720.") from error
    options.parts = options.parts.split(",")
    for part in options.parts:
        if part not in PARTS:
            raise VidlatentError(f"--parts names {part!r}: choose of {', '.join(PARTS)}.")
    if min(options.width, options.height) < 32 or options.width % 2 or options.height % 2:
        raise VidlatentError(f"--size={options.size}: both must be even and 32 or more.")
    if options.fps < 1 or options.every <= 0 or options.codec_steps < 1 or options.window < 1:
        raise VidlatentError("--fps, --every, --window and --codec-steps: use numbers above 0.")
    options.frames = round(60 * options.minutes * options.fps)
    options.windows = options.frames // options.window
    if not 4 <= options.shards <= options.windows // 2:
        raise VidlatentError(
            f"--minutes={options.minutes:g} gives {options.windows} windows of {options.window} "
            f"frames for --shards={options.shards}: there must be 4 shards or more of 2 windows or "
            "more each."
        )
    options.folder = Path(options.folder).resolve()
    return options


def check_settings(options: argparse.Namespace) -> None:
    """Make the folder, or check that its content was made with the same settings."""
    keys = ("minutes", "fps", "size", "window", "shards", "run", "codec_steps")
    asked = {key: getattr(options, key) for key in keys}
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / "settings.json"
    if not file.exists():
        write(file, asked)
    before = json.loads(file.read_text())
    differs = [f"--{key.replace('_', '-')}" for key in keys if before.get(key) != asked[key]]
    if differs:
        raise VidlatentError(
            f"--folder={options.folder} was begun with another {', '.join(differs)}: choose "
            "another folder, or delete this one."
        )


def write(file: Path, content: Any) -> None:
    """Write JSON; a reader never sees half a file."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, file)


def make_texture(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Planes Y ``[H, W]``, U and V ``[H/2, W/2]`` of noise of several sizes."""

    def plane(rows: int, columns: int, finest: int, spread: float) -> np.ndarray:
        total = np.zeros((rows, columns), np.float32)
        for side in (16, 64, 256):
            small = rng.normal(
                size=(max(2, rows * finest // side), max(2, columns * finest // side))
            )
            image = Image.fromarray((small / finest).astype(np.float32))
            total += np.asarray(image.resize((columns, rows), Image.Resampling.BICUBIC))
        total *= spread / max(float(total.std()), 1e-6)
        return np.clip(128 + total, 16, 235).astype(np.uint8)

    halves = height // 2, width // 2
    return plane(height, width, 2, 35), plane(*halves, 1, 12), plane(*halves, 1, 12)


def draw_frames(height: int, width: int, count: int, seed: int = 0):
    """Yield YUV 4:2:0 frames ``[3 H / 2, W]``: a sliding texture, and four others that cross it.

    Frames are only copied together, in about a millisecond each. A position is the mean of two
    sines of different frequency, so that frames do not repeat.
    """
    rng = np.random.default_rng(seed)
    room = 2 * (min(height, width) // 4)
    ground = make_texture(rng, height + 2 * room, width + 2 * room)
    side = 2 * (min(height, width) // 6)
    patches = [make_texture(rng, side, side) for _ in range(4)]
    pace = rng.uniform(0.004, 0.02, (5, 2, 2))
    phase = rng.uniform(0, 2 * np.pi, (5, 2, 2))

    def place(which: int, number: int, reach: tuple[int, int]) -> list[int]:
        turn = np.sin(pace[which] * number + phase[which]).mean(axis=1)
        return [2 * int((1 + x) / 2 * most / 2) for x, most in zip(turn, reach, strict=True)]

    for number in range(count):
        rows, columns = place(0, number, (2 * room, 2 * room))
        planes = []
        for plane, cut in zip(ground, (1, 2, 2), strict=True):
            top, left = rows // cut, columns // cut
            planes.append(plane[top : top + height // cut, left : left + width // cut].copy())
        for which, patch in enumerate(patches, 1):
            rows, columns = place(which, number, (height - side, width - side))
            for whole, part, cut in zip(planes, patch, (1, 2, 2), strict=True):
                top, left = rows // cut, columns // cut
                whole[top : top + side // cut, left : left + side // cut] = part
        yield np.concatenate([plane.reshape(-1) for plane in planes]).reshape(-1, width)


def make_video(options: argparse.Namespace) -> dict[str, Any]:
    """Write the H.264 file with one thread and x264's fastest preset, a key frame every 250."""
    import av

    part = options.folder / f".part-{VIDEO}"
    began, said = time.process_time(), time.monotonic()
    with av.open(str(part), "w") as container:
        settings = {"preset": "ultrafast", "crf": "23", "threads": "1"}
        stream = container.add_stream("libx264", rate=Fraction(options.fps), options=settings)
        stream.width, stream.height, stream.pix_fmt = options.width, options.height, "yuv420p"
        drawn = draw_frames(options.height, options.width, options.frames)
        for number, picture in enumerate(drawn):
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, options.fps)
            container.mux(stream.encode(frame))
            if time.monotonic() - said > 15:
                said = time.monotonic()
                print(f"video: {number} of {options.frames} frames", flush=True)
        container.mux(stream.encode(None))
    (options.folder / "video").mkdir(exist_ok=True)
    os.replace(part, video_path(options))
    size = video_path(options).stat().st_size
    return {
        "frames": options.frames,
        "bytes": size,
        "processor_s": time.process_time() - began,
        "size": options.size,
        "fps": options.fps,
    }


def video_path(options: argparse.Namespace) -> Path:
    return options.folder / "video" / VIDEO


def main_command(mode: str, keys: dict[str, Any], **flags: Any) -> list[str]:
    """A command of ``vidlatent.main``."""
    words = [f"--{name}={value}" for name, value in {"mode": mode, **flags}.items()]
    words += [f"--config.{key}={value}" for key, value in keys.items()]
    return [sys.executable, "-m", "vidlatent.main", *words]


def tokenizer_workdir(options: argparse.Namespace) -> Path:
    return Path(options.run).resolve() if options.run else options.folder / "codec"


def train_codec(options: argparse.Namespace) -> dict[str, Any]:
    """Train the small tokenizer unless ``--run`` names another."""
    if options.run:
        return {"weights": f"of {options.run}"}
    keys = {**CODEC, "train.steps": options.codec_steps, "checkpoint.every": options.codec_steps}
    flags = {"config": "configs/fsae.py", "workdir": tokenizer_workdir(options)}
    seen = watch(main_command("train", keys, **flags), options.folder / "codec.log", "codec")
    steps = f"trained for {options.codec_steps} steps on the sample clips"
    return {"weights": steps, "processor_s": seen.processor_s, "widths": WIDTHS}


def encode_command(options: argparse.Namespace, output: Path, **more: Any) -> list[str]:
    keys = {
        "data.source": "folder",
        "data.path": video_path(options).parent,
        "data.buckets": f"(({options.window},{options.height},{options.width},1),)",
        "encode.windows": "all",
        "encode.shards": options.shards,
        "encode.pictures": 0,
        **more,
    }
    return main_command("encode", keys, workdir=tokenizer_workdir(options), output=output)


def hash_file(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def list_finished(output: Path) -> dict[str, Path]:
    """Finished shards by name."""
    return {file.name: file for file in sorted(output.glob("part-*.array_record"))}


def list_unfinished(output: Path) -> list[Path]:
    return list(output.glob("part-*.partial"))


def encode(options: argparse.Namespace) -> dict[str, Any]:
    """Encode, kill in the middle, encode the rest."""
    output, file = options.folder / "latents", options.folder / "encode-runs.json"
    runs = json.loads(file.read_text()) if file.exists() else []
    if not runs:
        shutil.rmtree(output, ignore_errors=True)

    def half_way() -> bool:
        done = list_finished(output)
        if any(run["killed"] for run in runs) or 2 * len(done) < options.shards:
            return False
        if 4 * len(done) > 3 * options.shards:
            return True  # shards are written too fast to be seen unfinished
        mean = sum(path.stat().st_size for path in done.values()) / len(done)
        begun = [path.stat().st_size for path in list_unfinished(output) if path.exists()]
        return bool(begun) and max(begun) > 0.4 * mean

    while not (output / "header.json").exists():
        before = len(list_finished(output))
        seen = watch(
            encode_command(options, output),
            options.folder / "encode.log",
            "encode" if not runs else "encode, again",
            every=options.every,
            progress=lambda pid: len(list_finished(output)) / options.shards,
            at_work=functools.partial(lambda known: len(list_finished(output)) > known, before),
            cue=half_way,
        )
        left = [path.name.split(".")[0] for path in list_unfinished(output)]
        now = list_finished(output)
        known = {name: hash_file(path) for name, path in now.items()} if seen.killed else {}
        new = len(now) - before
        row = {"new_shards": new, "left_half": left, "digests": known}
        runs.append(seen.to_json() | row)
        write(file, runs)
        print(f"encode: {len(now)} of {options.shards} shards; killed: {seen.killed}", flush=True)
    if not any(run["killed"] for run in runs):
        raise VidlatentError("encoding ended before it could be killed: take more --minutes.")
    total = sum(run["processor_s"] for run in runs)
    return {"runs": runs, "processor_s": total, "bytes": count_bytes(output)}


def count_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Check that the set is what an undisturbed run would make.

    Raises:
      VidlatentError: it is not.
    """
    from vidlatent.data.sources.latents import LatentSource

    output = options.folder / "latents"
    source = LatentSource(str(output))
    last = options.frames - options.window
    wanted = collections.Counter(range(0, last + 1, options.window))
    found = collections.Counter(window.first for window in source.windows)
    if found != wanted:
        wrong = sorted((found - wanted) + (wanted - found))
        raise VidlatentError(f"windows at frames {wrong[:5]} are missing or there twice.")
    different = set()
    for window in source.windows:
        latent = source.read_arrays(window.name)["latent"]
        if not np.isfinite(latent).all():
            raise VidlatentError(f"the latent of {window.name} is not finite.")
        different.add(hashlib.sha256(latent.tobytes()).digest())
    shards = list_finished(output)
    kill = next(run for run in read_result(options, "encode")["runs"] if run["killed"])
    changed = [name for name, known in kill["digests"].items() if hash_file(shards[name]) != known]
    if changed:
        raise VidlatentError(f"shards changed that were finished at the kill: {changed[:3]}.")
    again = [compare_shard(options, name) for name in kill["left_half"]]
    return {
        "windows": len(source.windows),
        "different_latents": len(different),
        "unchanged_shards": len(kill["digests"]),
        "equal_shards": again,
        "latent_shape": list(latent.shape),
        "spec": source.header.spec.name,
    }


def compare_shard(options: argparse.Namespace, name: str) -> str:
    """Write one shard by an undisturbed process and compare it."""
    other, file = options.folder / "one-shard", f"{name}.array_record"
    shutil.rmtree(other, ignore_errors=True)
    number = int(name.split("-")[1])
    keys = {"encode.process_index": number, "encode.process_count": options.shards}
    watch(encode_command(options, other, **keys), options.folder / "check.log", f"check of {name}")
    for one in (file, f"{name}.json"):
        if (other / one).read_bytes() != (options.folder / "latents" / one).read_bytes():
            raise VidlatentError(f"{one} differs from what an undisturbed process writes.")
    shutil.rmtree(other)
    return file


def reconstruct(options: argparse.Namespace) -> dict[str, Any]:
    """Reconstruct the whole video into a file, without scores, which would take longest."""
    output, video = options.folder / "restored" / "restored.mp4", video_path(options)
    shutil.rmtree(output.parent, ignore_errors=True)
    keys = {"eval.compare": False}
    command = main_command(
        "reconstruct", keys, workdir=tokenizer_workdir(options), input=video, output=output
    )

    def begun() -> bool:
        return any(path.stat().st_size > 0 for path in output.parent.glob(".restored.*.mp4"))

    seen = watch(
        command,
        options.folder / "reconstruct.log",
        "reconstruct",
        every=options.every,
        progress=lambda pid: read_place(pid, video),
        at_work=begun,
        limit_s=options.limit_s,
    )
    row = seen.to_json()
    scores = output.with_name("restored_scores.json")
    row["scores"] = json.loads(scores.read_text()) if scores.exists() else None
    # If it was stopped, these are the frames it had read, a few more than it had restored.
    about = round(seen.progress * options.frames)
    row["frames"] = row["scores"]["frames"] if scores.exists() else about
    return row


def read_result(options: argparse.Namespace, part: str) -> dict[str, Any] | None:
    """The result of a part; None if it has not run."""
    file = options.folder / f"{part}.json"
    return json.loads(file.read_text()) if file.exists() else None


def report(options: argparse.Namespace) -> None:
    """Write table, plot and one file with all results."""
    from benchmarks.codec import processor_name, versions
    from benchmarks.long_video_report import draw_memory, format_table

    found = {part: read_result(options, part) for part in PARTS[:-1]}
    about = {"processor": processor_name(), **versions()}
    settings = json.loads((options.folder / "settings.json").read_text())
    everything = {"about": about, "settings": settings, **found}
    write(options.folder / f"{RESULT}.json", everything)
    text = format_table(everything)
    (options.folder / f"{RESULT}.md").write_text(text)
    print(text)
    if found["encode"]:
        draw_memory(everything, options.folder / f"{RESULT}.png")
    print(f"all of it in {options.folder}: {RESULT}.json, .md and .png")


WORK = {
    "video": make_video,
    "codec": train_codec,
    "encode": encode,
    "check": check,
    "reconstruct": reconstruct,
}
NEEDS = {"encode": ("video", "codec"), "check": ("encode",), "reconstruct": ("video", "codec")}


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts that have not run; returns the exit status."""
    try:
        options = parse_options(words)
        check_settings(options)
        for part in options.parts:
            if part == "report":
                report(options)
                continue
            lacking = [need for need in NEEDS.get(part, ()) if read_result(options, need) is None]
            if lacking:
                raise VidlatentError(f"--parts={part} needs {' and '.join(lacking)} first.")
            if read_result(options, part) is None:
                print(f"{part} ...", flush=True)
                write(options.folder / f"{part}.json", WORK[part](options))
    except (VidlatentError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
