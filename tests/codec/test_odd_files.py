"""Restored files and coded videos keep the time, the look and the sound of odd files."""

import json
import os
import shutil
from pathlib import Path

import av
import jax
import numpy as np
import pytest

import vidlatent
from tests.helpers.clips import write_clip
from tests.helpers.odd_files import ODD, TRUE_TIMES
from vidlatent import config as configs
from vidlatent.codec.codec import Codec
from vidlatent.codec.coded import Coded
from vidlatent.codec.reconstruct import reconstruct_video
from vidlatent.convert.run import _write_workdir
from vidlatent.errors import VidlatentError
from vidlatent.media.decode import iter_frames, iter_timed_frames
from vidlatent.media.write import VideoWriter
from vidlatent.models.load import abstract_params, model_of

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with a tiny tokenizer that nobody trained."""
    changes = {"model.width": "4", "model.multipliers": "(1, 1, 2)", "eval.compare": "False"}
    config = configs.load("configs/ivvae.py", changes)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (rng.normal(size=x.shape) / 10).astype(x.dtype), abstract_params(model_of(config))
    )
    folder = tmp_path_factory.mktemp("run")
    _write_workdir(config, folder, params)
    return folder


@pytest.fixture
def identity(monkeypatch):
    """A codec that gives back what it is given, in pieces: only files are tested."""

    class Identity:
        time = "stream"

        def reconstruct_stream(self, frames, watch):
            piece = []
            for frame in frames:
                piece.append(frame)
                if len(piece) == 7:
                    yield np.stack(piece), np.stack(piece)
                    piece = []
            if piece:
                yield np.stack(piece), np.stack(piece)

    monkeypatch.setattr(Codec, "from_workdir", lambda *a, **k: Identity())
    monkeypatch.setattr("vidlatent.codec.reconstruct.Sizes", lambda: Counted())


class Counted:
    add = None

    def report(self):
        return {
            "values_per_latent_value": 1.0,
            "content_frames": 0,
            "values_per_kept_value": 1.0,
        }


def restore(run, name, output, suffix=".mp4"):
    config = configs.read(run)
    with config.unlocked():
        config.eval.compare = False
    target = output / f"out{suffix}"
    assert reconstruct_video(config, run, -1, str(name), str(target)) == 0
    return target, json.loads((output / "out_scores.json").read_text())


def read_times(path):
    """Seconds of the pictures after the first one, and where that one is."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stamps = [float(f.pts * stream.time_base) for f in container.decode(stream)]
    return np.array(stamps) - stamps[0], stamps[0]


@pytest.mark.parametrize("name", TRUE_TIMES)
def test_each_frame_keeps_its_time(run, identity, name, tmp_path):
    wanted = [moment for moment, _ in iter_timed_frames(str(ODD / name))[1]]
    target, scores = restore(run, ODD / name, tmp_path)
    found, _ = read_times(target)
    assert len(found) == TRUE_TIMES[name][0]
    np.testing.assert_allclose(found, wanted, atol=1.1e-3)
    assert found[-1] == pytest.approx(TRUE_TIMES[name][2], abs=2e-3)
    varies = any("each frame keeps its time" in sentence for sentence in scores["told"])
    assert varies == (name in ("recorder_nodd.webm", "j.ts", "vfr.mp4", "a.webp"))
    assert any("left out" in s for s in scores["told"]) == (TRUE_TIMES[name][3] > 0)


def test_the_look_is_that_of_players(run, identity, tmp_path):
    for name in ("hflip.mp4", "reschange.ts", "two.mkv", "bar_i.mp4"):
        target, _ = restore(run, ODD / name, tmp_path)
        for a, b in zip(iter_frames(str(ODD / name))[1], iter_frames(str(target))[1], strict=True):
            assert np.abs(a.astype(int) - b).mean() < 8, name  # H.264 of sharp colours


def test_sound_is_copied(run, identity, tmp_path):
    def packets(path):
        with av.open(str(path)) as container:
            sound = container.streams.audio[0]
            stored = [p for p in container.demux(sound) if p.size]
            return [bytes(p) for p in stored], [float(p.pts * p.time_base) for p in stored]

    before, at = packets(ODD / "audio.mp4")
    for suffix in (".mp4", ".mov", ".mkv"):
        target, scores = restore(run, ODD / "audio.mp4", tmp_path, suffix)
        after, now = packets(target)
        assert after == before
        np.testing.assert_allclose(np.diff(now), np.diff(at), atol=2e-3)
        assert "sound copied: aac" in scores["told"]
        found, start = read_times(target)
        assert start - now[0] == pytest.approx(0 - at[0], abs=3e-3)


def test_a_late_picture_stays_late_beside_its_sound(run, identity, tmp_path):
    target, scores = restore(run, ODD / "delayed.mkv", tmp_path, ".mkv")
    _, start = read_times(target)
    assert start == pytest.approx(2.023, abs=3e-3)
    assert any(sentence.startswith("sound copied") for sentence in scores["told"])


def test_sound_that_the_container_cannot_hold_is_told(run, identity, tmp_path):
    source = str(tmp_path / "in.mkv")
    with av.open(source, "w") as container:
        track = container.add_stream("libx264", rate=25)
        track.height, track.width, track.pix_fmt = 32, 32, "yuv420p"
        sound = container.add_stream("wavpack", rate=44100, layout="mono")
        for _ in range(10):
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(track.encode(picture))
        for number in range(10):
            wave = av.AudioFrame.from_ndarray(
                np.zeros((1, 2048), np.float32), format="fltp", layout="mono"
            )
            wave.sample_rate, wave.pts = 44100, 2048 * number
            container.mux(sound.encode(wave))
        container.mux(track.encode())
        container.mux(sound.encode())
    target, scores = restore(run, source, tmp_path)
    assert any("not copied: .mp4 cannot hold wavpack" in sentence for sentence in scores["told"])
    assert len(read_times(target)[0]) == 10
    _, scores = restore(run, source, tmp_path, ".mkv")
    assert "sound copied: wavpack" in scores["told"]
    _, scores = restore(run, ODD / "hflip.mp4", tmp_path)
    assert scores["told"] == []


def test_names_with_colons_and_long_names(run, identity, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ODD / "audio.mp4", "a:b.mp4")
    config = configs.read(run)
    with config.unlocked():
        config.eval.compare = False
    assert reconstruct_video(config, run, -1, "a:b.mp4", "out:put.mp4") == 0
    assert {"out:put.mp4", "out:put_scores.json"} <= set(os.listdir())
    assert len(list(iter_frames("out:put.mp4")[1])) == 40
    long = "ä" * 120 + ".mp4"
    with VideoWriter(long, 10) as writer:
        writer.add(np.zeros((16, 16, 3), np.uint8))
    assert Path(long).stat().st_size > 0


def test_pictures_too_small_for_ssim_are_refused_before_coding(run, identity, tmp_path):
    write_clip(tmp_path / "thin.mp4", np.zeros((3, 2, 16, 3), np.uint8))
    config = configs.read(run)
    with config.unlocked():
        config.eval.compare = True
    with pytest.raises(VidlatentError, match="eval.compare=false"):
        reconstruct_video(config, run, -1, str(tmp_path / "thin.mp4"), str(tmp_path / "o.mp4"))


def test_a_coded_file_keeps_the_times_of_its_frames(run, tmp_path):
    codec = vidlatent.load_codec(run)
    coded = codec.encode(ODD / "a.webp")
    assert coded.frames == 6
    np.testing.assert_allclose(coded.times, [0, 0.1, 0.3, 0.6, 0.7, 0.8], atol=1e-9)
    coded.save(tmp_path / "a.npz")
    assert Coded.load(tmp_path / "a.npz").times == coded.times
    frames = np.stack(list(iter_frames(str(ODD / "a.webp"))[1]))
    alone = codec.encode(frames)
    assert alone.times is None
    np.testing.assert_array_equal(alone.latent, coded.latent)
    with pytest.raises(VidlatentError, match=r"f32.tiff cannot be coded: unsupported"):
        codec.encode(ODD / "f32.tiff")


def test_what_cannot_be_restored_is_named(run, identity, tmp_path):
    for name, said in (("damaged.avif", "corrupt"), ("f32.tiff", "unsupported")):
        with pytest.raises(VidlatentError, match=f"--input=.*{name} cannot be restored: {said}"):
            restore(run, ODD / name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_picture_becomes_a_video_of_one_frame(run, identity, tmp_path):
    target, scores = restore(run, ODD / "g16.png", tmp_path)
    (frame,) = iter_frames(str(target))[1]
    assert scores["frames"] == 1 and scores["told"] == []
    ramp = frame[24, :, 1].astype(int)
    assert np.abs(ramp - np.linspace(0, 255, 64)).max() < 6
