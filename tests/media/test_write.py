"""Video files and pictures, written and read back."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from vidlatent.errors import VidlatentError
from vidlatent.media import sheets as pictures
from vidlatent.media import write as video


def moving_clip(frames=9, height=48, width=64):
    t, y, x = np.mgrid[:frames, :height, :width]
    waves = [np.sin(x / 9 + t / 3), np.cos(y / 7 - t / 4), np.sin((x + y) / 11 + t / 5)]
    return np.rint(128 + 90 * np.stack(waves, -1)).astype(np.uint8)


def read_back(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        return np.stack(frames), stream.average_rate, stream.codec_context


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), 25, 12.5])
def test_pictures_rate_and_length_survive(tmp_path, fps):
    clip = moving_clip()
    assert video.write_video(tmp_path / "a.mp4", clip, fps, crf=4) == 9
    frames, rate, codec = read_back(tmp_path / "a.mp4")
    assert frames.shape == clip.shape and rate == Fraction(fps)
    assert codec.pix_fmt == "yuv420p" and codec.name == "h264"
    error = np.mean((frames.astype(float) - clip) ** 2)
    assert 10 * np.log10(255**2 / error) > 33
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_primary_colours_are_exact_to_two_levels(tmp_path):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [40, 120, 200]])
    frame = np.repeat(np.repeat(colours[None].astype(np.uint8), 64, 0), 32, 1)
    video.write_video(tmp_path / "c.mp4", [frame] * 3, 25, crf=0)
    frames, _, _ = read_back(tmp_path / "c.mp4")
    assert np.abs(frames[0, 10, 16::32].astype(int) - colours).max() <= 2


@pytest.mark.parametrize("height,width", [(47, 64), (48, 63), (1, 1)])
def test_odd_sides_gain_a_copy_of_the_last_line(tmp_path, height, width):
    clip = moving_clip(3, height, width)
    video.write_video(tmp_path / "a.mp4", clip, 10, crf=4)
    frames, _, _ = read_back(tmp_path / "a.mp4")
    assert frames.shape == (3, height + height % 2, width + width % 2, 3)
    assert np.abs(frames[:, :height, :width].astype(int) - clip).mean() < 12


def test_floats_are_pixels_between_minus_one_and_one(tmp_path):
    assert pictures.to_uint8(np.array([-2.0, -1, 0, 1, 2, np.nan])).tolist() == [
        0,
        0,
        128,
        255,
        255,
        128,
    ]
    grey = np.zeros((2, 16, 16, 3), np.float32)
    video.write_video(tmp_path / "a.mp4", grey, 10, crf=0)
    assert np.abs(read_back(tmp_path / "a.mp4")[0].astype(int) - 128).max() <= 1


def test_a_writer_takes_frames_as_they_come(tmp_path):
    clip = moving_clip()
    with video.VideoWriter(tmp_path / "deep" / "a.mkv", 8) as writer:
        for number, frame in enumerate(clip):
            writer.add(frame)
            assert writer.frames == number + 1
            assert not (tmp_path / "deep" / "a.mkv").exists(), "only complete files have the name"
    assert len(read_back(tmp_path / "deep" / "a.mkv")[0]) == 9


def test_nothing_is_left_of_a_failed_video_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the old one")
    clip = moving_clip()
    with pytest.raises(VidlatentError, match=r"frame 1 .* \(20, 20\), the first one \(48, 64\)"):
        video.write_video(path, [clip[0], clip[1][:20, :20]], 10)
    with pytest.raises(KeyboardInterrupt), video.VideoWriter(path, 10) as writer:
        writer.add(clip[0])
        raise KeyboardInterrupt
    with pytest.raises(VidlatentError, match="no frame"):
        video.write_video(path, [], 10)
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_unusable_paths_and_arguments(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("")
    for path in ("folder.mp4", "file/a.mp4", "a.avi", "a"):
        with pytest.raises(VidlatentError, match="cannot write"):
            video.VideoWriter(tmp_path / path, 10)
    for fps in (0, -3, "fast", float("nan"), 500_000):
        with pytest.raises(VidlatentError, match="frame rate"):
            video.VideoWriter(tmp_path / "a.mp4", fps)
    with pytest.raises(VidlatentError, match="crf"):
        video.VideoWriter(tmp_path / "a.mp4", 10, crf=60)
    with pytest.raises(VidlatentError, match=r"\[H, W, 3\]"):
        video.write_video(tmp_path / "a.mp4", np.zeros((3, 8, 8), np.uint8), 10)


def test_broadcast_rates_are_recognised():
    rates = {29.97: (30000, 1001), 23.976: (24000, 1001), 59.94: (60000, 1001), 30.0: (30, 1)}
    for value, (top, bottom) in rates.items():
        assert video.as_fps(value) == Fraction(top, bottom)
    assert video.as_fps("30000/1001") == Fraction(30000, 1001)
    assert video.as_fps(12.5) == Fraction(25, 2) and video.as_fps(24) == 24


def test_side_by_side():
    a, b = moving_clip(), moving_clip()[::-1]
    plain = video.side_by_side(a, b, labels=None)
    assert plain.shape == (9, 48, 132, 3)
    np.testing.assert_array_equal(plain[:, :, :64], a)
    np.testing.assert_array_equal(plain[:, :, 68:], b)
    assert (plain[:, :, 64:68] == 255).all()
    captioned = video.side_by_side(a, b)
    np.testing.assert_array_equal(captioned[:, -48:], plain)
    assert captioned.shape[1] > 48 and captioned[0, :10].std() > 0
    np.testing.assert_array_equal(video.side_by_side(a[0], b[0]), captioned[0])
    with pytest.raises(VidlatentError, match="one size"):
        video.side_by_side(a, b[:, :20])


def test_frames_of_a_sheet_are_spread_evenly():
    assert pictures.pick_frames(17, 5) == [0, 4, 8, 12, 16]
    assert pictures.pick_frames(3, 8) == [0, 1, 2]
    assert pictures.pick_frames(100, 1) == [0]


def test_contact_sheet_shows_the_frames(tmp_path):
    clip = moving_clip()
    flat = np.full_like(clip, 77)
    png = pictures.contact_sheet(
        [clip, flat], ["original", "reconstruction\nPSNR 20 dB"], tmp_path / "s.png", columns=3
    )
    assert (tmp_path / "s.png").read_bytes() == png
    sheet = np.asarray(Image.open(io.BytesIO(png)))
    big = clip[[0, 4, 8]].repeat(2, 1).repeat(2, 2)
    left = sheet.shape[1] - 14 - 3 * (128 + 3)
    for column, frame in enumerate(big):
        x = left + column * 131
        np.testing.assert_array_equal(sheet[32 : 32 + 96, x : x + 128], frame)
    assert (sheet == 77).all(-1).sum() == 3 * 96 * 128
    assert sheet[:, :left].min() < 60, "the labels are drawn"


def test_contact_sheet_difference_rows():
    clip = moving_clip()
    other = clip.copy()
    other[:, :10] ^= 3
    png = pictures.contact_sheet([clip, other], ["a", "b"], difference=50, columns=2)
    sheet = np.asarray(Image.open(io.BytesIO(png)))
    last = sheet[-14 - 96 - 3 : -14 - 3, -14 - 131 : -14 - 3]
    assert set(np.unique(last[:20])) <= {50, 150} and (last[20:] == 0).all()


def test_contact_sheet_of_unlike_clips():
    rows = [moving_clip(5, 40, 70), moving_clip(1, 300, 200), np.zeros((2, 9, 9, 3), np.float32)]
    png = pictures.contact_sheet(rows, ["a", "", "a name that is far too long for its column"])
    assert Image.open(io.BytesIO(png)).size[0] < 1200


def test_contact_sheet_errors(tmp_path):
    clip = moving_clip()
    with pytest.raises(VidlatentError, match="0 rows"):
        pictures.contact_sheet([], [])
    with pytest.raises(VidlatentError, match="1 rows and 2 labels"):
        pictures.contact_sheet([clip], ["a", "b"])
    with pytest.raises(VidlatentError, match="row 0"):
        pictures.contact_sheet([clip[0]], ["a"])
    with pytest.raises(VidlatentError, match="even number"):
        pictures.contact_sheet([clip], ["a"], difference=4)
    with pytest.raises(VidlatentError, match="cannot write"):
        pictures.contact_sheet([clip], ["a"], tmp_path / "none" / "s.png")
