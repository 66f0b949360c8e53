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
def test_the_control_differs_in_its_reward_alone(size):
    design = rewards.build(size, Path("data"))
    found = [resolve(Run(arm, {}, 0), "") for arm in design.arms]
    changed = configs.differences(*map(configs.to_json, found))
    assert [line.partition(": ")[0] for line in changed] == ["rewards.use"]
    assert all(config.train.init_from == "data/base" for config in found)
    assert len({arm.steps for arm in design.arms}) == 1
    elsewhere = rewards.build(size, Path("elsewhere")).arms[0]
    assert hash_design(resolve(Run(elsewhere, {}, 0), "")) == hash_design(found[0])


def test_way_and_flicker_are_told_apart():
    """A shape that moves on a still ground, and a still one on a ground that flickers."""
    scene = make_shape_scene(1, 0, 9)
    video = render_shape(scene, range(9), 32, 32)
    ends = [np.asarray(scene.centre(time, 32, 32)) for time in (0, 8)]
    way, flicker = rewards.measure_motion(video)
    assert way == pytest.approx(np.linalg.norm(ends[1] - ends[0]), abs=0.7)
    assert flicker < 0.1
    still = np.repeat(video[:1], 9, axis=0)
    still[::2] += np.uint8(4)
    way, flicker = rewards.measure_motion(still)
    assert way < 0.1 and flicker == pytest.approx(4.0, abs=0.5)
    assert rewards.measure_motion(np.full((9, 32, 32, 3), 7, np.uint8)) == (0.0, 0.0)


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
        assert np.isfinite(row["metrics"]["gain"]["mean"])
    sheet = tmp_path / "runs" / "grpo_motion" / "fixed" / "seed_0" / "videos.png"
    assert sheet.stat().st_size > 5000
