"""A compressed file beside H.264 and AV1 of the same bytes: scores and a picture.

    python -m benchmarks.same_bytes --run runs/fsae-demo --video my.mp4 --folder same_bytes

The frames are compressed as ``--mode=compress`` does, without sound. Then x264 (preset medium) and
SVT-AV1 (preset 8), with 8-bit 4:2:0 colour in MP4, get the lowest CRF whose file is no larger. PSNR
and SSIM are over RGB, so the halved colour of 4:2:0 counts against both. Where a codec stays below
the bytes even at its best CRF, its row has fewer.

Writes ``same_bytes.json``, ``same_bytes.md`` and ``same_bytes.png`` into the folder.
"""

from __future__ import annotations

import argparse
import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

import vidlatent
from vidlatent.codec.compress import compress
from vidlatent.files import write_json, write_text
from vidlatent.media.decode import iter_timed_frames
from vidlatent.media.sheets import contact_sheet
from vidlatent.metrics import psnr, ssim

# FFmpeg's encoder -> name of the codec, its options, its best and its worst CRF. For FFmpeg's
# SVT-AV1 a CRF of 0 is none.
CODECS = {
    "libx264": ("H.264", {"preset": "medium"}, 0, 51),
    "libsvtav1": ("AV1", {"preset": "8"}, 1, 63),
}


def encode(frames: np.ndarray, encoder: str, crf: int, fps: Fraction) -> bytes:
    """Frames uint8 ``[T, H, W, 3]`` as an MP4 file; sides are padded to even ones."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        options = {**CODECS[encoder][1], "crf": str(crf)}
        track = container.add_stream(encoder, rate=fps, options=options)
        odd = [(0, side % 2) for side in frames.shape[1:3]]
        track.height, track.width = (s + s % 2 for s in frames.shape[1:3])
        track.pix_fmt = "yuv420p"
        for frame in frames:
            padded = np.pad(frame, (*odd, (0, 0)), mode="edge")
            container.mux(track.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        container.mux(track.encode())
    return file.getvalue()


def decode(data: bytes, size: tuple[int, int]) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)[:, : size[0], : size[1]]


def fit(frames: np.ndarray, encoder: str, most: int, fps: Fraction) -> tuple[int, bytes]:
    """The lowest CRF, and its file, that takes at most so many bytes; else the worst CRF."""
    low, high = CODECS[encoder][2:]
    best = high, encode(frames, encoder, high, fps)
    while low < high:
        middle = (low + high) // 2
        data = encode(frames, encoder, middle, fps)
        if len(data) <= most:
            best, high = (middle, data), middle
        else:
            low = middle + 1
    return best


def score(frames: np.ndarray, restored: np.ndarray) -> dict[str, float]:
    pair = frames[None].astype(np.float32), restored[None].astype(np.float32)
    return {
        name: float(np.mean(metric(*pair, data_range=255.0)))
        for name, metric in (("psnr", psnr), ("ssim", ssim))
    }


def compare(codec: vidlatent.Codec, frames: np.ndarray, fps: Fraction) -> tuple[list, list]:
    """Rows of the table, and the restored frames of each."""
    rows, videos = [], []

    def add(name: str, size: int, restored: np.ndarray, how: str) -> None:
        bits = 8 * size / (frames.size / 3)
        rows.append({"codec": name, "how": how, "bytes": size, "bits_a_pixel": bits})
        rows[-1] |= score(frames, restored)
        videos.append(restored)

    data, figures = compress(codec, frames, fps)
    how = f"{figures['dtype']}, {figures['coder']}"
    add(codec.spec.name, len(data), codec.decompress(data), how)
    for encoder, (name, options, *_) in CODECS.items():
        crf, file = fit(frames, encoder, len(data), fps)
        how = f"{encoder}, preset {options['preset']}, crf {crf}"
        add(name, len(file), decode(file, frames.shape[1:3]), how)
    return rows, videos


def write_table(rows: list[dict]) -> str:
    lines = [
        "| codec | how | bytes | bits a pixel | PSNR, dB | SSIM |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['codec']} | {row['how']} | {row['bytes']:,} | {row['bits_a_pixel']:.3f} | "
        f"{row['psnr']:.2f} | {row['ssim']:.4f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--video", required=True)
    parser.add_argument("--folder", type=Path, default=Path("same_bytes"))
    parser.add_argument("--frames", type=int, default=120, help="of the beginning of the video")
    given = parser.parse_args()
    info, timed = iter_timed_frames(given.video)
    frames = np.stack([frame for (_, frame), _ in zip(timed, range(given.frames), strict=False)])
    fps = Fraction(info.fps).limit_denominator(1001)
    rows, videos = compare(vidlatent.load_codec(given.run), frames, fps)
    given.folder.mkdir(parents=True, exist_ok=True)
    write_json(given.folder / "same_bytes.json", {"video": Path(given.video).name, "rows": rows})
    write_text(given.folder / "same_bytes.md", table := write_table(rows))
    numbers = np.linspace(0, len(frames) - 1, 3).astype(int)
    shown = [video[numbers] for video in (frames, *videos)]
    labels = ["original", *(row["codec"] for row in rows)]
    sheet = contact_sheet(shown, labels, columns=3, numbers=numbers.tolist())
    (given.folder / "same_bytes.png").write_bytes(sheet)
    print(table, end="")


if __name__ == "__main__":
    main()
