"""What is built into a generator: stored, read back, compared; and whose task is whose role."""

import json

import pytest

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.latents.distilled import (
    BuiltInGuidance,
    Distilled,
    describe_grid,
    effective_scales,
)

CONFIG = configs.load("fsvideo_dit:demo,stage=progressive")
GUIDANCE = BuiltInGuidance((5.0,), (), "null", (("label",),))


def grids(length=300):
    return tuple((k * length, describe_grid(CONFIG, 16 >> k, (1.0, 0.0))) for k in range(3))


def test_both_conventions_of_the_scale():
    """u + w (c - u) with w = 1, and c + w (c - u) with w = 0, are no guidance."""
    assert effective_scales((1.0, 5.0), "null") == (1.0, 5.0)
    assert effective_scales((0.0, 4.0), "condition") == (1.0, 5.0)
    other = BuiltInGuidance((4.0,), (), "condition")
    assert "w = 4 of c + w (c - u)" in str(other) and "w = 5 of u + w (c - u)" in str(GUIDANCE)
    told = BuiltInGuidance((), (0.0, 6.0), "condition")
    assert told.told == (1.0, 7.0) and "from 0 to 6 of c + w (c - u)" in str(told)


def test_what_is_stored_is_read_back(tmp_path):
    assert Distilled.load(tmp_path) is None
    known = Distilled(GUIDANCE, grids(), {"workdir": "runs/teacher", "step": 7})
    known.write_or_check(tmp_path, 0)
    found = Distilled.load(tmp_path)
    assert found == known and found.teacher == known.teacher
    assert found.grids[0][1].levels == (1.0, 0.0)
    assert [found.grid_at(step).steps for step in (0, 1, 300, 301, 600, 601, 9999)] == [
        *(16, 16, 16),
        *(8, 8),
        *(4, 4),
    ]
    assert Distilled(GUIDANCE).grid_at(5) is None


def test_a_run_that_goes_on_must_learn_the_same(tmp_path):
    teacher = {"workdir": "runs/teacher", "step": 7}
    known = Distilled(GUIDANCE, grids(), teacher)
    known.write_or_check(tmp_path, 0)
    known.write_or_check(tmp_path, 5)
    with pytest.raises(VidlatentError, match="8 steps from step 300.*8 steps from step 200"):
        Distilled(GUIDANCE, grids(200), teacher).write_or_check(tmp_path, 5)
    with pytest.raises(VidlatentError, match="learned from step 7 of runs/teacher.*names step 8"):
        Distilled(GUIDANCE, grids(), {**teacher, "step": 8}).write_or_check(tmp_path, 5)
    Distilled(GUIDANCE, grids(200), teacher).write_or_check(tmp_path, 0)  # nothing learned yet


def test_a_damaged_file_is_told(tmp_path):
    Distilled(GUIDANCE, (), {"workdir": "x", "step": 1}).save(tmp_path)
    file = tmp_path / "distilled.json"
    stored = json.loads(file.read_text())
    stored["guidance"]["convention"] = "other"
    file.write_text(json.dumps(stored))
    with pytest.raises(VidlatentError, match=r"distilled.json is damaged.*convention 'other'"):
        Distilled.load(tmp_path)


def test_a_task_says_how_and_the_role_what_for():
    for spec, role in {
        "fsae": "tokenizer",
        "fsvideo_dit": "generator",
        "fsvideo_upsampler": "upsampler",
        "fsvideo_refiner": "refiner",
        "fsvideo_dit:demo,stage=cfg": "generator",
    }.items():
        assert configs.role_of(configs.load(spec)) == role
    student = configs.load("fsvideo_refiner:demo,stage=cfg", {"refiner.base": "runs/base"})
    assert configs.role_of(student) == "refiner"
