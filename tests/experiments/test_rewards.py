"""The proof with rewards: what its arms share, and what is measured on its videos."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import rewards
from experiments.chance_reward import Chance
from experiments.design import Run, hash_design, resolve
from vidlatent import config as configs
from vidlatent.data.renderers.shapes import make_shape_scene, render_shape
from vidlatent.rewards import RewardInputs


@pytest.mark.parametrize("size", rewards.SIZES)
def test_arms_differ_from_the_control_in_what_they_say(size):
    design = rewards.build(size, Path("data"))
    found = {arm.name: resolve(Run(arm, {}, 0), "") for arm in design.arms}
    control = found["grpo_chance"]
    for arm in design.arms:
        config = found[arm.name]
        assert config.train.init_from == "data/base" and arm.steps == design.arms[0].steps
        for section in ("sampler", "data", "generator", "optim"):
            assert config[section] == control[section]
        stage, _, alone = rewards._ARMS[arm.name]
        if stage == "grpo" and arm is not design.arms[0]:
            changed = configs.differences(*map(configs.to_json, (control, config)))
            assert {line.partition(": ")[0] for line in changed} == set(alone)
    elsewhere = rewards.build(size, Path("elsewhere")).arms[0]
    assert hash_design(resolve(Run(elsewhere, {}, 0), "")) == hash_design(control)


def honesty(video, given):
    return rewards.measure_honesty(np.clip(video, 0, 255).astype(np.uint8), given)


def test_an_honest_video_is_not_strange():
    scene = make_shape_scene(1, 0, 9)
    video = render_shape(scene, range(9), 32, 32)
    ends = [np.asarray(scene.centre(time, 32, 32)) for time in (0, 8)]
    found = honesty(video, video[0])
    assert found["way"] == pytest.approx(np.linalg.norm(ends[1] - ends[0]), abs=0.7)
    assert found["strange"] < 0.5  # rounding to 8 bits
    assert found["area"] < 3  # soft edges
    # A blurred shape is a mixture of shape and ground.
    soft = (video + np.roll(video, 1, axis=1).astype(float)) / 2
    assert honesty(soft, video[0])["strange"] < 0.5


def test_what_rewards_are_bought_with_is_seen():
    """Flashing frames, noise and shapes that grow or blink, each by one of the two measures."""
    scene = make_shape_scene(1, 0, 9)
    video = render_shape(scene, range(9), 32, 32).astype(float)
    given, still = np.uint8(video[0]), np.repeat(video[:1], 9, axis=0)
    flash = still.copy()
    flash[::2] += 60
    assert honesty(flash, given)["strange"] > 10
    noise = still + np.random.default_rng(0).normal(size=still.shape) * 10
    assert honesty(noise, given)["strange"] > 3
    ground, paint = np.median(given, axis=(0, 1)), np.asarray(scene.paint)
    # Every other frame has the colour of the shape, or nothing of it: no pixel is strange.
    for colour, least in ((paint, 300.0), (ground, 40.0)):
        blink = still.copy()
        blink[::2] = colour
        found = honesty(blink, given)
        assert found["strange"] < 1.5 and found["area"] > least
    grown = still.copy()
    grown[4:, 8:24, 8:24] = paint
    assert honesty(grown, given)["area"] > 30
    assert honesty(np.repeat(ground[None, None, None], 9, 0) + 0 * still, given)["way"] == 0.0


def test_chance_says_nothing_about_a_video():
    """Videos that hardly differ have unrelated numbers, spread over [0, 1)."""
    near = 0.3 + 1e-3 * np.random.default_rng(0).normal(size=(400, 3, 8, 8, 3))
    scores = np.asarray(Chance().score({}, RewardInputs(jnp.asarray(near, jnp.float32)))["chance"])
    assert abs(scores.mean() - 0.5) < 0.06 and abs(scores.std() - 12**-0.5) < 0.03
    order = np.argsort(near.sum(axis=(1, 2, 3, 4)))
    assert abs(np.corrcoef(scores[order][:-1], scores[order][1:])[0, 1]) < 0.2


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_from_nothing_to_the_table_at_smoke_size(tmp_path):
    assert rewards.main(["--size=smoke", f"--workdir={tmp_path}"]) == 0
    summary = json.loads((tmp_path / "table.json").read_text())
    assert summary["missing"] == [] and (tmp_path / "plot.png").stat().st_size > 5000
    for row in summary["arms"]:
        assert np.isfinite(row["metrics"]["motion_gain"]["mean"])
    sheet = tmp_path / "runs" / "grpo_sharpness" / "fixed" / "seed_0" / "videos.png"
    assert sheet.stat().st_size > 5000
