"""Clips made on the spot, and the options that every test of data starts from."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from vidlatent.spec import FrameRule


def pictures(frames=40, height=48, width=64, seed=0):
    """Distinct frames uint8 [T, H, W, 3]: a drifting pattern, the frame's number as bars."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 255, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1)
    video = np.stack([np.roll(base, 3 * i, 1) for i in range(frames)]).astype(np.uint8)
    for i in range(frames):
        for bit in range(8):
            video[i, :8, bit * 8 : bit * 8 + 8] = 255 * (i >> bit & 1)
    return video


def write_clip(path, video=None, *, codec="libx264", rate=25, stamps=None, options=None, **stream):
    """Encode frames; ``stamps`` are milliseconds for a variable rate."""
    video = pictures() if video is None else video
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        track = container.add_stream(codec, rate=rate, options=options or {})
        track.height, track.width = video.shape[1:3]
        track.pix_fmt = "yuv420p"
        for name, value in stream.items():
            setattr(track.codec_context, name, value)
        for number, image in enumerate(video):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[number], Fraction(1, 1000)
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return str(path)


def write_sound(path):
    """A file with a sound track only."""
    with av.open(str(path), "w") as container:
        track = container.add_stream("aac", rate=44100, layout="mono")
        silence = np.zeros((1, 1024), np.float32)
        for number in range(20):
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, number * 1024
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return str(path)


def noise(frames=40, height=48, width=64):
    """Frames that compress badly, so that damage anywhere in the file hits picture data."""
    rng = np.random.default_rng(1)
    return rng.integers(0, 255, (frames, height, width, 3), dtype=np.uint8)


def damage(path, where=0.5, amount=2000):
    """Overwrite bytes in the middle of a file."""
    with open(path, "r+b") as file:
        file.seek(0, 2)
        file.seek(int(file.tell() * where))
        file.write(bytes(amount))


def cut(path, share=0.5):
    """Keep the first part of a file."""
    with open(path, "r+b") as file:
        file.seek(0, 2)
        file.truncate(int(file.tell() * share))


def make_bad_folder(path):
    """Eight sound clips and one of each kind that cannot be used; returns the folder."""
    for number in range(8):
        write_clip(path / f"good{number}.mp4", pictures(seed=number), gop_size=8)
    os.symlink(path / "nowhere", path / "broken_link.mp4")
    write_clip(path / "corrupt.mp4", noise(), gop_size=5)
    damage(path / "corrupt.mp4")
    write_clip(path / "cut_off.mp4", noise(), gop_size=5)
    cut(path / "cut_off.mp4")
    (path / "empty.mp4").touch()
    Tools.write_picture(path / "huge.png", 480, 640)
    write_clip(path / "no_index.mp4", noise(), options={"movflags": "0"})
    content = (path / "no_index.mp4").read_bytes()
    (path / "no_index.mp4").write_bytes(content[: content.index(b"moov") - 4])
    write_clip(path / "short.mp4", pictures(3))
    write_clip(path / "slow.mp4")
    write_sound(path / "sound.mp4")
    (path / "text.mp4").write_text("not a video\n" * 100)
    write_clip(path / "secret.mp4")
    os.chmod(path / "secret.mp4", 0)
    return str(path)


class Tools:
    pictures = staticmethod(pictures)
    write_clip = staticmethod(write_clip)
    write_sound = staticmethod(write_sound)
    noise = staticmethod(noise)
    damage = staticmethod(damage)
    cut = staticmethod(cut)
    make_bad_folder = staticmethod(make_bad_folder)
    rule = FrameRule(1, 4)

    @staticmethod
    def write_picture(path, height=48, width=64, **save):
        Image.fromarray(pictures(1, height, width)[0]).save(path, **save)
        return str(path)

    @staticmethod
    def options(**changes):
        """``config.data`` as a plain dict."""
        synthetic = dict(clips=16, frames=21, height=48, width=64) | changes.pop("synthetic", {})
        defaults = dict(
            source="synthetic",
            path="",
            tfds_name="",
            tfds_field="video",
            fps=0.0,
            buckets=((5, 32, 32, 4),),
            bucket_weights=(),
            validation_share=0.2,
            num_workers=0,
            read_threads=2,
            prefetch=2,
            decode_timeout_s=20.0,
            max_pixels=4096 * 4096,
            bad_clip_budget=0.05,
            bad_clip_window=1000,
            crop="random",
            flip=True,
            synthetic=synthetic,
        )
        return defaults | changes


@pytest.fixture(scope="session")
def tools():
    return Tools
