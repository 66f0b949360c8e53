"""The machinery with the real loop, a few steps each. What comes out is nobody's business."""

import dataclasses
import json

import pytest

from experiments import growth, stages
from experiments.design import Run
from experiments.report import write_table_and_plot
from experiments.runner import find_workdir, run_all
from vidlatent import config as configs

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.slow
def test_growth_at_smoke_size(tmp_path):
    design = growth.build("smoke")
    keep = ("base_4x", "grown_8x", "direct_16x", "direct_16x_2_times")
    design = dataclasses.replace(design, arms=tuple(a for a in design.arms if a.name in keep))
    assert run_all(design, tmp_path) == 0
    summary = write_table_and_plot(design, tmp_path)
    assert summary["missing"] == []
    rows = {row["arm"]: row for row in summary["arms"]}
    for name in ("base_4x", "direct_16x"):
        assert len(rows[name]["metrics"]["psnr_by_frame"]) == 17
        assert "psnr_same_frames" in rows[name]["metrics"]
    assert "psnr_interpolated" in rows["base_4x"]["metrics"]
    assert (tmp_path / "plot.png").stat().st_size > 5000
    # The longer arm went on where the shorter one had ended.
    arm = design.arm("direct_16x_2_times")
    workdir = find_workdir(design, tmp_path, Run(arm, design.settings_of(arm)[0], 0))
    assert configs.read(workdir).train.steps == arm.steps
    assert {p.name for p in (workdir / "eval").iterdir()} == {"step_8", "step_16"}


@pytest.mark.slow
def test_stages_one_after_another(tmp_path, capsys):
    small = [
        "--config.data.source=synthetic",
        "--config.data.synthetic.clips=24",
        "--config.data.synthetic.frames=81",
        "--config.data.synthetic.height=16",
        "--config.data.synthetic.width=16",
        "--config.data.buckets=((17, 16, 16, 2),)",
        "--config.data.validation_share=0.2",
        "--config.data.validation_clips=2",
        "--config.model.width=8",
        "--config.train.steps=2",
        "--config.train.tensorboard=False",
        "--config.eval.every=0",
    ]
    specs = ["configs/promag.py", "configs/promag.py:grow=1"]
    assert stages.main([*specs, f"--workdir={tmp_path}", *small]) == 0
    assert "promag-8x" in " ".join(p.name for p in tmp_path.iterdir())
    assert (tmp_path / "stages.png").is_file() and "2 |" in (tmp_path / "stages.md").read_text()
    second = configs.read(tmp_path / "2_promag-8x")
    assert second.train.init_from == str(tmp_path / "1_promag-4x")
    scores = tmp_path / "2_promag-8x" / "eval" / "step_2" / "scores.json"
    stamp = scores.stat().st_mtime_ns
    assert stages.main([*specs, f"--workdir={tmp_path}", *small]) == 0, "finished: nothing to do"
    assert scores.stat().st_mtime_ns == stamp and json.loads(scores.read_text())["step"] == 2
    assert stages.main(["configs/nothing.py", f"--workdir={tmp_path}"]) == 2
    assert "no such file" in capsys.readouterr().err
