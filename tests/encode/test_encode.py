"""``--mode=encode``: what is in the set, once and only once, whoever wrote it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.helpers.encode_cases import SHAPES, encode, files, write_run
from tests.helpers.tiny_tokenizers import MODELS
from vidlatent import config as configs
from vidlatent.config.defaults.encode import get_encode
from vidlatent.data import make_loader
from vidlatent.data.buckets import Bucket
from vidlatent.data.frame_rate import FrameRate
from vidlatent.data.index import Clip
from vidlatent.data.latent_set import read_header
from vidlatent.data.renderers.shapes import LABELS, make_shape_scene, render_shape
from vidlatent.data.sources.latents import LatentSource
from vidlatent.encode.plan import EncodeOptions, choose_shard_count, plan_windows
from vidlatent.errors import VidlatentError
from vidlatent.latents.pixels import from_pixels
from vidlatent.media.probe import ClipInfo
from vidlatent.models.load import model_of
from vidlatent.spec import FrameRule

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a small IV-VAE."""
    folder = tmp_path_factory.mktemp("encode") / "run"
    write_run(folder, configs.load("configs/ivvae.py"), MODELS["ivvae"])
    return folder


@pytest.fixture(scope="module")
def whole(run):
    """A set that nothing interrupted."""
    folder = run.parent / "whole"
    assert encode(run, folder) == 0
    return folder


@pytest.fixture(scope="module")
def tokenizer(run):
    """``encode(video [T, H, W, 3]) -> posterior`` of that run."""
    config = configs.read(run)
    model = model_of(config)
    from vidlatent.codec.codec import Codec

    params = Codec.from_workdir(run).params

    @jax.jit
    def coded(video):
        return model.apply({"params": params}, from_pixels(video[None]), method="encode")[0]

    return coded


def frames_of(window, length=13):
    scene = make_shape_scene(0, int(window.clip.rpartition("-")[2]), length)
    return render_shape(scene, window.first + np.arange(window.frames), 16, 16), scene.label


def test_every_window_is_there_once_with_the_latent_of_its_frames(whole, tokenizer):
    source = LatentSource(str(whole))
    places = {(w.clip, w.first, w.frames) for w in source.windows}
    # Windows of 5 frames at 0, 5 (the longest bucket's stride), pictures at 0, 5 and 10.
    wanted = {(f"scene-{i:06d}", first, 5) for i in range(11) for first in (0, 5)}
    wanted |= {(f"scene-{i:06d}", first, 1) for i in range(11) for first in (0, 5, 10)}
    assert places == wanted and len(source.windows) == len(wanted) == 55
    assert source.header.source["buckets"] == [[5, 16, 16], [1, 16, 16]]
    largest = 0.0
    for window in source.windows:
        video, label = frames_of(window)
        latent = source.read_arrays(window.name)["latent"]
        exact = np.asarray(tokenizer(video).mean[0])
        np.testing.assert_allclose(latent, exact, rtol=2**-10, atol=1e-6)
        largest = max(largest, float(np.abs(latent - exact).max()))
        assert window.label == window.caption == label
        assert window.start == window.first / 24
    header = source.header
    assert header.dtype == "float16" and header.label_names == LABELS and header.fps == 24
    assert 0 < header.rounding["rms"] <= header.rounding["max"] <= 1.1 * largest + 1e-6
    assert header.clips == 11 and not header.bad
    assert len(header.tokenizer) == len(header.weights) == 64


def test_the_moments_are_those_of_all_stored_values(whole):
    source = LatentSource(str(whole))
    values = np.concatenate(
        [
            source.read_arrays(window.name)["latent"].astype(np.float64).reshape(-1, 4)
            for window in source.windows
        ]
    )
    header = source.header
    assert header.n == len(values)
    np.testing.assert_allclose(header.mean, values.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(header.std, values.std(0), rtol=1e-12)


def test_two_processes_write_the_same_set(run, whole, tmp_path):
    for index in (1, 0):
        encode(run, tmp_path, encode_process_index=index, encode_process_count=2)
        assert (tmp_path / "header.json").exists() == (index == 0)
        if index == 1:
            with pytest.raises(VidlatentError, match="not finished"):
                read_header(tmp_path)
    assert files(tmp_path) == files(whole)


@pytest.mark.slow
def test_processes_of_one_program_share_the_work(run, tmp_path):
    """As ``JAX_NUM_PROCESSES`` has it; alone, one process makes the same set."""
    keys = [f"--config.{key}={value}" for key, value in SHAPES.items()]
    command = [sys.executable, "-m", "vidlatent.main", "--mode=encode", f"--workdir={run}", *keys]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    several = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    started = [
        subprocess.Popen(
            [*command, f"--output={tmp_path / 'two'}"],
            cwd=ROOT,
            env={**env, **several, "JAX_PROCESS_ID": str(index)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    texts = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], texts[0] + texts[1]
    subprocess.run([*command, f"--output={tmp_path / 'one'}"], cwd=ROOT, env=env, check=True)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    shards = [re.findall(r"shard (\d) of 4: ", text) for text in texts]
    assert shards == [["1", "3"], ["2", "4"]]


def test_killed_at_any_time_it_ends_as_if_it_had_not_been(run, whole, tmp_path):
    command = [sys.executable, ROOT / "tests/helpers/encode_cases.py", run, tmp_path]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([*command, "20"], cwd=ROOT, env=env, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    left = {path.name: path for path in tmp_path.iterdir()}
    assert "part-00000-of-00004.array_record" in left
    assert any(name.endswith(".partial") for name in left) and "header.json" not in left
    first = left["part-00000-of-00004.array_record"].stat().st_mtime_ns
    # As if it had been killed between the two files of a shard, and one had been cut off later.
    shutil.copy(whole / "part-00002-of-00004.json", tmp_path)
    encode(run, tmp_path)
    assert files(tmp_path) == files(whole)
    assert left["part-00000-of-00004.array_record"].stat().st_mtime_ns == first
    cut = tmp_path / "part-00003-of-00004.array_record"
    os.truncate(cut, 1000)
    os.remove(tmp_path / "header.json")
    encode(run, tmp_path)
    assert files(tmp_path) == files(whole)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    encode(run, tmp_path)  # nothing is left to do
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_another_set_is_not_mixed_in(run, whole):
    for changes, named in (
        ({"encode_dtype": "float32"}, "config.encode.dtype"),
        ({"encode_windows": "one"}, "windows"),
        ({"encode_shards": 3}, "config.encode.shards"),
        ({"seed": 1}, "config.data"),
    ):
        before = files(whole)
        with pytest.raises(VidlatentError, match=f"begun with other settings .*{named}"):
            encode(run, whole, **changes)
        assert files(whole) == before


def test_training_goes_on_bitwise_on_latents(run, whole):
    model = model_of(configs.read(run))
    data = configs.read(run).data.to_dict() | {
        "source": "latents",
        "path": str(whole),
        "buckets": ((5, 16, 16, 4), (1, 16, 16, 4)),
    }
    arguments = dict(split="train", rule=model.latent_spec.rule, seed=3, spec=model.latent_spec)
    with make_loader(data, **arguments) as loader:
        for _ in range(4):
            next(loader)
        state = loader.state()
        straight = [next(loader) for _ in range(4)]
    with make_loader(data, **arguments, start_step=state["step"]) as loader:
        loader.check_state(state)
        for batch in straight:
            again = next(loader)
            for name in ("latent", "label", "clip", "start"):
                assert batch[name].tobytes() == again[name].tobytes()


def test_draws_differ_and_depend_on_the_window_alone(run, tokenizer, tmp_path):
    common = dict(encode_draws=2, encode_dtype="float32", data_buckets="((5, 16, 16, 4),)")
    encode(run, tmp_path / "a", **common, encode_windows="one")
    encode(run, tmp_path / "b", **common, encode_windows="one", **{"encode_shards": 1})
    one, other = (LatentSource(str(tmp_path / name)) for name in "ab")
    assert one.header.rounding["max"] == 0 and len(one.windows) == 22
    apart = []
    for window in one.windows:
        latent = one.read_arrays(window.name)["latent"]
        np.testing.assert_array_equal(latent, other.read_arrays(window.name)["latent"])
        posterior = tokenizer(frames_of(window)[0])
        spread = np.exp(np.asarray(posterior.logvar[0]) / 2)
        apart.append(((latent - np.asarray(posterior.mean[0])) / spread).ravel())
    apart = np.concatenate(apart)
    assert abs(apart.mean()) < 5 / len(apart) ** 0.5 and abs(apart.std() - 1) < 0.1


@pytest.mark.slow
def test_content_texts_and_pictures_are_kept(tmp_path):
    run = tmp_path / "run"
    write_run(run, configs.load("configs/reducio_vae.py"), MODELS["reducio"])
    changes = {
        "data_buckets": "((8, 16, 16, 4),)",
        "encode_text": "reducio",
        "encode_text_network": "t5_tiny",
        "encode_tokenizer": "words",
        "encode_image": "clip_tiny",
        "encode_pictures": 2,
        "encode_dtype": "bfloat16",
    }
    encode(run, tmp_path / "set", **changes)
    source = LatentSource(str(tmp_path / "set"))
    texts = {}
    for window in source.windows:
        arrays = source.read_arrays(window.name)
        video, label = frames_of(window)
        assert arrays["content"].shape == (2, 16, 16, 3)  # one of each clip of four
        for number, frame in enumerate(arrays["content"]):
            assert any((frame == shown).all() for shown in video[4 * number : 4 * number + 4])
        assert arrays["text"].shape == (120, 16) and arrays["text_length"] == 4
        assert arrays["text"][:4].any() and not arrays["text"][4:].any()
        texts.setdefault(label, []).append(arrays["text"])
        assert arrays["image"].shape[-1] in (8, 16) and arrays["image"].ndim == 2
    assert all((row == rows[0]).all() for rows in texts.values() for row in rows)
    assert len({rows[0].tobytes() for rows in texts.values()}) == len(texts)
    assert (tmp_path / "set" / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    assert "t5_tiny_random0" in source.header.source["text"]


def test_mirrored_windows_are_those_of_mirrored_frames(run, tokenizer, tmp_path, monkeypatch):
    """At every third frame, with their labels; a training batch reads the same windows."""
    data = {
        "data_synthetic.kind": "paths",
        "data_synthetic.clips": 3,
        "data_buckets": "((5, 16, 16, 4),)",
        "data_frame_interval": 3,
        "encode_windows": "one",
        "encode_flip": "both",
        "encode_dtype": "float32",
        "encode_pictures": 6,
    }
    rows = []
    monkeypatch.setattr(
        "vidlatent.encode.pictures.contact_sheet", lambda found, *_, **__: rows.extend(found)
    )
    encode(run, tmp_path, **data)
    source = LatentSource(str(tmp_path))
    assert len(source.windows) == 6 and len({window.name for window in source.windows}) == 6
    header = source.header
    assert header.source["flip"] == "both" and header.source["data"]["frame_interval"] == 3
    assert header.fps == 8
    changes = {**SHAPES, **{key.replace("_", ".", 1): str(value) for key, value in data.items()}}
    keys = configs.read(run, changes).data.to_dict() | {"flip": False, "crop": "centre"}
    with make_loader(keys, split="whole", rule=FrameRule(1, 4), seed=0) as loader:
        batch = next(loader)
        pairs = zip(batch["clip"], batch["video"], strict=True)
        videos = {loader.index[c].path: v for c, v in pairs if c >= 0}
    # The sheet has each window's own frames above what is decoded.
    for window, original in zip(source.windows, rows[::2], strict=True):
        video = videos[window.clip]
        video = video[:, :, ::-1] if window.flip else video
        np.testing.assert_array_equal(original, video)
        exact = np.asarray(tokenizer(video).mean[0])
        np.testing.assert_allclose(
            source.read_arrays(window.name)["latent"], exact, rtol=1e-5, atol=1e-6
        )


def test_bad_clips_are_left_out_and_listed(run, tmp_path):
    from PIL import Image

    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(5):
        Image.fromarray(np.full((16, 16, 3), 40 * number, np.uint8)).save(folder / f"{number}.png")
    (folder / "3.txt").write_text("the third")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    data = {"data_source": "folder", "data_path": folder, "data_buckets": "((1, 16, 16, 4),)"}
    encode(run, tmp_path / "set", **data)
    source = LatentSource(str(tmp_path / "set"))
    assert [window.clip for window in source.windows] == [f"{i}.png" for i in range(5)]
    assert [window.caption for window in source.windows] == ["", "", "", "the third", ""]
    assert [row[:2] for row in source.header.bad] == [["broken.png", "unreadable"]]
    assert source.header.label_names == () and source.header.fps == 0
    # A clip that goes bad after it was looked at.
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    stamp = (folder / "2.png").stat()
    cache = json.loads((tmp_path / "set" / "clips.json").read_text())
    cache["clips"]["2.png"]["stamp"] = [stamp.st_size, stamp.st_mtime_ns]
    (tmp_path / "index.json").write_text(json.dumps(cache))
    encode(run, tmp_path / "again", **data, data_index_cache=tmp_path / "index.json")
    source = LatentSource(str(tmp_path / "again"))
    assert [window.clip for window in source.windows] == ["0.png", "1.png", "3.png", "4.png"]
    assert [row[0] for row in source.header.bad] == ["2.png", "broken.png"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"encode_windows": "some"}, "config.encode.windows='some': give one of one, all"),
        ({"encode_flip": "both"}, "labels of config.data.synthetic.kind='shapes' speak of"),
        ({"encode_windows_per_clip": 2}, "does nothing while windows is 'all'"),
        ({"encode_dtype": "float61"}, "did you mean 'float16'"),
        ({"encode_draws": -1}, "config.encode.draws=-1"),
        ({"encode_process_count": 2, "encode_process_index": 2}, "indices go from 0 to 1"),
        ({"encode_text": "wann"}, "encode.text='wann' is no text rule: did you mean 'wan'"),
        ({"encode_text": "wan"}, "config.networks.umt5_xxl is empty"),
        ({"encode_text": "wan", "encode_text_network": "umt5_tiny"}, "no tokenizer at"),
        ({"encode_image": "clip_vith14"}, "config.networks.clip_vith14 is empty"),
        ({"encode_image": "clip"}, "no network is called 'clip'"),
        ({"data_source": "latents"}, "is encoded already"),
        ({"data_buckets": "((6, 16, 16, 4),)"}, "config.data.buckets"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(run, tmp_path, changes, message):
    with pytest.raises(VidlatentError, match=message):
        encode(run, tmp_path / "set", **changes)
    assert not (tmp_path / "set").exists()
    with pytest.raises(VidlatentError, match="--output"):
        encode(run, "")


def test_shards_are_few_and_never_empty():
    assert choose_shard_count(0, 100, 1 << 20, 1) == 1
    assert choose_shard_count(0, 1000, 1 << 20, 1) == 8
    assert choose_shard_count(0, 100, 1, 4) == 4
    assert choose_shard_count(9, 5, 1, 1) == 5


def test_windows_at_another_rate(whole):
    clips = [Clip(ClipInfo("a", 49, 24.0, 16, 16, 2.0, False), "a")]
    bucket = [Bucket(5, 16, 16, 1)]

    def firsts(rate, **keys):
        places = plan_windows(clips, bucket, rate, EncodeOptions.of({**get_encode(), **keys}))
        assert {place[:2] for place in places} == {(0, 0)} and not any(p.flip for p in places)
        return [place.first for place in places]

    half = FrameRate(12.0)
    assert firsts(half, windows="all") == [0, 10, 20, 30, 40]
    assert firsts(half, windows="all", stride=20) == [0, 40]
    assert firsts(half) == [20]
    # Every third frame: a window spans 13 of the source's 49, and the next one begins after 15.
    assert firsts(FrameRate(0.0, 3), windows="all") == [0, 15, 30]
    assert firsts(FrameRate(12.0, 3), windows="all") == [0]  # at 4 a second it spans 25
    assert firsts(FrameRate(0.0, 3)) == [18]


def test_random_windows_depend_on_clip_and_seed_alone():
    def clip(name, frames=49):
        return Clip(ClipInfo(name, frames, 24.0, 16, 16, 2.0, False), name)

    def places(clips, seed=0, **keys):
        keys = {**get_encode(), "windows": "random", "windows_per_clip": 4, **keys}
        found = plan_windows(
            clips, [Bucket(5, 16, 16, 1)], FrameRate(0, 3), EncodeOptions.of(keys), seed
        )
        return [(clips[p.row].path, p.first, p.flip) for p in found]

    alone = places([clip("b")], flip="random")
    assert len({first for _, first, _ in alone}) == 4 and {flip for *_, flip in alone} <= {0, 1}
    assert all(0 <= first <= 36 for _, first, _ in alone)
    more = places([clip("a"), clip("b"), clip("c")], flip="random")
    assert [row for row in more if row[0] == "b"] == alone
    assert places([clip("b")], seed=1, flip="random") != alone
    # Flips leave the windows as they are; with 'both' each is there twice.
    assert [row[:2] for row in places([clip("b")])] == [row[:2] for row in alone]
    both = places([clip("b")], flip="both")
    assert both == [(*row[:2], flip) for row in alone for flip in (False, True)]
    # A clip with two possible starts has two windows.
    assert [first for _, first, _ in places([clip("b", 14)])] == [0, 1]
    many = places([clip(str(i)) for i in range(300)], flip="random", windows_per_clip=1)
    flips = [flip for *_, flip in many]
    assert 110 < sum(flips) < 190 and len({first for _, first, _ in many}) > 30
