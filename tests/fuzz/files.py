"""Damaged and hostile files for the readers of small files, weights and coded videos.

    python -m tests.fuzz.files --minutes 10

Every reader gets sound files that were damaged by chance: cut off, with flipped, replaced, repeated
or inserted bytes, and JSON whose values were replaced by hostile ones. It may return, or raise the
error that its contract names. Anything else, a call above 30 s, or memory above the bound, counts
as found.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vidlatent import config as configs
from vidlatent.checkpoint.lock import _parse as parse_lock
from vidlatent.codec.coded import Coded
from vidlatent.codec.preview import Preview
from vidlatent.data.index import _probe, _read_cache
from vidlatent.data.latent_set import HEADER, Shard, Window, pack, read_header, unpack
from vidlatent.data.sources.base import Entry
from vidlatent.encode.plan import write_or_check_plan
from vidlatent.encode.shards import ShardWriter, merge_shards
from vidlatent.errors import VidlatentError
from vidlatent.files import read_npz
from vidlatent.latents.contract import LatentSpace
from vidlatent.latents.space import Latents
from vidlatent.media.errors import Limits
from vidlatent.media.probe import ClipInfo
from vidlatent.report.writers import JsonlWriter, read_metrics
from vidlatent.sample.requests import read_prompts
from vidlatent.spec import FrameRule, LatentSpec
from vidlatent.train.workdir import check_not_lost
from vidlatent.weights.safetensors import load_safetensors, save_safetensors

SPEC = LatentSpec("toy", 3, 4, 8, 8, FrameRule(1, 4))
SECONDS_A_CALL = 30
MEMORY = 1 << 30  # bytes above what the process took at the start
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 10**40, -(10**12), 1e308, float("nan"), float("inf"), "", "x", "../x",
    "/etc/passwd", "a\0b", "\ud800", "9" * 5000, [], {}, [[]], [[[[1]]]], {"a": {"b": []}},
    [10**9, 10**9], [2**31] * 4, list(range(2000)), [None], ["x"] * 3,
)  # fmt: skip


@dataclasses.dataclass
class Target:
    """One reader: sound files, how to read one, and the errors of its contract."""

    name: str
    make: Callable[[Path], Path]  # writes a sound file into a folder
    read: Callable[[Path], Any]
    errors: tuple[type[BaseException], ...] = (VidlatentError,)


def damage(data: bytes, rng: random.Random) -> bytes:
    """A file that was damaged in one to three ways."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.randrange(8)
        at = rng.randrange(len(data) + 1)
        # Headers stand at the beginning: half of the damage goes there.
        at = min(at, 200) if rng.random() < 0.5 else at
        some = rng.randbytes(rng.choice((1, 2, 4, 8, 64)))
        if kind == 0:
            data = data[:at]
        elif kind == 1 and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif kind == 2:
            data = data[:at] + some + data[at + len(some) :]
        elif kind == 3:
            data = data[:at] + some + data[at:]
        elif kind == 4:
            data = data[:at] + data[at + rng.randrange(1, 40) :]
        elif kind == 5:
            data = data[:at] + bytes(len(some)) + data[at + len(some) :]
        elif kind == 6:
            data = data[:at] + b"\xff" * len(some) + data[at + len(some) :]
        else:
            data = data + data[: rng.randrange(len(data) + 1)]
    return data


def _places(content: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        found += [(content, key) for key in content]
    elif isinstance(content, list):
        found += [(content, number) for number in range(len(content))]
    for holder, key in list(found):
        found += _places(holder[key])
    return found


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON file, or lines of it, with hostile values, or without some, or with more."""
    lines = data.split(b"\n")
    # A file of one object a line, or one object in all.
    number = rng.randrange(len(lines) - 1) if len(lines) > 2 and lines[0].endswith(b"}") else -1
    content = json.loads(lines[number] if number >= 0 else data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = _places(content)
        if not places:
            break
        holder, key = rng.choice(places)
        kind = rng.randrange(5)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(("x", "format", "", "__class__"))] = rng.choice(HOSTILE)
        else:
            holder[key] = json.loads(json.dumps(rng.choice(HOSTILE)))
    text = json.dumps(content).encode()
    if rng.random() < 0.02:
        text = text[:-1] + b',"deep":' + b"[" * 100_000
    return b"\n".join([*lines[:number], text, *lines[number + 1 :]]) if number >= 0 else text


def damage_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A file whose header of JSON has hostile values."""
    length = int.from_bytes(data[:8], "little")
    head = damage_json(data[8 : 8 + length], rng)
    stated = len(head) if rng.random() < 0.8 else rng.choice((0, 2**63 - 1, 2**40, 7))
    return stated.to_bytes(8, "little") + head + data[8 + length :]


def _make_set(folder: Path) -> Path:
    """A latent data set of one shard."""
    file = "part-00000-of-00001.array_record"
    with ShardWriter(folder / file, SPEC) as writer:
        for number in range(3):
            window = _window(number)
            latent = np.random.default_rng(number).normal(size=(2, 2, 3, 3)).astype(np.float16)
            writer.add(window, {"latent": latent}, latent.astype(np.float32))
        shard = writer.publish()
    about: dict[str, Any] = {"dtype": "float16", "label_names": ("a",), "tokenizer": "t"}
    about |= {"step": 7, "weights": "w", "source": {}}
    merge_shards(folder, [file], [shard], SPEC, [("x.mp4", "empty", "0 bytes")], 8, **about)
    return folder


def _window(number: int) -> Window:
    return Window(f"c{number}", number, 0.1, 5, 16, 24, 10.0, label="a", caption="words")


def _make_record(folder: Path) -> Path:
    latent = np.ones((2, 2, 3, 3), np.float16)
    (folder / "a.record").write_bytes(pack({"latent": latent}, _window(1)))
    return folder / "a.record"


def _make_config(folder: Path) -> Path:
    configs.write(configs.load("tests/tiny.py"), folder)
    return folder / "config.json"


def _make_latents(folder: Path) -> Path:
    Latents(LatentSpace.of_spec(SPEC), ("a", "b"), 8.0).save(folder)
    return folder / "latents.json"


def _make_metrics(folder: Path) -> Path:
    writer = JsonlWriter(folder / "metrics.jsonl")
    for step in range(4):
        writer.write_scalars(step, {"loss": 1.5, "psnr": float("nan")})
    writer.close()
    return folder / "metrics.jsonl"


_LIMITS = Limits()


def _make_cache(folder: Path) -> Path:
    info = dataclasses.asdict(ClipInfo("a.mp4", 9, 8.0, 32, 32, 1.0, False))
    row = {"stamp": [1, 2], "info": info, "verified": True}
    bad = {"stamp": [1, 2], "reason": "empty", "detail": "0 bytes"}
    path, where = folder / "clips.json", "x"
    from vidlatent.data.index import _cache_head

    content = {**_cache_head(where, _LIMITS), "clips": {"a.mp4": row, "b.mp4": bad}}
    path.write_text(json.dumps(content))
    return path


class _NoSource:
    def probe(self, name: str, limits: Limits) -> ClipInfo:
        return ClipInfo(name, 9, 8.0, 32, 32, 1.0, False)


def _read_index(path: Path) -> None:
    known = _read_cache(str(path), "x", _LIMITS)
    for name in ("a.mp4", "b.mp4"):
        _probe(_NoSource(), Entry(name, "", (1, 2), ""), _LIMITS, known)  # type: ignore[arg-type]


def _make_coded(folder: Path) -> Path:
    latent = np.random.default_rng(0).normal(size=(2, 2, 3, 3)).astype(np.float32)
    content = np.zeros((1, 13, 20, 3), np.uint8)
    Coded(latent, SPEC, 5, (13, 20), content, times=(0.0, 0.1, 0.2, 0.3, 0.4)).save(
        folder / "a.npz"
    )
    return folder / "a.npz"


def _make_preview(folder: Path) -> Path:
    Preview(SPEC, np.ones((4, 3)), np.ones((4, 12))).save(folder / "preview.npz")
    return folder / "preview.npz"


def _make_weights(folder: Path) -> Path:
    tensors = {"a.weight": np.ones((3, 4), np.float32), "a.bias": np.zeros(3, np.float16)}
    save_safetensors(tensors, folder / "a.safetensors", {"made": "here"})
    return folder / "a.safetensors"


def _make_fp8(folder: Path) -> Path:
    head = {
        "a.weight": {"dtype": "F8_E4M3", "shape": [4, 4], "data_offsets": [0, 16]},
        "a.weight_scale": {"dtype": "F32", "shape": [1], "data_offsets": [16, 20]},
    }
    text = json.dumps(head).encode()
    data = bytes(range(16)) + np.float32([0.5]).tobytes()
    (folder / "b.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder / "b.safetensors"


def _make_text(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return make


def _read_lock(path: Path) -> None:
    with open(path, "rb") as file:
        parse_lock(file)


def _make_plan(folder: Path) -> Path:
    write_or_check_plan(folder / "set", {"windows": [3, "x"]}, 2, 0)
    return folder / "set" / "plan.json"


def make_targets() -> list[Target]:
    """All readers."""
    lock = '{"host": "a", "process": 7, "started": "123", "namespace": "pid", "since": "now"}'
    prompts = '{"prompt": "a cat", "seed": 1}\n{"prompt": "a dog", "image": "a.png"}\n'
    return [
        Target("config.json", _make_config, lambda p: configs.read(p.parent)),
        Target("latents.json", _make_latents, lambda p: Latents.load(p.parent)),
        Target("header.json", lambda f: _make_set(f) / HEADER, lambda p: read_header(p.parent)),
        Target(
            "shard.json",
            lambda f: _make_set(f) / "part-00000-of-00001.json",
            lambda p: Shard.load(str(p.with_suffix(".array_record"))),
        ),
        Target("record", _make_record, lambda p: unpack(p.read_bytes()), (ValueError,)),
        Target("metrics.jsonl", _make_metrics, read_metrics),
        Target("clips.json", _make_cache, _read_index),
        Target("plan.json", _make_plan, lambda p: write_or_check_plan(p.parent, {}, 2, 0)),
        Target("writer.lock", _make_text("writer.lock", lock), _read_lock),
        Target(
            "last_saved.json",
            _make_text("last_saved.json", '{"step": 60}'),
            lambda p: check_not_lost(p.parent, p.parent / "checkpoints"),
        ),
        Target("prompts.jsonl", _make_text("p.jsonl", prompts), lambda p: read_prompts(str(p))),
        Target("coded.npz", _make_coded, Coded.load),
        Target("preview.npz", _make_preview, lambda p: Preview.load(p, SPEC)),
        Target("weights.npz", _make_coded, lambda p: read_npz(p, "fetch it again")),
        Target("a.safetensors", _make_weights, load_safetensors),
        Target("fp8.safetensors", _make_fp8, load_safetensors),
    ]


def _raise_late(number: int, frame: Any) -> None:
    raise TimeoutError(f"a call took more than {SECONDS_A_CALL} s")


def fuzz(
    target: Target, seconds: float, seed: int, folder: Path
) -> tuple[collections.Counter, list]:
    """Damage and read for so long; returns counts, and what was found as ``(data, traceback)``."""
    rng = random.Random(f"{target.name} {seed}")
    path = target.make(folder)
    sound = path.read_bytes()
    if target.name != "last_saved.json":
        target.read(path)  # the sound file is read
    counts: collections.Counter = collections.Counter()
    found: list[tuple[bytes, str]] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, _raise_late)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end and len(found) < 20:
            data = _damaged(target, path, sound, rng)
            path.write_bytes(data)
            began = time.monotonic()
            signal.alarm(SECONDS_A_CALL)
            try:
                target.read(path)
                counts["read"] += 1
            except target.errors:
                counts["refused"] += 1
            except Exception:
                found.append((data, traceback.format_exc(limit=-4)))
            finally:
                signal.alarm(0)
            counts["slowest ms"] = max(
                counts["slowest ms"], round(1e3 * (time.monotonic() - began))
            )
    finally:
        signal.signal(signal.SIGALRM, previous)
        path.write_bytes(sound)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    counts["MB"] = grown >> 20
    if grown > MEMORY:
        found.append((b"", f"memory grew by {grown >> 20} MB"))
    return counts, found


def _damaged(target: Target, path: Path, sound: bytes, rng: random.Random) -> bytes:
    if path.suffix == ".safetensors" or target.name == "record":
        return damage_safetensors(sound, rng) if rng.random() < 0.6 else damage(sound, rng)
    if ".json" in path.suffix or path.suffix == ".lock":
        return damage_json(sound, rng) if rng.random() < 0.7 else damage(sound, rng)
    return damage(sound, rng)


def run(minutes: float, seed: int, out: Any = sys.stdout) -> int:
    """Fuzz all readers for so long altogether; returns how much was found."""
    targets, total = make_targets(), 0
    for target in targets:
        with tempfile.TemporaryDirectory() as name:
            counts, found = fuzz(target, 60 * minutes / len(targets), seed, Path(name))
        total += len(found)
        print(
            f"{target.name:16} {counts['read'] + counts['refused'] + len(found):7d} files, "
            f"{counts['read']:6d} read, {counts['refused']:6d} refused, {len(found)} found, "
            f"slowest {counts['slowest ms']} ms, {counts['MB']} MB more",
            file=out,
            flush=True,
        )
        for data, text in found[:3]:
            print(f"{data[:200]!r}\n{text}", file=out, flush=True)
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    sys.exit(bool(run(arguments.minutes, arguments.seed)))
