"""Files that readers of videos get wrong, with what is true of them.

Times are those of the packets (ffprobe), pictures those of ``ffmpeg -vsync 0 -pix_fmt rgb24``,
written down here as constants or made again from the stored pixels.
"""

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.helpers.odd_files import ODD, TRUE_TIMES
from vidlatent.media import decode
from vidlatent.media.errors import ClipError, Limits
from vidlatent.media.pictures import is_picture
from vidlatent.media.probe import probe, verify
from vidlatent.media.timeline import Packets, _find_splices, find_rate


def odd(name):
    return str(ODD / name)


def stored_frames(name, stream=0):
    """Frames as they are stored: neither turned nor scaled."""
    with av.open(odd(name)) as container:
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=stream)]


@pytest.mark.parametrize("name", TRUE_TIMES)
def test_times_are_those_of_the_frames(name):
    frames, rate, last, trimmed = TRUE_TIMES[name]
    info, timed = decode.iter_timed_frames(odd(name))
    times = [moment for moment, _ in timed]
    assert (info.frames, len(times), info.trimmed) == (frames, frames, trimmed)
    assert info.fps == pytest.approx(rate, rel=2e-3)
    assert times[0] == 0.0 and times[-1] == pytest.approx(last, abs=1e-3)
    assert sorted(times) == times
    assert info.duration == pytest.approx(last + 1 / rate, abs=2e-3)
    assert probe(odd(name)).frames == frames
    assert verify(odd(name)) is None


@pytest.mark.parametrize("name", TRUE_TIMES)
def test_windows_show_each_instant_and_equal_kept_clips(name):
    info, timed = decode.iter_timed_frames(odd(name), size=(32, 40))
    times, images = zip(*timed, strict=True)
    kept = decode.read_all(odd(name), (32, 40))
    np.testing.assert_array_equal(kept[0], times)
    starts = info.starts(5, 0.0)
    for first in {0, 1, starts // 2, starts - 1}:
        start = first / info.fps
        window = decode.read_window(odd(name), start, 5, size=(32, 40))
        cut = decode.cut_window(info, kept, start, 5, 0.0, (32, 40), (0.5, 0.5))
        np.testing.assert_array_equal(cut, window)
        instants = start + np.arange(5) / info.fps + min(2e-3, 0.25 / info.fps)
        shown = np.searchsorted(times, instants, side="right") - 1
        np.testing.assert_array_equal(window, np.stack([images[i] for i in shown]))
        # No frame is repeated but those that stay on display for longer than the mean.
        gaps = np.diff([*times, info.duration])
        for i, j in zip(shown, shown[1:], strict=False):
            assert i != j or gaps[i] > 0.99 / info.fps


def test_variable_rates_are_told_and_constant_ones_are_not():
    varying = {name for name in TRUE_TIMES if "variable" in probe(odd(name), whole=True).remarks}
    assert varying == {"recorder_nodd.webm", "j.ts", "vfr.mp4", "a.webp"}
    assert "spliced" in probe(odd("jump.ts")).remarks


@pytest.mark.parametrize(
    "suffix, second", [("ts", 15.0), ("ts", 5000.0), ("mp4", 500.0), ("flv", 500.0)]
)
def test_joined_recordings_have_no_gap(tools, tmp_path, suffix, second):
    """Two parts whose stamps jump play one after the other."""
    parts = [
        tools.write_clip(tmp_path / f"{i}.{suffix}", tools.pictures(20, seed=i)) for i in (0, 1)
    ]
    path, number = str(tmp_path / f"joined.{suffix}"), 0
    with av.open(path, "w", options={"avoid_negative_ts": "disabled"}) as out:
        for part, shift in zip(parts, (10.0, 10.8 + second), strict=True):
            with av.open(part) as source:
                stream = source.streams.video[0]
                track = out.streams[0] if number else out.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is None:
                        continue
                    tick = packet.time_base
                    moved = round(Fraction(shift) / tick) - (stream.start_time or 0)
                    packet.pts, packet.dts = packet.pts + moved, packet.dts + moved
                    packet.stream, number = track, number + 1
                    out.mux(packet)
    info, timed = decode.iter_timed_frames(path)
    times = [moment for moment, _ in timed]
    assert info.frames == len(times) == 40
    np.testing.assert_allclose(times, np.arange(40) / 25, atol=2e-3)


@pytest.mark.parametrize(
    "suffix, codec", [("ts", "libx264"), ("mkv", "libx264"), ("webm", "libvpx")]
)
def test_bytes_joined_end_to_end_play_one_after_the_other(tools, tmp_path, suffix, codec):
    """As `cat a.ts b.ts` does: stamps start again in the middle."""
    parts = [
        tools.write_clip(tmp_path / f"{i}.{suffix}", tools.pictures(25, seed=i), codec=codec)
        for i in (0, 1)
    ]
    content = b"".join(Path(part).read_bytes() for part in parts)
    info, timed = decode.iter_timed_frames(content)
    times, images = zip(*timed, strict=True)
    assert info.frames == 50 and "spliced" in info.remarks
    np.testing.assert_allclose(times, np.arange(50) / 25, atol=1e-6)
    alone = [np.stack(list(decode.iter_frames(part)[1])) for part in parts]
    np.testing.assert_array_equal(np.stack(images), np.concatenate(alone))
    for first in (20, 30, 41):
        window = decode.read_window(content, first / 25, 9)
        np.testing.assert_array_equal(window, np.stack(images[first : first + 9]))


def test_an_encoder_that_skips_frames_makes_no_seam(tools, tmp_path):
    """The picture stays on display for 100 s; B-frames move stamps and clock apart."""
    stamps = [40 * i + 100_000 * (i >= 20) for i in range(40)]
    for suffix in ("mkv", "mp4"):
        path = tools.write_clip(tmp_path / f"a.{suffix}", tools.pictures(40), stamps=stamps)
        info, timed = decode.iter_timed_frames(path)
        assert [m for m, _ in timed][-1] == pytest.approx(101.56, abs=1e-3)
        assert "variable" in info.remarks and "spliced" not in info.remarks


def test_a_picture_that_stays_is_no_seam_while_sound_goes_on():
    ticks = Fraction(1, 90000)
    clocks = [3600 * i for i in range(10)] + [90000 * 120 + 3600 * i for i in range(10)]
    packets = Packets(ticks, clocks, clocks, [True] * 20, [True] * 20)
    assert len(_find_splices(packets, [], True)) == 1
    sound = [float(i) for i in range(130)]
    assert _find_splices(packets, sound, True) == ()
    slides = [90000 * 20 * i for i in range(8)]
    packets = Packets(ticks, slides, slides, [True] * 8, [True] * 8)
    assert _find_splices(packets, [], True) == ()


@pytest.mark.parametrize(
    "stated, frames, span, tick, rate",
    [
        ((25,), 40, Fraction(39, 25), Fraction(1, 90000), 25),
        ((0, 1000), 60, Fraction(1925, 1000), Fraction(1, 1000), Fraction(59000, 1925)),
        ((2000,), 21, Fraction(1, 100), Fraction(1, 90000), 2000),
        ((0, 1000), 40, Fraction(1301, 1000), Fraction(1, 1000), Fraction(30000, 1001)),
        ((30,), 51, Fraction(2), Fraction(1, 90000), 25),  # contradicted
        ((90000,), 1, Fraction(0), Fraction(1, 90000), 25),  # absurd, and nothing else to ask
    ],
)
def test_the_rate_that_puts_the_last_frame_at_its_stamp(stated, frames, span, tick, rate):
    assert find_rate([Fraction(one) for one in stated], frames, span, tick) == rate


def test_the_second_size_is_scaled_to_the_first():
    frames = list(decode.iter_frames(odd("reschange.ts"))[1])
    assert {frame.shape for frame in frames} == {(96, 128, 3)}
    with av.open(odd("reschange.ts")) as container:
        small = list(container.decode(video=0))[30]
    assert (small.height, small.width) == (64, 96)
    wide = small.reformat(width=128, height=96, format="rgb24", interpolation="BICUBIC")
    np.testing.assert_array_equal(frames[30], wide.to_ndarray())
    window = decode.read_window(odd("reschange.ts"), 0.8, 9)
    np.testing.assert_array_equal(window, np.stack(frames[20:29]))


@pytest.mark.parametrize("resize", ["area", "bilinear"])
@pytest.mark.parametrize("name", ["bar_i.mp4", "bar_p.mp4"])
def test_fields_are_not_scaled_apart(name, resize):
    window = decode.read_window(odd(name), 0.4, 5, size=(48, 64), resize=resize).astype(int)
    assert np.abs(np.diff(window, axis=1)).mean() < 0.1
    if name == "bar_i.mp4":
        assert "interlaced" in probe(odd(name)).remarks


def turn_file(content, matrix):
    at = content.index(b"tkhd") + 4 + 40  # version 0: the display matrix
    row = struct.pack(">5i", *(int(65536 * value) for value in matrix))
    return content[:at] + row + content[at + 20 :]


@pytest.mark.parametrize(
    "matrix, turn",
    [
        ((-1, 0, 0, 0, 1), lambda f: f[:, ::-1]),
        ((1, 0, 0, 0, -1), lambda f: f[::-1]),
        ((0, 1, 0, 1, 0), lambda f: f.swapaxes(0, 1)),  # transposed
        ((0, -1, 0, -1, 0), lambda f: f.swapaxes(0, 1)[::-1, ::-1]),
        ((0, 1, 0, -1, 0), lambda f: np.rot90(f, -1)),  # a quarter turn clockwise
        ((0, -1, 0, 1, 0), lambda f: np.rot90(f, 1)),
        ((-1, 0, 0, 0, -1), lambda f: np.rot90(f, 2)),
    ],
)
def test_the_whole_display_matrix_counts(matrix, turn):
    content = turn_file((ODD / "hflip.mp4").read_bytes(), matrix)
    upright = decode.read_window(turn_file(content, (1, 0, 0, 0, 1)), 0.0, 1)[0]
    info = probe(content)
    shown = decode.read_window(content, 0.0, 1)[0]
    np.testing.assert_array_equal(shown, turn(upright))
    assert (info.height, info.width) == shown.shape[:2]


def test_mirrored_files_are_shown_as_players_do():
    for name, axis in (("hflip.mp4", 1), ("vflip.mp4", 0)):
        stored = stored_frames(name)
        for frame, whole in zip(stored, decode.iter_frames(odd(name))[1], strict=True):
            assert np.abs(np.flip(frame, axis).astype(int) - whole).mean() < 2


def test_the_default_stream_is_read_not_the_first():
    info = probe(odd("two.mkv"))
    assert (info.height, info.width) == (96, 128)
    frame = decode.read_window(odd("two.mkv"), 0.0, 1)[0].astype(int)
    assert np.abs(frame - stored_frames("two.mkv", 1)[0]).mean() < 2


def test_open_groups_are_whole_after_a_cut():
    """The 50 frames that follow the cut are the same in both containers, none grey."""
    short = np.stack(list(decode.iter_frames(odd("opengop_cut.mkv"))[1]))
    assert len(short) == 50
    lenient = stored_frames("opengop_cut.mkv")
    np.testing.assert_array_equal(short, np.stack(lenient))


def test_pictures_that_move_are_videos(tmp_path):
    frames = [Image.new("RGB", (32, 24), (40 * i, 0, 255 - 40 * i)) for i in range(6)]
    apng = str(tmp_path / "a.png")
    frames[0].save(apng, save_all=True, append_images=frames[1:], duration=100)
    jpegs = []
    for frame in frames:
        file = io.BytesIO()
        frame.save(file, "JPEG", quality=95)
        jpegs.append(file.getvalue())
    (tmp_path / "a.mjpeg").write_bytes(b"".join(jpegs))
    (tmp_path / "b.jpg").write_bytes(b"".join(jpegs))  # by content, not by name
    for path, rate in ((apng, 10), (tmp_path / "a.mjpeg", 25), (tmp_path / "b.jpg", 25)):
        info = probe(str(path))
        assert (info.frames, info.is_image, info.fps) == (6, False, rate)
        video = decode.read_window(str(path), 1 / rate, 5)
        reds = video.mean((1, 2))[:, 0]
        np.testing.assert_allclose(reds, 40 * np.arange(1, 6), atol=3)
    for name in ("a.avif", "a.webp"):
        frames = list(decode.iter_frames(odd(name))[1])
        assert len({frame.tobytes() for frame in frames}) == 6
    # A photo with another picture or a film behind it is still a photo.
    small = io.BytesIO()
    Image.new("RGB", (16, 16)).save(small, "JPEG")
    assert is_picture(jpegs[0] + small.getvalue())
    assert is_picture(jpegs[0] + b"\0\0\0\x18ftypmp42")
    assert is_picture(jpegs[0]) and is_picture(jpegs[0][:-1])


def test_sixteen_bits_are_scaled_and_floats_refused(tmp_path):
    ramp = decode.read_window(odd("g16.png"), 0.0, 1)[0]
    wanted = (np.linspace(0, 65535, 64).astype(int) >> 8)[None, :, None]
    assert np.abs(ramp.astype(int) - wanted).max() <= 1 and 126 <= ramp[0, 32, 0] <= 130
    values = np.array([[0, 32896, 65535]], np.uint16).repeat(3, 0)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    (tmp_path / "a.pgm").write_bytes(b"P5 3 3 65535\n" + values.astype(">u2").tobytes())
    for path in (tmp_path / "a.tiff", tmp_path / "a.pgm"):
        row = decode.read_window(str(path), 0.0, 1)[0, 0, :, 0]
        np.testing.assert_allclose(row, [0, 128, 255], atol=1)  # FFmpeg dithers
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "i32.tiff")
    for path in (odd("f32.tiff"), str(tmp_path / "i32.tiff")):
        for call in (probe, lambda p: decode.read_window(p, 0.0, 1)):
            with pytest.raises(ClipError, match="unsupported"):
                call(path)


def thin_png(width, height):
    def chunk(kind, body):
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes(height * (1 + -(-width // 8))))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("sides", [(16000, 1), (1, 16000), (60000, 2)])
def test_thin_pictures_are_refused_before_they_are_scaled(tools, tmp_path, sides):
    picture = thin_png(*sides)
    with pytest.raises(ClipError, match="too thin"):
        decode.read_window(picture, 0.0, 1, size=(256, 256))
    with pytest.raises(ClipError, match="too thin"):
        decode.read_all(picture, (256, 256))
    assert decode.read_window(thin_png(400, 20), 0.0, 1, size=(256, 256)).shape[1:3] == (256, 256)


def test_thin_videos_too(tools, tmp_path):
    path = tools.write_clip(tmp_path / "thin.mp4", np.zeros((3, 2, 4000, 3), np.uint8))
    with pytest.raises(ClipError, match="too thin"):
        decode.read_window(path, 0.0, 1, size=(256, 256), limits=Limits(max_pixels=1 << 20))


def test_what_is_lost_is_told(tmp_path):
    Image.new("RGBA", (8, 8)).save(tmp_path / "a.png")
    assert probe(str(tmp_path / "a.png")).remarks == ("alpha",)
    frames = [Image.new("RGBA", (32, 32), (40 * i, 0, 0, 50)) for i in range(3)]
    for suffix in ("webp", "png", "avif", "gif"):
        path = str(tmp_path / f"moving.{suffix}")
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
        assert probe(path).remarks == ("alpha",) and probe(path).frames == 3
    assert probe(odd("audio.mp4")).remarks == ("sound",)
    with av.open(str(tmp_path / "hdr.mp4"), "w") as container:
        track = container.add_stream("libx264", rate=25)
        track.height = track.width = 32
        track.pix_fmt = "yuv420p10le"
        track.codec_context.color_trc = 16
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        for _ in range(3):
            container.mux(track.encode(frame))
        container.mux(track.encode())
    assert probe(str(tmp_path / "hdr.mp4")).remarks == ("hdr",)


def test_damage_inside_is_not_taken_for_an_edge(tools, tmp_path):
    for suffix in ("ts", "mp4", "mkv", "avi"):
        codec = {"avi": "mpeg4"}.get(suffix, "libx264")
        path = tools.write_clip(tmp_path / f"a.{suffix}", tools.noise(), codec=codec, gop_size=12)
        tools.damage(path, where=0.45, amount=3000)
        with pytest.raises(ClipError):
            verify(path)
        with pytest.raises(ClipError):
            list(decode.iter_frames(path)[1])


def test_a_damaged_beginning_is_left_out_up_to_the_next_key_frame(tools, tmp_path):
    path = tools.write_clip(tmp_path / "a.ts", tools.noise(), gop_size=10, max_b_frames=0)
    content = Path(path).read_bytes()
    sound = np.stack(list(decode.iter_frames(path)[1]))
    cut = content[len(content) // 10 // 188 * 188 + 188 * 7 :]
    info, frames = decode.iter_frames(cut)
    found = np.stack(list(frames))
    assert 10 <= len(found) < 40
    np.testing.assert_array_equal(found, sound[-len(found) :])
    assert info.frames == len(found)


def test_recordings_that_break_off_end_at_the_last_clean_frame(tools, tmp_path):
    """Transport streams and raw streams say nothing of their length."""
    for suffix in ("mp4", "ts", "h264", "mkv"):
        path = tmp_path / f"a.{suffix}"
        tools.write_clip(path, gop_size=8, max_b_frames=0)
        whole = list(decode.iter_frames(str(path))[1])
        content = path.read_bytes()
        part = content[: int(len(content) * 0.7)]
        if suffix in ("mp4", "mkv"):  # they state it
            with pytest.raises(ClipError, match="truncated"):
                probe(part)
            continue
        info = verify(part) or probe(part)
        frames = list(decode.iter_frames(part)[1])
        assert 16 <= len(frames) < 40 and info.frames == len(frames), suffix
        np.testing.assert_array_equal(frames, whole[: len(frames)])
        decode.read_window(part, (info.frames - 5) / info.fps, 5)
