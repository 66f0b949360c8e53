"""Protocols: every clip of a folder once, right numbers, the paper's own in their columns."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers.tiny_tokenizers import QUICK, clip, tokenizer
from vidlatent.codec.codec import Codec
from vidlatent.codec.options import CodecOptions
from vidlatent.config import get_defaults
from vidlatent.errors import VidlatentError
from vidlatent.evaluate import clips
from vidlatent.evaluate.protocols import run as protocols_run
from vidlatent.evaluate.protocols.definitions import PROTOCOLS, Protocol, ProtocolMetric
from vidlatent.evaluate.protocols.paper_tables import PaperRow
from vidlatent.evaluate.protocols.report import write_protocol_report
from vidlatent.evaluate.tokenizer import tokenizer_eval_step
from vidlatent.media.decode import read_window
from vidlatent.media.errors import Limits
from vidlatent.media.write import write_video
from vidlatent.metrics import lpips, make_metrics, resize_clip
from vidlatent.metrics.frechet import frechet_distance
from vidlatent.models.tokenizers.base import Posterior
from vidlatent.parallel.mesh import make_mesh
from vidlatent.spec import FrameRule, LatentSpec

LENGTHS = {"a": 12, "b": 7, "c": 10, "d": 4, "sub/e": 11}
FVD = "fvd_videomae_tiny_random0_biased_bilinear32"


class Stub:
    """Dims a chunk more, the brighter its first frame: its chunks can be told from the output."""

    latent_spec = LatentSpec("stub", channels=3, t=4, h=4, w=4, rule=FrameRule(1, 4))

    def apply(self, variables, video):
        first = video[:, :1].mean(axis=(2, 3, 4), keepdims=True)
        latent = video[:, ::4, ::4, ::4]
        return video * (variables["params"] - 0.2 * first), Posterior(latent)


PAPER = (
    PaperRow(
        "Ours 4x", "Nowhere, 2 clips", {"PSNR": 31.25, "LPIPS": 7.5}, own=True, t=4, channels=3
    ),
    PaperRow(
        "Ours 8x", "Nowhere, 2 clips", {"PSNR": 29.5, "rFVD": 61.0}, own=True, t=8, channels=3
    ),
    PaperRow("Theirs", "Nowhere, 2 clips", {"PSNR": 27.75}, note="copied | doubtful"),
)
TINY = Protocol(
    name="tiny_table",
    source="A paper, table 9",
    frames=(10, 5),
    chunk=5,
    size=(16, 16),
    place=0.0,
    metrics=(
        ProtocolMetric("psnr", "PSNR"),
        ProtocolMetric("lpips_vgg", "LPIPS", 100.0),
        ProtocolMetric("lpips_alex", "LPIPS", 100.0),
        ProtocolMetric("fvd_videomae", "rFVD"),
        ProtocolMetric("fvd_i3d", "rFVD"),
    ),
    paper_table=PAPER,
    headline="Ours 8x",
    open=("frames: the first",),
    resize="bilinear",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips")
    (path / "sub").mkdir()
    for seed, (name, frames) in enumerate(LENGTHS.items()):
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (frames, 4, 6, 3))
        video = np.kron(coarse, np.ones((1, 8, 8, 1), int)).astype(np.uint8)
        write_video(path / f"{name}.mp4", video, 24.0)
    return path


@pytest.fixture(scope="module")
def config(folder):
    if "tiny_table" not in PROTOCOLS.names():
        PROTOCOLS.register("tiny_table", TINY)
    config = get_defaults("stub", "demo")
    config.data.source, config.data.path = "samples", str(folder)
    config.eval.protocol, config.eval.random_networks = "tiny_table", True
    config.eval.leave_out = ("fvd_i3d",)
    return config


def carry_out(config, devices=1):
    sizes = {"data": devices, "fsdp": 1, "context": 1, "tensor": 1}
    mesh = make_mesh(sizes, jax.devices()[:devices])
    params = jax.device_put(jnp.float32(0.8), jax.sharding.NamedSharding(mesh, jax.P()))
    with jax.set_mesh(mesh):
        return protocols_run.run_protocol(config, Stub(), mesh, lambda: (params, 7))


@pytest.fixture(scope="module")
def result(config):
    return carry_out(config)


def windows(folder):
    """{clip: (original, reconstruction)}, by hand."""
    found = {}
    for name, frames in LENGTHS.items():
        if frames < 5:
            continue
        path, count = str(folder / f"{name}.mp4"), 10 if frames >= 10 else 5
        keys = (16, 16), (0.5, 0.5), Limits(10**8, 20.0)
        video = read_window(path, 0.0, count, 0.0, *keys, resize="bilinear")
        parts = np.float32(video.reshape(-1, 5, 16, 16, 3)) / np.float32(127.5) - 1
        dark = np.float32(0.8) - np.float32(0.2) * parts[:, :1].mean((2, 3, 4), keepdims=True)
        pixels = np.rint(np.clip((parts * dark + 1) * 127.5, 0, 255))
        found[f"{name}.mp4"] = video, pixels.reshape(video.shape).astype(np.uint8)
    return found


def test_numbers_equal_direct_computation(result, folder):
    expected = windows(folder)
    rows = {row["clip"]: row for row in result.evaluation.clips}
    assert set(rows) == set(expected) and result.found == 4
    assert [bad[:2] for bad in result.bad] == [("d.mp4", "too_short")]
    for name, (video, restored) in expected.items():
        error = np.square(np.float64(video) - restored).mean((1, 2, 3))
        found = rows[name]
        assert found["psnr"] == pytest.approx((10 * np.log10(255**2 / error)).mean(), abs=0.02)
        assert found["size"] == f"{len(video)}x16x16" and found["start"] == 0
    scores = result.evaluation.scores
    assert scores["psnr"] == pytest.approx(np.mean([row["psnr"] for row in rows.values()]))

    weights = get_defaults("any", "any").networks.to_dict()
    scored = make_metrics(("lpips_tiny", "fvd_videomae_tiny"), weights)
    perceptual, mae = (score.network for score in scored)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def direct(*pair):
        features = [mae.apply(mae.params, resize_clip(clip, 32))["features"] for clip in pair]
        return lpips(perceptual, *pair).mean(), jnp.concatenate(features)

    means, features = zip(*(direct(v[None], r[None]) for v, r in expected.values()), strict=True)
    assert scores["lpips_tiny_random0"] == pytest.approx(np.mean(means), rel=1e-2)
    originals, restored = np.moveaxis(np.stack(features), 1, 0)
    assert scores[FVD] == pytest.approx(frechet_distance(originals, restored), rel=2e-2)
    about = result.evaluation.definitions[FVD]
    assert about["n"] == 4 and about["clip_frames"] == about["clip_stride"] == [5, 10]


def test_devices_leave_no_trace(result, config):
    config = config.copy_and_resolve_references()
    config.eval.leave_out = ("fvd_i3d", "fvd_videomae", "lpips_vgg", "lpips_alex")
    other = carry_out(config, devices=4)
    assert other.evaluation.scores["psnr"] == result.evaluation.scores["psnr"]
    assert {row["clip"] for row in other.evaluation.clips} == {
        r["clip"] for r in result.evaluation.clips
    }
    for word, picture in result.pictures.items():
        np.testing.assert_array_equal(other.pictures[word].original, picture.original)
        np.testing.assert_array_equal(other.pictures[word].reconstruction, picture.reconstruction)


def test_best_median_and_worst(result, folder):
    assert list(result.pictures) == ["best", "median", "worst"]
    ranked = sorted(result.evaluation.clips, key=lambda row: -row["psnr"])
    expected = windows(folder)
    for word, place in (("best", 0), ("median", 1), ("worst", 3)):
        picture, row = result.pictures[word], ranked[place]
        assert picture.label.startswith(row["clip"])
        np.testing.assert_array_equal(picture.original, expected[row["clip"]][0])
        apart = np.abs(np.int32(picture.reconstruction) - expected[row["clip"]][1])
        assert apart.max() <= 1


def test_files(result, config, tmp_path):
    write_protocol_report(result, tmp_path, config)
    names = {f"{word}.{kind}" for word in ("best", "median", "worst") for kind in ("png", "mp4")}
    assert {path.name for path in tmp_path.iterdir()} == names | {
        "tiny_table.json",
        "tiny_table.md",
        "report.html",
    }
    assert Image.open(tmp_path / "worst.png").width > 200
    about = json.loads((tmp_path / "tiny_table.json").read_text())
    assert about["measured"]["scores"] == result.evaluation.scores
    assert about["measured"]["clips"] == about["measured"]["clips_found"] == 4
    assert about["left_out"]["scores"] == ["fvd_i3d"]
    assert about["protocol"]["not_stated_by_the_paper"] == ["frames: the first"]
    assert "bilinearly, with antialiasing" in about["protocol"]["resize"]
    assert "31.25" not in json.dumps({k: v for k, v in about.items() if k != "paper"})

    table = (tmp_path / "tiny_table.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert lines[0].split(" | ")[1:] == [
        "measured here (4 clips)",
        "paper's column",
        "paper: Ours 4x, Nowhere, 2 clips |",
    ]
    psnr = result.evaluation.scores["psnr"]
    assert lines[2] == f"| psnr | {psnr:.2f} | PSNR | 31.25 |"
    # Beside what an untrained network says stands nothing of the paper.
    assert lines[3].startswith("| lpips_tiny_random0 x 100 | ") and lines[3].endswith(
        "| LPIPS |  |"
    )
    assert lines[4].startswith(f"| {FVD} | ") and lines[4].endswith("| rFVD |  |")
    assert "copied \\| doubtful" in table and "mean nothing" in table and "d.mp4" in table
    page = (tmp_path / "report.html").read_text()
    for words in ("Best clip by PSNR", "Median clip", "Worst clip", "paper: Ours 4x", "frames"):
        assert words in page, words
    assert page.count("data:image/png;base64,") == 3 and page.count("data:video/mp4") == 3


def test_missing_weights_are_told_before_a_clip_is_opened(config, monkeypatch):
    def opened(*arguments, **keywords):
        raise AssertionError("a clip was opened")

    monkeypatch.setattr(clips, "make_index", opened)
    config = config.copy_and_resolve_references()
    config.eval.random_networks = False
    with pytest.raises(VidlatentError, match="config.networks.lpips_vgg is empty.*convert|tools"):
        carry_out(config)


def test_mistakes_are_told(config):
    config = config.copy_and_resolve_references()
    config.eval.leave_out = ("fvd_i3",)
    with pytest.raises(VidlatentError, match="leave_out: tiny_table has no metric.*'fvd_i3d'"):
        carry_out(config)
    config.eval.protocol = "fsae_table"
    with pytest.raises(VidlatentError, match="did you mean 'fsae_table2'"):
        carry_out(config)
    config.eval.protocol = "reducio_main"
    with pytest.raises(VidlatentError, match="chunks of 16 frames at 256x256: 16 frames do not"):
        carry_out(config)


def test_some_of_the_clips(config):
    config = config.copy_and_resolve_references()
    config.eval.leave_out = tuple(m.name for m in TINY.metrics if m.name != "psnr")
    config.eval.clips = 2
    few = carry_out(config)
    assert [row["clip"] for row in few.evaluation.clips] == ["c.mp4", "a.mp4"][::-1]
    assert few.found == 4 and list(few.pictures) == ["best", "worst"]


@pytest.mark.parametrize("name", [n for n in PROTOCOLS.names() if not n.startswith("tiny_")])
def test_the_papers_protocols_are_whole(name):
    protocol = PROTOCOLS.get(name)
    coded = [len(range(0, frames, protocol.keep)) for frames in protocol.frames]
    assert protocol.name == name and all(count % protocol.chunk == 0 for count in coded)
    assert protocol.keep == 1 or len(coded) == 1
    headings = {heading for row in protocol.paper_table for heading in row.values}
    assert {m.heading for m in protocol.metrics} - {""} <= headings
    assert all(": " in line for line in protocol.open)
    # The only one of the papers that tells its rule, by its code.
    assert protocol.resize == ("bilinear" if name.startswith("reducio") else "area")
    other = LatentSpec("x", channels=99, t=1, h=1, w=1, rule=FrameRule(1, 1))
    assert 1 <= len(protocol.find_comparable(other)) <= 4
    assert all(row.own for row in protocol.find_comparable(other))


class Drawn(Stub):
    """A posterior with some spread, decoded as it is."""

    def apply(self, variables, value, condition=None, method=None):
        if method == "encode":
            return Posterior(value, jnp.zeros_like(value)), None
        return value, None


def test_draws_depend_on_the_clip_alone():
    step = jax.jit(tokenizer_eval_step(Drawn(), draw=3, chunk=5))
    video = np.full((3, 10, 16, 16, 3), 128, np.uint8)

    def restored(clips):
        batch = {"video": video, "clip": np.int32(clips), "start": np.zeros(3, np.float32)}
        return np.asarray(step(0.0, batch)["reconstruction"])

    one, other = restored([4, 5, 6]), restored([6, 9, 4])
    np.testing.assert_array_equal(one[0], other[2])
    np.testing.assert_array_equal(one[2], other[0])
    assert (one[0] != one[1]).mean() > 0.5 and (one[0, :5] != one[0, 5:]).mean() > 0.5


@pytest.mark.slow
def test_tiles_inside_an_eval_step_are_the_codecs():
    """Reducio's published tiles inside the eval step give what the codec gives with them."""
    model, params = tokenizer("reducio")
    keys = {"tile_pixels": 8, "tile_overlap_pixels": 4}
    (way,) = (way for way in model.list_space_ways() if way.name == "tiles_published")
    coder = way.make(CodecOptions.of(**keys))
    batch = {"video": clip(4, 16, 16)[None], "clip": np.zeros(1, int), "start": np.zeros(1)}
    step = jax.jit(tokenizer_eval_step(model, chunk=4, coder=coder), compiler_options=QUICK)
    tiled = np.asarray(step(params, batch)["reconstruction"])[0].astype(int)
    codec = Codec(model, params, CodecOptions.of(space="tiles_published", **keys))
    expected = np.concatenate(list(codec.decode_stream(codec.encode_stream(batch["video"][0]))))
    assert np.abs(tiled - expected).max() <= 1
    whole = jax.jit(tokenizer_eval_step(model), compiler_options=QUICK)(params, batch)
    assert np.abs(tiled - np.asarray(whole["reconstruction"])[0]).max() > 1


def test_a_protocol_cuts_its_own_model_and_codes_others_whole():
    model, _ = tokenizer("reducio")
    protocol = PROTOCOLS.get("reducio_512")
    assert protocols_run._make_coder(model, protocol).cut_into_tiles(512, 512) == (4, (320, 320))
    assert protocols_run._make_coder(tokenizer("fsae")[0], protocol) is None
    assert protocols_run._make_coder(model, PROTOCOLS.get("reducio_main")) is None


def test_a_draw_without_noise_is_the_mean(monkeypatch):
    model, params = tokenizer("reducio")
    batch = {
        "video": np.stack([clip(4, 16, 16, seed) for seed in range(2)]),
        "clip": np.arange(2, dtype=np.int32),
        "start": np.zeros(2, np.float32),
    }

    def restored(draw, chunk):
        step = jax.jit(tokenizer_eval_step(model, draw=draw, chunk=chunk), compiler_options=QUICK)
        return np.asarray(step(params, batch)["reconstruction"]).astype(int)

    means = restored(None, 0)
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, dtype: jnp.zeros(shape, dtype))
    assert np.abs(restored(0, 4) - means).max() <= 1
