"""Scoring: sums over batches are those over clips, padding never counts, latents are watched."""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers.stub_tokenizer import SPEC, Stub
from vidlatent.config import load
from vidlatent.evaluate.latent_statistics import LatentStatistics
from vidlatent.evaluate.running_scores import RunningScores
from vidlatent.evaluate.tokenizer import compile_eval_step, evaluate, tokenizer_eval_step
from vidlatent.evaluate.tokenizer_report import write_evaluation
from vidlatent.metrics import PRESERVATION, gride
from vidlatent.parallel.compilation import fusion_emitters
from vidlatent.parallel.mesh import make_mesh


class Batches:
    """A finite loader over given clips, as the validation loader pads them."""

    def __init__(self, videos, sources, size):
        self.videos, self.sources, self.size = videos, sources, size
        self.index = [types.SimpleNamespace(path="a.mp4", fps=24.0)] * (max(sources) + 1)

    def __len__(self):
        return -(-len(self.videos) // self.size)

    def __iter__(self):
        for first in range(0, len(self.videos), self.size):
            rows = np.arange(first, first + self.size)
            real = rows < len(self.videos)
            at = np.where(real, rows, 0)
            video = self.videos[at].copy()
            video[~real] = 255  # what padding holds must not matter
            yield {
                "video": video,
                "mask": real.astype(np.float32),
                "clip": np.where(real, np.asarray(self.sources)[at], -1).astype(np.int32),
                "start": rows.astype(np.float32),
            }


@pytest.fixture(scope="module")
def videos():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (7, 9, 4, 4, 3))
    return np.kron(coarse, np.ones((1, 1, 4, 4, 1), int)).astype(np.uint8)


SOURCES = [0, 1, 2, 2, 3, 4, 5]


# Sums in one order for every batch size; the tests' own quick compilation has several.
EXACT = {"xla_backend_optimization_level": 2, **fusion_emitters(True)}


def run(videos, size, gride_clips=0, extras=True):
    mesh = make_mesh({"data": 2, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:2])
    params = jax.device_put(jnp.float32(0.9), jax.sharding.NamedSharding(mesh, jax.P()))
    step = tokenizer_eval_step(Stub(), preservation=extras, latent=extras)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=EXACT))
        compiled = compile_eval_step(step, mesh, params)
    with jax.set_mesh(mesh):
        return evaluate(
            compiled,
            params,
            Batches(videos, SOURCES, size),
            3,
            spec=SPEC,
            latents=LatentStatistics(SPEC, gride_clips) if extras else None,
        )


def test_batches_and_padding_do_not_matter(videos):
    a, b = run(videos, 2, 9), run(videos, 4, 9)
    assert a.scores == pytest.approx(b.scores, rel=1e-6) and a.scores["clips"] == 7
    for key, values in a.group_positions.items():
        # A margin is a small difference of scores near 1, which are float32.
        assert values == pytest.approx(b.group_positions[key], rel=1e-6, abs=1e-7)
    left, right = a.latents.statistics(), b.latents.statistics()
    assert left["clips"] == right["clips"] == 7
    for row, other in zip(left["by_channel"], right["by_channel"], strict=True):
        assert row == pytest.approx(other, rel=1e-9)
    assert a.latents.intrinsic_dimension() == b.latents.intrinsic_dimension()


def test_values_against_numpy(videos):
    result = run(videos, 2)
    x = videos.astype(np.float64) / 127.5 - 1
    y = np.rint(np.clip((x * np.float32(0.9) + 1) * 127.5, 0, 255)) / 127.5 - 1
    expected = 1 - np.abs(x - y).sum() / np.abs(x).sum()
    assert result.scores[PRESERVATION] == pytest.approx(expected, rel=1e-4)

    by_frame = result.positions["psnr"]
    groups = result.group_positions
    assert groups["n"] == [14] * 4
    expected = [np.mean([by_frame[1 + place], by_frame[5 + place]]) for place in range(4)]
    assert groups["psnr"] == pytest.approx(expected)
    assert groups["psnr_max_margin"] == pytest.approx(max(expected) - min(expected))

    latents = x[:, [0, 1, 5], ::4, ::4]
    statistics = result.latents.statistics()
    assert statistics["n"] == latents[..., 0].size
    means = [row["mean"] for row in statistics["by_channel"]]
    np.testing.assert_allclose(means, latents.mean((0, 1, 2, 3)), atol=1e-6)
    assert statistics["std"] == pytest.approx(latents.std(), rel=1e-5)
    np.testing.assert_allclose(
        [picture.latent for picture in result.pictures],
        [latents[int(picture.label.split()[-2][:-2])] for picture in result.pictures],
        atol=1e-5,
    )


def test_intrinsic_dimension_takes_each_source_once(videos):
    rows = run(videos, 4, 100).latents.intrinsic_dimension()
    latents = (videos / 127.5 - 1)[[0, 1, 2, 4, 5, 6]][:, [0, 1, 5], ::4, ::4].astype(np.float32)
    assert [(row["points"], row["neighbours"]) for row in rows] == [
        ("videos 3x4x4x3", "1, 2"),
        ("videos 3x4x4x3", "2, 4"),
        ("first frames 1x4x4x3", "1, 2"),
        ("first frames 1x4x4x3", "2, 4"),
    ]
    assert all(row["n"] == 6 for row in rows)
    expected = gride(latents.reshape(6, -1)) + gride(latents[:, 0].reshape(6, -1))
    assert [r["dimension_gride"] for r in rows] == pytest.approx(
        [scale.dimension for scale in expected], rel=1e-4
    )
    assert {row["n"] for row in run(videos, 4, 4).latents.intrinsic_dimension()} == {4}
    assert not run(videos, 4, 0).latents.intrinsic_dimension()


def test_images_have_no_groups(videos):
    result = run(videos[:, :1], 4, 9)
    assert result.group_positions == {}
    assert {r["points"] for r in result.latents.intrinsic_dimension()} == {"images 1x4x4x3"}


def test_evaluations_while_training_do_without(videos):
    result = run(videos, 4, extras=False)
    assert PRESERVATION not in result.scores and result.latents is None
    assert result.pictures[0].latent is None
    assert result.group_positions["n"] == [14] * 4


class Identity(Stub):
    """Its reconstruction is the original, bit for bit."""

    def apply(self, variables, video):
        return super().apply({"params": 1.0}, video)


def test_perfect_frames_and_small_frames_have_numbers_or_no_score(videos, tmp_path):
    mesh = make_mesh({"data": 1, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:1])
    params = jax.device_put(jnp.float32(1), jax.sharding.NamedSharding(mesh, jax.P()))
    # Of one colour, and smaller than the window of SSIM.
    still = np.broadcast_to(videos[:, :1, :1, :1], (7, 9, 8, 8, 3))
    with jax.set_mesh(mesh):
        compiled = compile_eval_step(tokenizer_eval_step(Identity()), mesh, params)
        result = evaluate(compiled, params, Batches(still, SOURCES, 4), 0, spec=SPEC)
    assert result.scores["psnr"] == result.scores["psnr_constant_colour"] == 100.0
    assert result.definitions["psnr"]["ceiling"].startswith("100 dB")
    assert "ssim" not in result.scores and "ssim" not in result.definitions
    assert all(row["ssim"] is None for row in result.clips)
    assert result.group_positions["psnr"] == [100.0] * 4 and "ssim" not in result.group_positions
    config = load("tests/tiny.py")
    with config.unlocked():
        config.data.fps, config.data.buckets = 12.0, ((9, 8, 8, 2),)
    write_evaluation(result, tmp_path, config=config, step=3, workdir=tmp_path)

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    found = json.loads((tmp_path / "scores.json").read_text(), parse_constant=refuse)
    assert found["by_frame_position"]["ssim"] == [None] * 9


def test_frames_without_a_number_are_counted_out():
    index = [types.SimpleNamespace(path="a.mp4")] * 2
    running = RunningScores(index, ())
    measured = {name: np.float32([[20, 30], [40, 50]]) for name in ("psnr", "psnr_constant_colour")}
    measured["ssim"] = np.float32([[np.nan, 0.5], [np.inf, np.nan]])
    measured |= {"mask": np.ones(2), "clip": np.arange(2), "start": np.zeros(2)}
    running.add(measured, (2, 16, 16))
    scores, about = running.results()
    assert (scores["psnr"], scores["ssim"], scores["clips"]) == (35.0, 0.5, 2)
    assert about["psnr"]["n"] == 2 and "frames_without_a_number" not in about["psnr"]
    assert about["ssim"]["n"] == 1 and about["ssim"]["frames_without_a_number"] == 3
    assert running.positions()["ssim"] == [None, 0.5]


def test_files(videos, tmp_path):
    config = load("tests/tiny.py")
    with config.unlocked():
        config.data.fps, config.data.buckets = 12.0, ((9, 32, 32, 2),)
    result = run(videos, 4, 9)
    terms = {
        "train/l1": 0.5,
        "train/discriminator/loss": 2.0,
        "train/bad_clips": 1,
        "val/lpips_x": 0.25,
    }
    lines = (json.dumps({"step": step, **terms}) for step in (1, 2))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    write_evaluation(result, tmp_path, config=config, step=3, workdir=tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {"by_group_position", "latent", "intrinsic_dimension"} <= scores.keys()
    windows = scores["windows"]
    assert windows["frames_height_width"] == [[9, 32, 32]] and windows["frame_stride"] == 1
    assert windows["frames_per_second"] == 12.0 and "cut in the middle" in windows["resize"]
    assert len(scores["latent"]["by_channel"]) == 3
    page = (tmp_path / "report.html").read_text()
    for words in ("place in the frame group", "max margin", "Intrinsic dimension", PRESERVATION):
        assert words in page, words
    for curve, shown in zip(terms, (True, True, False, True), strict=True):
        assert (f"<figcaption>{curve}</figcaption>" in page) == shown, curve
    sheet = Image.open(tmp_path / "latent_channels_0.png")
    assert sheet.width > 200 and sheet.height > 300
