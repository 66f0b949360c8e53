"""The few-step chain at toy size: what follows on what, and all of it from given latents."""

import json

import pytest

from experiments import few_steps
from experiments.few_steps import EVALUATIONS, STEPS, Data
from experiments.generator_demo import prepare_latents
from vidlatent import config as configs


def test_arms_are_compared_at_the_evaluations_that_they_are_measured_at(tmp_path):
    design = few_steps.build("cpu", Data(tmp_path, tmp_path))
    assert [arm.name for arm in design.arms] == list(STEPS)
    measured = {name: set(steps) for name, steps in STEPS.items()}
    measured["teacher"] = {2 * n for n in STEPS["teacher"]}  # guided
    assert set.union(*measured.values()) == set(EVALUATIONS)
    for difference in design.differences:
        count = int(difference.metric.rpartition("_")[2])
        assert count in measured[difference.first] and count in measured[difference.second]
    for arm in design.arms:
        config = configs.load(arm.config, {**arm.overrides, "train.steps": str(arm.steps)})
        sampled = config.sampler.steps
        assert sampled in STEPS[arm.name]
        if config.task == "distill_score":
            updates = config.distill.score.fake_updates + 1
            assert arm.steps % updates == 0 and not config.sampler.guidance.scales
        if config.task == "distill_progressive":
            assert tuple(config.distill.stages) == STEPS[arm.name]
            assert arm.steps % len(STEPS[arm.name]) == 0
        elif config.task != "generator":
            assert arm.starts_from == {"guidance": "teacher"}.get(arm.name, "guidance")


def test_data_of_a_demo_are_found_or_asked_for(tmp_path, capsys):
    assert few_steps.main([f"--data={tmp_path}", f"--workdir={tmp_path / 'runs'}"]) == 2
    assert "holds no tokenizer" in capsys.readouterr().err
    for name in ("tokenizer", "small"):
        (tmp_path / name).mkdir()
    found = few_steps.find_data(str(tmp_path), tmp_path / "runs")
    assert found == (tmp_path / "tokenizer", tmp_path / "small")


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_the_chain_runs_from_nothing_to_its_table(tmp_path, capsys):
    assert prepare_latents(few_steps.make_demo("smoke", tmp_path), {}) == 0
    words = ["--size=smoke", f"--workdir={tmp_path}"]
    assert few_steps.main(words) == 0
    rows = {row["arm"]: row for row in json.loads((tmp_path / "table.json").read_text())["arms"]}
    assert list(rows) == list(STEPS)
    for name, row in rows.items():
        for steps in STEPS[name]:
            count = 2 * steps if name == "teacher" else steps
            assert 0 <= row["metrics"][f"labels_{count}"]["mean"] <= 1
            assert row["metrics"][f"distance_{count}"]["mean"] > 0
    assert (tmp_path / "plot.png").stat().st_size > 1000
    capsys.readouterr()
    assert few_steps.main([*words, "--report"]) == 0
