"""Runs of a tiny latent upsampler: pairs to checkpoint to report, resumed, refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers.second_half import VIDEOS, digest, make_pairs, upsampler_config
from vidlatent import config as configs
from vidlatent.convert.run import convert
from vidlatent.data.renderers.shapes import make_shape_scene, render_shape
from vidlatent.data.sources.latents import LatentSource
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.run import evaluate_workdir
from vidlatent.evaluate.upsampler import interpolate
from vidlatent.latents.channels import follow_latents
from vidlatent.latents.space import Latents
from vidlatent.sample.run import generate_videos
from vidlatent.train.init_from import load_initial_params
from vidlatent.train.loop import train
from vidlatent.train.loss_terms import find_weight
from vidlatent.train.tasks.upsampler import UpsamplerTask

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tokenizer, and pairs of its latents of rendered shapes."""
    folder = tmp_path_factory.mktemp("upsampler")
    make_pairs(folder)
    return folder


def test_a_run_leaves_scores_and_goes_on_bitwise(places):
    config = upsampler_config(places)
    assert train(config, places / "straight") == 0
    folder = places / "straight" / "eval" / "step_4"
    stored = json.loads((folder / "scores.json").read_text())
    assert {"loss", "nearest", "bicubic", "clips"} == set(stored["scores"])
    assert stored["scores"]["nearest"] > 0 and (folder / "contact_sheet.png").stat().st_size > 500
    assert Latents.load(places / "straight").space.encoder
    assert train(upsampler_config(places, **{"train.stop_at": 2}), places / "cut") != 0
    assert train(upsampler_config(places), places / "cut") == 0
    assert digest(places / "cut", 4) == digest(places / "straight", 4)
    # Evaluated from its workdir alone: the same clips, the same scores.
    own, output = configs.read(places / "straight"), places / "scored"
    assert evaluate_workdir(own, places / "straight", -1, str(output)) == 0
    again = json.loads((output / "scores.json").read_text())
    assert again["step"] == 4 and len(again["by_clip"]) == len(stored["by_clip"])
    # The same numbers but for the order of sums, which is free between two compiled programs.
    for here, there in zip(again["by_clip"], stored["by_clip"], strict=True):
        assert here.pop("clip") == there.pop("clip")
        assert here == pytest.approx(there, rel=1e-5)
    sheets = [np.asarray(Image.open(at / "contact_sheet.png"), int) for at in (output, folder)]
    np.testing.assert_allclose(*sheets, atol=1)


def test_an_upsampler_makes_no_videos_by_itself(places):
    config = upsampler_config(places)
    with pytest.raises(VidlatentError, match="--workdir=BASE --config.sample.refine=REFINER"):
        generate_videos(config, places / "up", -1, "", "", "", "")
    options = {"from": "", "to": "x.safetensors", "start": "image", "verify": ""}
    with pytest.raises(VidlatentError, match="of the task 'upsampler'"):
        convert(config, places / "up", **options)
    with config.unlocked():
        config.task = "refiner"
    with pytest.raises(VidlatentError, match="up is a refiner.s.*--config.sample.refine=REFINER"):
        generate_videos(config, places / "up", -1, "", "", "", "")


def task_of(places, **keys):
    return UpsamplerTask(follow_latents(upsampler_config(places, **keys)))


def load_tokenizer(places, task):
    abstract = task.frozen["tokenizer"].abstract
    return load_initial_params(str(places / "tokenizer"), abstract, dict, family="fsae")


def test_pairs_from_videos_are_those_of_the_set(places):
    """The same clips: what the network is given is equal to 1e-6."""
    stored, made = task_of(places), task_of(places, **VIDEOS)
    frozen, key = {"tokenizer": load_tokenizer(places, made)}, jax.random.key(0)

    @jax.jit
    def read(task_video, task_latents):
        both = ((made, task_video, frozen), (stored, task_latents, {}))
        return [
            [read(*given, key) for read in (task.reader, task.reader.read_low)]
            for task, *given in both
        ]

    source = LatentSource(str(places / "pairs"))
    for window in source.windows[:3]:
        arrays = {name: value[None] for name, value in source.read_arrays(window.name).items()}
        scene = make_shape_scene(0, int(window.clip.rpartition("-")[2]), 5)
        frames = render_shape(scene, window.first + np.arange(5), 16, 16)[None]
        for ours, theirs in zip(*read({"video": frames}, arrays), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_eq_9(places):
    """The loss is the stated sum, and its gradient reaches the upsampler alone."""
    task = task_of(places, **VIDEOS)
    params = task.init(jax.random.key(0))["params"]
    frozen = {"tokenizer": load_tokenizer(places, task)}
    rng = np.random.default_rng(0)
    batch = {
        "video": jnp.asarray(rng.integers(0, 256, (2, 5, 16, 16, 3), dtype=np.uint8)),
        "mask": jnp.asarray([1.0, 1.0]),
    }
    loss, report = jax.jit(task.compute_loss)(params, batch, frozen, 0, 0)
    wanted = 1.0 * report["latent_l1"] + 0.1 * report["l1"]
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    key = jax.random.key(0)
    low, high = task.reader.read_low(batch, frozen, key), task.reader(batch, frozen, key)
    upsampled = task.model.apply({"params": params}, low)
    np.testing.assert_allclose(report["latent_l1"], jnp.abs(upsampled - high).mean(), rtol=1e-5)
    measured = jax.jit(task.eval_step)(params, frozen, batch)
    nearest = jnp.abs(interpolate(low, "nearest") - high).mean((1, 2, 3, 4))
    np.testing.assert_allclose(measured["nearest"], nearest, rtol=1e-5)
    gradients = jax.jit(jax.grad(lambda p: task.compute_loss(p, batch, frozen, 0, 0)[0]))(params)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["final_conv"]))


def test_lpips_rises_over_all_phases():
    """From 0.1 to 1 (eq. 9), without a jump between two phases."""
    ends = []
    for phase in (256, 512, 768, 1024):
        config = configs.load(f"configs/fsvideo_upsampler.py:paper,phase={phase}")
        weight = tuple(config.loss.lpips_vgg["weight"])
        assert weight[2] == config.train.steps
        ends += [float(find_weight(weight, step)) for step in (0, config.train.steps)]
        assert (config.upsampling.latent_weight, config.loss.l1) == (0.1, 0.1)
    np.testing.assert_allclose([ends[0], ends[-1]], [0.1, 1.0], rtol=1e-6)
    np.testing.assert_allclose(ends[1:-1:2], ends[2::2], rtol=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data.buckets": "((5,18,16,4),)"}, "5x18x16.*halves to 9x8.*use 5x16x16"),
        ({"generator.latent_channels": 8}, "latent_channels is 8.* have 4: set it to 4"),
        ({"upsampling.target": "video"}, "a latent set holds no frames"),
        ({"generator.norm": "batch"}, "config.generator.norm 'batch'"),
    ],
)
def test_what_does_not_fit_is_refused(places, keys, message):
    with pytest.raises(VidlatentError, match=message):
        task = task_of(places, **keys)
        jax.eval_shape(task.init, jax.random.key(0))


def test_a_set_without_pairs_is_refused(places):
    with pytest.raises(VidlatentError, match="latent_low.*config.encode.low=2"):
        train(upsampler_config(places, **{"data.path": places / "small"}), places / "refused")
