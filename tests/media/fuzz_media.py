"""Damaged media files through all readers, for so many seconds; run by ``test_fuzz`` as a process.

    python -m tests.media.fuzz_media FOLDER SECONDS SEED

FOLDER gets the sound files, the damaged file in hand (so that one that crashes the process can be
found), and every file that raised something else than ``VidlatentError``. A line of JSON is printed
for each damaged file.
"""

import faulthandler
import json
import os
import random
import re
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.helpers import clips
from tests.helpers.odd_files import ODD
from vidlatent.errors import VidlatentError
from vidlatent.media import decode
from vidlatent.media.errors import Limits
from vidlatent.media.probe import probe, verify
from vidlatent.media.sound import SoundTracks

LIMITS = Limits(max_pixels=1 << 20, timeout_s=5.0)
MEMORY = 4 << 30  # bytes of address space; what asks for more has to be refused by name


def make_sound_files(folder: Path) -> list[Path]:
    """One small file of each kind that the readers know."""
    video = clips.pictures(16, 32, 48)
    for suffix, codec in (
        *((s, "libx264") for s in ("mp4", "mkv", "ts", "flv", "h264")),
        *(("avi", "mpeg4"), ("mpg", "mpeg2video"), ("webm", "libvpx"), ("m2v", "mpeg2video")),
        *(("nut", "ffv1"), ("asf", "msmpeg4"), ("ogv", "libtheora"), ("gif", "gif")),
    ):
        path = folder / f"{codec}.{suffix}"
        try:
            clips.write_clip(path, video, codec=codec, gop_size=6)
        except (av.FFmpegError, ValueError):
            path.unlink(missing_ok=True)  # this build of FFmpeg lacks the encoder
    frames = [Image.fromarray(frame) for frame in video[:5]]
    for suffix in ("png", "webp", "tiff", "avif"):
        keys = {"save_all": True, "append_images": frames[1:], "duration": 100}
        frames[0].save(folder / f"moving.{suffix}", **keys)
        frames[0].save(folder / f"still.{suffix}")
    for suffix in ("jpg", "bmp", "jp2", "tga", "ppm", "pcx", "ico", "dds"):
        frames[0].save(folder / f"still.{suffix}")
    jpeg = (folder / "still.jpg").read_bytes()
    (folder / "moving.mjpeg").write_bytes(jpeg * 5)
    for file in ODD.iterdir():
        if file.suffix not in (".txt", ".jsonl", ".md"):
            shutil.copy(file, folder)
    return sorted(folder.iterdir())


def damage(content: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """One to four kinds of damage, most of it near the head, where sizes and counts stand."""
    content = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        if not content:
            break
        size = len(content)
        at = draw.randrange(min(size, 400) if draw.random() < 0.5 else size)
        kind = draw.randrange(9)
        span = draw.choice((1, 2, 4, 16, 188, 1000))
        if kind <= 2:
            for _ in range(draw.choice((1, 3, 20))):
                content[draw.randrange(size)] ^= 1 << draw.randrange(8)
        elif kind == 3:
            content[at : at + span] = draw.randbytes(span)
        elif kind == 4:
            content[at : at + span] = bytes([draw.choice((0, 0x7F, 0x80, 0xFF))]) * span
        elif kind == 5:
            del content[at : at + span]
        elif kind == 6:
            content[at:at] = content[at : at + span] * draw.choice((1, 2, 50))
        elif kind == 7:
            del content[at if at > 16 else 16 :]
        else:
            other = draw.choice(others)
            content[at:] = other[min(at, len(other) // 2) :]
    return bytes(content)


def read(path: str, draw: random.Random) -> int:
    """All ways of reading a file; returns the number of calls that refused it."""
    refused = 0

    def attempt(call):
        nonlocal refused
        try:
            return call()
        except VidlatentError:
            refused += 1
            return None

    media = path if draw.random() < 0.7 else Path(path).read_bytes()
    info = attempt(lambda: probe(media, LIMITS))
    attempt(lambda: verify(media, LIMITS))
    start = draw.random() * (info.duration if info else 1.0)
    window = attempt(lambda: decode.read_window(media, start, 5, size=(32, 40), limits=LIMITS))
    assert window is None or (window.shape == (5, 32, 40, 3) and window.dtype == np.uint8)
    if info is not None and info.frames < 1000:
        attempt(lambda: decode.read_all(media, (32, 40), LIMITS))
        attempt(lambda: count(decode.iter_frames(media, LIMITS)[1], 200))
    if info is not None and "sound" in info.remarks:
        attempt(lambda: copy_sound(path, info))
    return refused


def count(frames, most):
    return sum(1 for _ in zip(frames, range(most), strict=False))


def copy_sound(path, info):
    sound = SoundTracks(path, info)
    try:
        with av.open("/dev/null", "w", format="matroska") as out:
            sound.attach(out, ".mkv")
            count(sound.packets(1e9), 1000)
    finally:
        sound.close()


def read_peak_megabytes() -> int:
    """Most memory of this process so far.

    Not ``getrusage``: a process that was started from a large one begins with that one's peak.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) // 1024


def main(folder: Path, seconds: float, seed: int) -> None:
    faulthandler.enable()
    av.logging.set_level(None)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    (folder / "sound").mkdir()
    (folder / "found").mkdir()
    files = make_sound_files(folder / "sound")
    contents = [file.read_bytes() for file in files]
    draw, end, number = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        which = draw.randrange(len(files))
        path = folder / f"hurt{files[which].suffix}"
        path.write_bytes(damage(contents[which], contents, draw))
        began, report = time.monotonic(), {"number": number, "file": files[which].name}
        print(json.dumps({"begins": number, "file": path.name}), flush=True)
        try:
            report["refused"] = read(str(path), draw)
        except Exception as error:
            kept = folder / "found" / f"{number}{path.suffix}"
            shutil.copy(path, kept)
            report |= {"error": repr(error), "trace": traceback.format_exc(), "kept": str(kept)}
        report["seconds"] = time.monotonic() - began
        report["megabytes"] = read_peak_megabytes()
        print(json.dumps(report), flush=True)
        number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
    os._exit(0)  # without taking down libraries that a damaged file may have upset
