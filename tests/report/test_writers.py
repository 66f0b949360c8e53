"""Metric writers, read back from what they wrote."""

import contextlib
import io
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers.events import read_events
from vidlatent.errors import VidlatentError
from vidlatent.report import writers

ROOT = pathlib.Path(__file__).parents[2]


def test_videos_are_pictures_that_play(tmp_path):
    """As animated GIFs, whose colours are of a palette; each video of a batch by itself."""
    video = np.zeros((5, 8, 10, 3), np.uint8)
    video[:, :, :5] = np.arange(0, 250, 50, np.uint8)[:, None, None, None]
    with contextlib.closing(writers.make_writers(tmp_path, tensorboard=True)) as writer:
        writer.write_videos(7, {"one": video, "two": np.stack([video, video[::-1]])})
    found = {value.tag: (step, value) for step, value in read_events(tmp_path / "tensorboard")}
    assert set(found) == {"one", "two/0", "two/1"}
    step, value = found["one"]
    assert (step, value.image.height, value.image.width) == (7, 8, 10)
    shown = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert shown.format == "GIF" and shown.n_frames == 5
    for number in range(5):
        shown.seek(number)
        frame = np.asarray(shown.convert("RGB")).astype(int)
        assert np.abs(frame - video[number]).max() <= 2
    backwards = Image.open(io.BytesIO(found["two/1"][1].image.encoded_image_string))
    assert np.abs(np.asarray(backwards.convert("RGB")).astype(int) - video[4]).max() <= 2


def test_large_videos_are_reduced(tmp_path):
    with contextlib.closing(writers.make_writers(tmp_path, tensorboard=True)) as writer:
        writer.write_videos(1, {"large": np.zeros((2, 60, 1100, 3), np.uint8)})
    ((_, value),) = read_events(tmp_path / "tensorboard")
    assert (value.image.height, value.image.width) == (20, 367)
    assert Image.open(io.BytesIO(value.image.encoded_image_string)).size == (367, 20)


def test_histograms_of_arrays_and_of_counts(tmp_path):
    values = np.array([0.0, 1.0, 1.0, 4.0])
    counted = writers.Histogram(*np.histogram(values, 4)[::-1], values.sum(), 18.0)
    broken = counted._replace(edges=np.full(5, np.nan))
    with contextlib.closing(writers.make_writers(tmp_path, tensorboard=True)) as writer:
        arrays = {"array": values.reshape(2, 2), "counts": counted, "broken": broken}
        writer.write_histograms(3, arrays, {"array": 4})
    found = {
        value.tag: (step, value.histo) for step, value in read_events(tmp_path / "tensorboard")
    }
    assert set(found) == {"array", "counts"}
    for step, histogram in found.values():
        assert step == 3 and (histogram.min, histogram.max, histogram.num) == (0, 4, 4)
        assert list(histogram.bucket_limit) == [1, 2, 3, 4]
        assert list(histogram.bucket) == [1, 2, 0, 1]
        assert (histogram.sum, histogram.sum_squares) == (6, 18)


def test_all_back_ends_get_everything(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.random((2, 8, 10, 3), np.float32)
    with contextlib.closing(writers.make_writers(tmp_path, tensorboard=True)) as writer:
        writer.write_scalars(3, {"loss": jnp.float32(0.25), "psnr": 21})
        writer.write_scalars(4, {"loss": np.float64("nan")})
        writer.write_images(3, {"pictures": pictures, "grey": np.zeros((4, 4, 1), np.uint8)})
        writer.write_audios(3, {}, sample_rate=8000)
        writer.write_summaries(3, {})
        writer.flush()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in line.items() if k != "time"} for line in lines] == [
        {"step": 3, "loss": 0.25, "psnr": 21.0},
        {"step": 4, "loss": None},
    ]
    by_tag = {
        value.tag: (step, value) for step, value in reversed(read_events(tmp_path / "tensorboard"))
    }
    step, value = by_tag["loss"]
    assert step == 3 and value.simple_value == 0.25
    shown = Image.open(io.BytesIO(by_tag["pictures/1"][1].image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(shown), np.rint(pictures[1] * 255))
    assert by_tag["grey"][1].image.height == 4


def test_without_tensorboard(tmp_path):
    writers.make_writers(tmp_path, tensorboard=False).write_scalars(1, {"loss": 1.0})
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with contextlib.closing(writers.make_writers(tmp_path / "run", tensorboard=True)) as writer:
        writer.write_scalars(1, {"loss": 1.0})
        writer.write_videos(1, {"clip": np.zeros((2, 8, 8, 3), np.uint8)})
    assert not (tmp_path / "run").exists()


def test_metrics_of_a_resumed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = writers.JsonlWriter(path)
    for step in (10, 20, 30):
        first.write_scalars(step, {"loss": step / 10})
    first.close()
    with open(path, "a") as file:
        file.write('{"step": 40, "lo')  # The process was killed here.
    assert writers.read_metrics(path) == {"loss": ([10, 20, 30], [1.0, 2.0, 3.0])}
    second = writers.JsonlWriter(path)
    second.write_scalars(30, {"loss": 7.0, "psnr": float("inf")})
    second.close()
    second.flush()
    curves = writers.read_metrics(path)
    assert curves["loss"] == ([10, 20, 30], [1.0, 2.0, 7.0])
    assert curves["psnr"][0] == [30] and np.isnan(curves["psnr"][1][0])
    assert writers.read_metrics(tmp_path / "none.jsonl") == {}


def test_errors(tmp_path):
    (tmp_path / "file").write_text("")
    for tensorboard in (False, True):
        with pytest.raises(VidlatentError, match="cannot write"):
            writers.make_writers(tmp_path / "file", tensorboard=tensorboard)
    with pytest.raises(VidlatentError, match="cannot write event files"):
        writers.TensorBoardWriter(tmp_path / "file" / "deep")
    writer = writers.TensorBoardWriter(tmp_path / "events")
    with pytest.raises(VidlatentError, match="shape"):
        writer.write_images(0, {"x": np.zeros((4, 4, 2), np.uint8)})
    writer.close()


def test_clu_actions_work_without_tensorflow(tmp_path):
    """In a fresh process, since clu may have been imported here."""
    code = """
import sys
from vidlatent.report.writers import make_writers
from clu import metric_writers, periodic_actions
assert "tensorflow" not in sys.modules
writer = make_writers(sys.argv[1], tensorboard=False)
report = periodic_actions.ReportProgress(num_train_steps=20, every_steps=5, writer=writer)
for step in range(20):
    report(step)
report.close() if hasattr(report, "close") else None
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60, cwd=ROOT)
    assert "steps_per_sec" in writers.read_metrics(tmp_path / "metrics.jsonl")


def test_damaged_lines_are_left_out(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    good = '{"step": %d, "time": 1.5, "loss": %d}\n'
    bad = [b"\0" * 80, b"{", b"[1]", b"\xff\xfe", b'{"step": "x"}', b'{"step": 1, "loss": "x"}']
    lines = [(good % (1, 4)).encode(), *(line + b"\n" for line in bad), (good % (2, 3)).encode()]
    path.write_bytes(b"".join(lines) + b'{"step": 3, "lo')
    with caplog.at_level("WARNING", logger="absl"):
        assert writers.read_metrics(path) == {"loss": ([1, 2], [4.0, 3.0])}
    assert "6 damaged lines" in caplog.text
