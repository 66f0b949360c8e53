"""Windows are exactly the frames that a sequential decode shows at their instants."""

import os
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from vidlatent.media import decode
from vidlatent.media.decoders import Decoders
from vidlatent.media.errors import ClipError, Deadline, Limits
from vidlatent.media.probe import probe, verify

SIZE = (32, 40)

FORMATS = {
    "default.mp4": {},
    "short_gop_b_frames.mp4": dict(gop_size=6, max_b_frames=3),
    "open_gop.mp4": dict(gop_size=8, options={"x264-params": "open-gop=1:bframes=3:b-adapt=0"}),
    "film_rate.mkv": dict(gop_size=10, rate=Fraction(30000, 1001)),
    "mpeg4.avi": dict(codec="mpeg4", gop_size=9),
    "vp9.webm": dict(codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    "stream.ts": dict(gop_size=10),
    "raw.h264": dict(gop_size=10),
    "program.mpg": dict(codec="mpeg2video", gop_size=8),
}


@pytest.fixture(scope="module")
def clips(tools, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return {n: tools.write_clip(folder / n, **options) for n, options in FORMATS.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_windows_equal_a_sequential_decode(clips, name):
    info, frames = decode.iter_frames(clips[name], size=SIZE)
    whole = np.stack(list(frames))
    assert whole.shape == (40, *SIZE, 3)
    assert (info.frames, info.width, info.height, info.is_image) == (40, 64, 48, False)
    assert len({frame.tobytes() for frame in whole}) == 40
    kept = decode.read_all(clips[name], SIZE)
    for count in (1, 9):
        for first in {0, 1, 7, 8, 9, 17, 24, 30, 40 - count}:
            window = decode.read_window(clips[name], first / info.fps, count, size=SIZE)
            np.testing.assert_array_equal(window, whole[first : first + count], f"{first}")
            again = decode.cut_window(info, kept, first / info.fps, count, 0.0, SIZE, (0.5, 0.5))
            np.testing.assert_array_equal(again, window)


@pytest.mark.parametrize("name", FORMATS)
def test_reading_on_shows_the_same_frames(clips, name, monkeypatch):
    """Windows in order, apart, overlapping and backwards; at the file's rate and another."""
    path, info, opened = clips[name], probe(clips[name]), []
    firsts = (*range(0, 36, 4), 2, 4, 8, 11, 30, 31, 32, 0)
    wanted = [(first / info.fps, 4, 0.0, SIZE) for first in firsts]
    wanted += [(first / info.fps, 3, 0.4 * info.fps, SIZE) for first in (0, 8, 16, 24)]
    alone = [decode.read_window(path, *window) for window in wanted]
    open_file = av.open
    monkeypatch.setattr(av, "open", lambda *a, **k: opened.append(a) or open_file(*a, **k))
    before, decoders = len(os.listdir("/proc/self/fd")), Decoders(2)
    for number, (window, video) in enumerate(zip(wanted, alone, strict=True)):
        np.testing.assert_array_equal(decode.read_window(path, *window, decoders=decoders), video)
        if number == 8:
            assert len(opened) == 1
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert len(pickle.loads(pickle.dumps(decoders))._idle) == 0 < len(decoders._idle)
    decoders.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_reading_on_into_damage_is_as_bad_as_reading_it_alone(tools, tmp_path):
    hurt = tools.write_clip(tmp_path / "hurt.mp4", tools.noise(), gop_size=5)
    tools.damage(hurt)

    def outcome(first, decoders):
        try:
            return decode.read_window(hurt, first / 25, 4, size=SIZE, decoders=decoders).tobytes()
        except ClipError as error:
            return str(error)

    decoders = Decoders(1)
    found = [outcome(first, decoders) for first in range(0, 37, 2)]
    assert found == [outcome(first, None) for first in range(0, 37, 2)]
    assert {type(one) for one in found} == {bytes, str}


@pytest.mark.parametrize("fps, step", [(12.5, 2), (5.0, 5), (50.0, 0.5)])
def test_target_rates_show_the_frame_on_display(clips, fps, step):
    whole = np.stack(list(decode.iter_frames(clips["default.mp4"])[1]))
    info = probe(clips["default.mp4"])
    assert info.frames_at(fps) == int(39 / step) + 1
    assert info.starts(5, fps) == 40 - int(np.ceil(4 * step))
    for first in (0, 3, info.starts(5, fps) - 1):
        window = decode.read_window(clips["default.mp4"], first / 25, 5, fps)
        np.testing.assert_array_equal(window, whole[(first + step * np.arange(5)).astype(int)])


def test_variable_frame_rate_keeps_true_time(tools, tmp_path):
    stamps = np.cumsum([0] + [20, 20, 20, 140] * 10)[:40].tolist()
    path = tools.write_clip(tmp_path / "v.mkv", stamps=stamps, rate=50)
    whole = np.stack(list(decode.iter_frames(path)[1]))
    assert len(whole) == 40
    kept = decode.read_all(path, (48, 64))
    info = probe(path)
    for start in (0.0, 0.35, 1.0):
        window = decode.read_window(path, start, 9, 20.0)
        instants = 1000 * (start + np.arange(9) / 20)
        shown = np.searchsorted(stamps, instants + 3, side="right") - 1
        np.testing.assert_array_equal(window, whole[shown])
        again = decode.cut_window(info, kept, start, 9, 20.0, (48, 64), (0.5, 0.5))
        np.testing.assert_array_equal(again, window)


def test_bytes_read_like_the_file(clips):
    with open(clips["default.mp4"], "rb") as file:
        content = file.read()
    assert probe(content).frames == 40
    np.testing.assert_array_equal(
        decode.read_window(content, 0.4, 5), decode.read_window(clips["default.mp4"], 0.4, 5)
    )


def test_crop_covers_and_cuts(clips):
    whole = decode.read_window(clips["default.mp4"], 0, 1)
    left = decode.read_window(clips["default.mp4"], 0, 1, size=(48, 48), crop=(0.0, 0.0))
    right = decode.read_window(clips["default.mp4"], 0, 1, size=(48, 48), crop=(0.0, 1.0))
    np.testing.assert_array_equal(left, whole[:, :, :48])
    np.testing.assert_array_equal(right, whole[:, :, -48:])
    assert decode.read_window(clips["default.mp4"], 0, 1, size=(96, 200)).shape == (1, 96, 200, 3)


def test_phone_rotation_and_pixel_aspect(tools, tmp_path):
    path = tools.write_clip(tmp_path / "r.mp4")
    upright = decode.read_window(path, 0, 1)[0]
    with open(path, "rb") as file:
        content = bytearray(file.read())
    at = content.index(b"tkhd") + 4 + 40  # version 0: the display matrix
    assert content[at : at + 4] == bytes.fromhex("00010000")
    one, minus, zero = (bytes.fromhex(text) for text in ("00010000", "ffff0000", "00000000"))
    content[at : at + 20] = zero + one + zero + minus + zero  # a quarter turn clockwise
    turned = bytes(content)
    info = probe(turned)
    assert (info.height, info.width) == (64, 48)
    np.testing.assert_array_equal(decode.read_window(turned, 0, 1)[0], np.rot90(upright, -1))
    wide = tools.write_clip(tmp_path / "w.mp4", sample_aspect_ratio=Fraction(2, 1))
    assert (probe(wide).height, probe(wide).width) == (48, 128)
    assert decode.read_window(wide, 0, 1).shape == (1, 48, 128, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff"])
def test_pictures_are_one_frame_videos(tools, tmp_path, suffix):
    path = tools.write_picture(tmp_path / f"p.{suffix}")
    info = probe(path)
    assert (info.frames, info.is_image, info.height, info.width) == (1, True, 48, 64)
    assert (info.starts(1, 0.0), info.starts(5, 0.0), info.starts(5, 8.0)) == (1, 0, 0)
    video = decode.read_window(path, 0, 1, size=SIZE)
    assert video.shape == (1, *SIZE, 3)
    assert [frame.shape for frame in decode.iter_frames(path)[1]] == [(48, 64, 3)]


def test_photo_orientation(tools, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tools.write_picture(tmp_path / "p.png", exif=exif)
    assert (probe(path).height, probe(path).width) == (64, 48)
    assert decode.read_window(path, 0, 1).shape == (1, 64, 48, 3)


def test_gif_plays(tmp_path):
    frames = [Image.new("RGB", (32, 32), (40 * i, 0, 255 - 40 * i)) for i in range(6)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    info = probe(str(tmp_path / "a.gif"))
    assert (info.frames, info.fps, info.is_image) == (6, 10.0, False)
    video = decode.read_window(str(tmp_path / "a.gif"), 0.1, 5)
    assert np.all(np.diff(video[:, 0, 0, 0].astype(int)) > 20)


def reason_of(call, *args):
    with pytest.raises(ClipError) as caught:
        call(*args)
    return caught.value.reason


def test_reasons(tools, tmp_path, clips):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video\n" * 50)
    os.symlink(tmp_path / "nowhere", tmp_path / "link.mp4")
    assert reason_of(probe, str(tmp_path / "empty.mp4")) == "empty"
    assert reason_of(probe, b"") == "empty"
    assert reason_of(probe, str(tmp_path / "text.mp4")) == "unreadable"
    assert reason_of(probe, str(tmp_path)) == "unreadable"
    assert reason_of(probe, str(tmp_path / "link.mp4")) == "missing"
    assert reason_of(probe, tools.write_sound(tmp_path / "sound.mp4")) == "no_video"
    small = Limits(max_pixels=48 * 64 - 1)
    picture = tools.write_picture(tmp_path / "p.png")
    for path in (clips["default.mp4"], picture):
        assert reason_of(probe, path, small) == "too_large"
    tools.cut(picture)
    assert reason_of(probe, picture) == "truncated"


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_damage_in_the_middle(tools, tmp_path, suffix):
    path = tools.write_clip(tmp_path / f"cut.{suffix}", tools.noise(), gop_size=5)
    verify(path)
    tools.cut(path)
    assert reason_of(probe, path) == "truncated"
    path = tools.write_clip(tmp_path / f"hit.{suffix}", tools.noise(), gop_size=5)
    tools.damage(path)
    assert reason_of(verify, path) == "corrupt"
    assert decode.read_window(path, 0, 5).shape == (5, 48, 64, 3)


def test_a_window_past_the_end_is_named(clips):
    with pytest.raises(ClipError, match="truncated"):
        decode.read_window(clips["default.mp4"], 1.2, 30)


def test_time_limit_is_asked_in_the_decoding_loop(clips, monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr("vidlatent.media.errors.time.monotonic", lambda: next(now))
    for call in (probe, verify):
        assert reason_of(call, clips["default.mp4"], Limits(timeout_s=5)) == "slow"
    window = (clips["default.mp4"], 0.0, 30, 0.0, None, (0.5, 0.5), Limits(timeout_s=5))
    assert reason_of(decode.read_window, *window) == "slow"
    assert reason_of(Deadline(0).check) == "slow"


def test_an_unreadable_file_is_named(clips, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert reason_of(probe, clips["default.mp4"]) == "permission"


def test_files_are_always_closed(tools, clips, tmp_path):
    hurt = tools.write_clip(tmp_path / "hurt.mp4", tools.noise(), gop_size=5)
    tools.damage(hurt)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        decode.read_window(clips["default.mp4"], 0.5, 5)
        next(decode.iter_frames(clips["default.mp4"])[1])
        assert reason_of(verify, hurt) == "corrupt"
    assert len(os.listdir("/proc/self/fd")) <= before
