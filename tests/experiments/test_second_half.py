"""Proofs of the upsampler and the refiner: what arms share, what is measured, what is claimed."""

import json
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import second_half
from experiments.design import Run, hash_design, resolve
from experiments.refining import KINDS, leave_out, mark_true_frames, measure_distances
from vidlatent import config as configs
from vidlatent.diffusion.refiner_given import Given

SIZES = ("cpu", "gpu", "smoke")


def configs_of(design, folder="w"):
    """The config of each arm's runs at seed 0, by name."""
    return {
        arm.name: resolve(
            Run(arm, {}, 0), "", {key: f"{folder}/{a}" for key, a in arm.uses.items()}
        )
        for arm in design.arms
    }


@pytest.mark.parametrize("size", SIZES)
def test_the_control_differs_in_what_it_is_given_alone(size):
    design = second_half.build(size, Path("data"))
    arms, found = {arm.name: arm for arm in design.arms}, configs_of(design)
    changed = configs.differences(
        configs.to_json(found["control"]), configs.to_json(found["refiner"])
    )
    keys = {line.partition(": ")[0] for line in changed}
    assert keys == {
        *("name", "preset", "recipe", "train.init_recipes"),
        *("task", "encode.low", "refiner.base", "refiner.upsampler"),
        "sample.batch",  # videos drawn at a time, when asked
    }
    refiner, control, longer = (arms[n] for n in ("refiner", "control", "control_longer"))
    assert refiner.steps == control.steps < longer.steps
    assert refiner.starts_from == control.starts_from == "base" and longer.continues == "control"
    assert found["refiner"].generator.to_dict() == found["base"].generator.to_dict()
    assert found["base"].recipe in found["refiner"].train.init_recipes
    for side in (1, 2):
        large, small = (found[name].data.buckets[0][side] for name in ("refiner", "base"))
        assert large == 2 * small
    assert {config.data.path for config in found.values()} == {"data/pairs", "data/small"}


@pytest.mark.parametrize("size", SIZES)
def test_every_ratio_names_an_arm_that_runs(size):
    design = second_half.build(size, Path("data"))
    names = {arm.name for arm in design.arms}
    for ratio in design.ratios:
        for side in (ratio.first, ratio.second):
            arm, metric = side.split()
            assert arm in names and metric
    limits = {ratio.text.split()[0]: ratio.below for ratio in design.ratios if ratio.below}
    assert limits.pop("1") == pytest.approx(2 / 3)
    assert set(limits) == {"2a", "2b", "2c", "3a", "3b", "3c", "4a", "4b"}
    assert set(limits.values()) == {1.0}


def test_results_are_recognised_where_the_folder_has_moved():
    design = second_half.build("cpu", Path("data"))
    here, there = configs_of(design), configs_of(second_half.build("cpu", Path("x")), "elsewhere")
    for name, config in here.items():
        if name != "base":  # its set is another one
            assert hash_design(config) == hash_design(there[name])


def make_given():
    rng = np.random.default_rng(0)
    condition, high = (jnp.asarray(rng.normal(size=(2, 3, 4, 4, 5)), jnp.float32) for _ in "ab")
    mask = jnp.full((2, 3, 4, 4, 1), 0.7).at[:, 0].set(1.0)
    order, none = jnp.broadcast_to(jnp.arange(3), (2, 3)), jnp.zeros((2, 3), bool)
    return Given(condition, mask, order, none, none[:, 0]), high


def test_marked_and_unmarked_frames_differ_in_the_mask_alone():
    given, high = make_given()
    found = mark_true_frames(given, high)
    assert set(found) == {"plain", "true 1", "true 2", "unmarked 1", "unmarked 2"}
    for value in found.values():
        np.testing.assert_array_equal(value[:, 0], given.join()[:, 0])
    np.testing.assert_array_equal(found["plain"][..., 1:], given.condition)
    np.testing.assert_array_equal(found["plain"][:, 1:, ..., 0], 0.5)
    for k, other in ((1, 2), (2, 1)):
        true, unmarked = found[f"true {k}"], found[f"unmarked {k}"]
        np.testing.assert_array_equal(true[..., 1:], unmarked[..., 1:])
        np.testing.assert_array_equal(true[:, k, ..., 1:], high[:, k])
        np.testing.assert_array_equal(true[:, k, ..., 0], 1.0)
        np.testing.assert_array_equal(unmarked[:, k, ..., 0], 0.5)
        np.testing.assert_array_equal(true[:, other], found["plain"][:, other])


def test_left_out_is_the_small_video_and_not_the_picture():
    given, high = make_given()
    inputs = types.SimpleNamespace(give=lambda *args: (high, {"label": args[0]}, given))
    latent, conditions = leave_out(inputs)("row", None, None)
    assert latent is high and conditions["label"] == "row"
    np.testing.assert_array_equal(conditions["given"][:, 0], given.join()[:, 0])
    assert not np.any(conditions["given"][:, 1:])


def test_distances_leave_out_the_given_frame():
    """Each result is off by its own number in later frames, and by much in frame 0."""
    real = np.zeros((2, 3, 4, 4, 5))
    names = [*KINDS, *(f"given {kind}" for kind in KINDS), "plain"]
    names += [f"{stem} {k}" for stem in ("true", "unmarked") for k in (1, 2)]
    drawn = {name: real + number for number, name in enumerate(names, 1)}
    for values in drawn.values():
        values[:, 0] = 100.0
    found = measure_distances({**drawn, "real": real})
    for kind in KINDS:
        assert found[f"{kind}_result"] == names.index(kind) + 1
        assert found[f"{kind}_given"] == names.index(f"given {kind}") + 1
    assert found["plain"] == 7 and (found["marked"], found["unmarked"]) == (8.5, 10.5)
    drawn["true 1"][:, 2] = 100.0
    assert measure_distances({**drawn, "real": real})["marked"] == 8.5, "the true frame alone"


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_from_nothing_to_the_table_at_smoke_size(tmp_path):
    words = ["--size=smoke", f"--workdir={tmp_path}"]
    assert second_half.main(words) == 0
    summary = json.loads((tmp_path / "table.json").read_text())
    assert summary["missing"] == [] and (tmp_path / "plot.png").stat().st_size > 5000
    assert all(np.isfinite(ratio["mean"]) for ratio in summary["ratios"])
    assert len(summary["ratios"]) == len(second_half.build("smoke", tmp_path).ratios)
    rows = {row["arm"]: row for row in summary["arms"]}
    assert rows["refiner"]["parameters"] == rows["control"]["parameters"]
    assert rows["upsampler"]["parameters"]["all"] < rows["base"]["parameters"]["all"]
    folder = tmp_path / "runs" / "refiner" / "fixed" / "seed_0"
    assert (folder / "results.png").stat().st_size > 5000
    config = configs.read(folder)
    assert config.refiner.upsampler == str(tmp_path / "runs" / "upsampler" / "fixed" / "seed_0")
    assert config.train.init_from == config.refiner.base
    stamp = (tmp_path / "data" / "pairs" / "header.json").stat().st_mtime_ns
    assert second_half.main(words) == 0, "nothing is made twice"
    assert (tmp_path / "data" / "pairs" / "header.json").stat().st_mtime_ns == stamp
