"""Metrics by name: right numbers, whatever the batches; names that say what they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.stub_tokenizer import Stub
from tests.helpers.tiny_tokenizers import QUICK
from vidlatent.config import get_defaults
from vidlatent.data.index import Clip
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.tokenizer import compile_eval_step, evaluate, tokenizer_eval_step
from vidlatent.media.probe import ClipInfo
from vidlatent.metrics import (
    METRICS,
    FrameMetric,
    MetricEntry,
    collect_networks,
    inception_score,
    lpips,
    make_metrics,
    psnr_reducio,
    resize_clip,
)
from vidlatent.metrics.frechet import frechet_distance
from vidlatent.metrics.inception_score import InceptionAccumulator
from vidlatent.parallel.mesh import make_mesh

WEIGHTS = get_defaults("any", "any").networks.to_dict()
NAMES = (
    "psnr_reducio",
    "lpips_tiny",
    "fvd_videomae_tiny",
    "fvd_videomae_tiny_crop_cut8",
    "is_c3d_tiny",
)
CLIPS, FRAMES = 5, 17
FVD = "fvd_videomae_tiny_random0_biased_bilinear32"
FVD_CUT = "fvd_videomae_tiny_random0_biased_crop32_cut8"


@pytest.fixture(scope="module")
def videos():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (CLIPS, FRAMES, 4, 4, 3))
    return np.kron(coarse, np.ones((1, 1, 4, 4, 1), int)).astype(np.uint8)


@pytest.fixture(scope="module")
def metrics():
    return make_metrics(NAMES, WEIGHTS)


class Dealt:
    """Batches of four as ``processes`` would deliver them: the rows of each, then of the next."""

    def __init__(self, videos, processes):
        self.videos, self.processes = videos, processes
        info = ClipInfo("", FRAMES, 24.0, 16, 16, 1.0, False)
        self.index = [Clip(info, "")] * len(videos)

    def __len__(self):
        return 2

    def __iter__(self):
        for first in (0, 4):
            at = np.concatenate([np.arange(p, 4, self.processes) for p in range(self.processes)])
            rows = first + at
            real = rows < len(self.videos)
            video = self.videos[np.where(real, rows, 0)].copy()
            video[~real] = 90  # what padding holds must not matter
            yield {
                "video": video,
                "mask": real.astype(np.float32),
                "clip": np.where(real, rows, -1).astype(np.int32),
                "start": np.zeros(4, np.float32),
            }


@pytest.fixture(scope="module")
def run(videos, metrics):
    mesh = make_mesh({"data": 2, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:2])
    params = jax.device_put(jnp.float32(0.9), jax.sharding.NamedSharding(mesh, jax.P()))
    with jax.set_mesh(mesh):
        step = compile_eval_step(tokenizer_eval_step(Stub()), mesh, params, metrics)

    def done(processes):
        with jax.set_mesh(mesh):
            return evaluate(step, params, Dealt(videos, processes), metrics=metrics)

    return {processes: done(processes) for processes in (1, 2)}


def test_the_number_of_processes_leaves_no_trace(run):
    one, two = run[1], run[2]
    assert one.scores["clips"] == CLIPS and one.definitions == two.definitions
    assert one.scores == pytest.approx(two.scores, rel=1e-5)
    frames = ("psnr", "ssim", "psnr_reducio_eps1e-8")
    assert all(one.scores[name] == two.scores[name] for name in frames), "bit for bit"


def test_values_against_direct_computation(run, videos, metrics):
    result = run[1]
    restored = videos / np.float32(127.5) - 1
    restored = np.rint(np.clip((restored * np.float32(0.9) + 1) * 127.5, 0, 255)).astype(np.uint8)
    networks = {score.asked: score.network for score in metrics}

    expected = np.asarray(lpips(networks["lpips_tiny"], videos, restored))
    assert result.scores["lpips_tiny_random0"] == pytest.approx(expected.mean(), rel=1e-3)
    found = [row["lpips_tiny_random0"] for row in result.clips]
    np.testing.assert_allclose(found, expected.mean(1), rtol=1e-3)
    found = psnr_reducio(videos, restored).mean()
    assert result.scores["psnr_reducio_eps1e-8"] == pytest.approx(float(found), rel=1e-5)

    mae = networks["fvd_videomae_tiny"]
    look = jax.jit(mae.apply, compiler_options=QUICK)
    features = [
        np.asarray(look(mae.params, resize_clip(clips, 32))["features"])
        for clips in (videos, restored)
    ]
    assert result.scores[FVD] == pytest.approx(frechet_distance(*features), rel=1e-3)
    about = result.definitions[FVD]
    assert about["n"] == CLIPS and about["clip_frames"] == about["clip_stride"] == [FRAMES]
    assert about["network"] == "videomae_tiny_random0" and about["resize"] == "bilinear to 32x32"

    features = []
    for clips in (videos, restored):
        parts = [clips[:, :8], clips[:, 8:16]]  # frame 16 fills no piece
        seen = resize_clip(np.concatenate(parts), 32, "crop")
        features.append(np.asarray(look(mae.params, seen)["features"]))
    assert result.scores[FVD_CUT] == pytest.approx(frechet_distance(*features), rel=1e-3)
    about = result.definitions[FVD_CUT]
    assert (about["n"], about["clip_frames"]) == (2 * CLIPS, [8])

    c3d = networks["is_c3d_tiny"]
    classify = jax.jit(c3d.apply, compiler_options=QUICK)
    rows = [
        classify(c3d.params, jnp.asarray(clips[:, :16] / np.float32(127.5) - 1))["probabilities"]
        for clips in (videos, restored)
    ]
    name = "is_c3d_tiny_random0_splits1"
    expected = inception_score(rows[1], 1)
    assert result.scores[name] == pytest.approx(expected.mean, rel=1e-4)
    expected = inception_score(rows[0], 1)
    assert result.scores[f"{name}_of_originals"] == pytest.approx(expected.mean, rel=1e-4)


def test_inception_rows_are_brought_into_one_order():
    rng = np.random.default_rng(0)
    seen = rng.dirichlet(np.ones(4), (2, 20, 1)).astype(np.float32)
    clips, starts = np.arange(20) // 2, np.arange(20) % 2
    results = []
    for order in (np.arange(20), rng.permutation(20)):
        tally = InceptionAccumulator()
        for side in range(2):
            tally.add(side, seen[side, order], np.ones(20), clips[order], starts[order])
            tally.add(side, seen[side], np.zeros(20), clips + 50, starts)
        results.append(tally.result("is"))
    assert results[0] == results[1] and "is_splits10" in results[0][0]
    for splits, used in ((4, 4), (11, 1)):  # of 20 windows
        tally = InceptionAccumulator(splits)
        for side in range(2):
            tally.add(side, seen[side], np.ones(20), clips, starts)
        found, about = tally.result("is")
        assert f"is_splits{used}" in found and about["splits"] == used
        rows = seen[1][np.lexsort((starts, clips)), 0]
        assert found[f"is_splits{used}"] == inception_score(rows, used).mean
    with pytest.raises(VidlatentError, match="config.eval.is_splits is 0"):
        make_metrics(("is_c3d_tiny",), WEIGHTS, is_splits=0)


def test_names_and_networks():
    found = make_metrics(
        (
            "lpips_vgg",
            "lpips_alex",
            "lpips_reducio",
            "fvd_videomae",
            "fvd_videomae_cut16",
            "ssim_reducio",
        ),
        WEIGHTS,
        random_networks=True,
    )
    assert [score.name for score in found] == [
        "lpips_tiny_random0",
        "lpips_tiny_random0_unit_range",
        FVD,
        f"{FVD}_cut16",
        "ssim_reducio_pooled256",
    ]
    assert set(collect_networks(found)) == {"lpips_tiny", "videomae_tiny"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lpips_vgg", "config.networks.lpips_vgg is empty.*vidlatent.convert.networks"),
        ("fvd_videomae", "config.networks.videomae_g is empty"),
        ("is_c3d", "config.networks.c3d_ucf101 is empty"),
        ("lpips_vg", "did you mean 'lpips_vgg'"),
        ("fvd_i3d_cut", "unknown metric"),
    ],
)
def test_what_is_missing_is_said(name, words):
    with pytest.raises(VidlatentError, match=words):
        make_metrics((name,), WEIGHTS)


def test_clips_too_short_for_their_pieces(metrics):
    score = next(s for s in metrics if s.asked == "is_c3d_tiny")
    video = np.zeros((1, 9, 16, 16, 3), np.uint8)
    with pytest.raises(VidlatentError, match="is_c3d_tiny looks at 16 frames, and clips of 9"):
        score.measure({"c3d_tiny": score.network.params}, video, video)


@pytest.fixture
def own_metrics(monkeypatch):
    """Two metrics that somebody registers; the table is put back afterwards."""
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))

    def brightness(video, restored):
        return jnp.mean(restored, (2, 3, 4)) - jnp.mean(video, (2, 3, 4))

    def make(request):
        return FrameMetric(request, f"brightness{request.ending}", brightness, pixels="8 bits")

    about = dict(unit="levels", better="lower")
    METRICS.register(
        "brightness", MetricEntry(make, "change of the mean", endings="_v[12]", **about)
    )

    def make_lpips(request):
        return FrameMetric(request, f"mine_{request.network.label}", lpips)

    METRICS.register("mine", MetricEntry(make_lpips, "LPIPS again", network="lpips_alex"))


def test_a_registered_metric_is_scored_like_our_own(own_metrics, videos):
    metrics = make_metrics(("brightness", "mine"), WEIGHTS, random_networks=True)
    mesh = make_mesh({"data": 1, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:1])
    params = jax.device_put(jnp.float32(0.9), jax.sharding.NamedSharding(mesh, jax.P()))
    with jax.set_mesh(mesh):
        step = compile_eval_step(tokenizer_eval_step(Stub()), mesh, params, metrics)
        result = evaluate(step, params, Dealt(videos, 1), metrics=metrics)
    restored = np.float32(videos) / np.float32(127.5) - 1
    restored = np.rint(np.clip((restored * np.float32(0.9) + 1) * 127.5, 0, 255))
    expected = restored.mean() - np.float64(videos).mean()
    assert result.scores["brightness"] == pytest.approx(expected, rel=1e-3)
    assert result.scores["mine_lpips_tiny_random0"] > 0
    about = result.definitions["brightness"]
    said = {name: about[name] for name in ("asked_as", "definition", "unit", "better", "pixels")}
    assert tuple(said.values()) == ("brightness", "change of the mean", "levels", "lower", "8 bits")


def test_endings_of_a_registered_metric(own_metrics):
    (metric,) = make_metrics(("brightness_v2",), {})
    assert metric.name == "brightness_v2" and metric.asked == "brightness_v2"
    with pytest.raises(VidlatentError, match="'brightness_v3': did you mean 'brightness'"):
        make_metrics(("brightness_v3",), {})
