"""Scores and protocols from the command line, on a model trained for a moment."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidlatent.infer.codec import Codec
from vidlatent.infer.preview import Preview

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.slow


def run(*args, fails=False, processes=1):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    several = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "vidlatent.main", *map(str, args)],
            cwd=ROOT,
            env=os.environ | (several | {"JAX_PROCESS_ID": str(i)} if processes > 1 else {}),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    try:
        texts = [process.communicate(timeout=600)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [p.returncode != 0 for p in started] == [fails] * processes, texts[0][-3000:]
    return texts[0]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    run(
        f"--config={ROOT / 'tests' / 'tiny.py'}",
        f"--workdir={path}",
        "--config.train.steps=2",
        "--config.data.synthetic.frames=20",
        "--config.data.synthetic.clips=6",
        "--config.data.buckets=((5, 16, 16, 2),)",
        "--config.eval.training_metrics=('lpips_tiny',)",
    )
    return path


def test_scores_while_training_and_after(workdir, tmp_path):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    found = [line["val/lpips_tiny_random0"] for line in lines if "val/lpips_tiny_random0" in line]
    assert found and found[-1] > 0
    metrics = "('lpips_tiny', 'fvd_videomae_tiny')"
    run(
        "--mode=eval",
        f"--workdir={workdir}",
        f"--output={tmp_path}",
        f"--config.eval.metrics={metrics}",
    )
    about = json.loads((tmp_path / "scores.json").read_text())
    assert about["scores"]["lpips_tiny_random0"] == pytest.approx(found[-1], rel=1e-4)
    name = "fvd_videomae_tiny_random0_biased_bilinear32"
    assert about["scores"][name] > 0 and about["definitions"][name]["n"] == about["scores"]["clips"]
    assert name in (tmp_path / "report.html").read_text()


def test_a_preview_is_fitted_and_kept_beside_the_run(workdir):
    said = run("--mode=preview", f"--workdir={workdir}")
    assert "preview of first frames" in said and "preview of group frames" in said
    preview = Preview.load(workdir / "preview.npz", Codec.from_workdir(workdir).spec)
    channels = preview.spec.channels
    assert preview.first.shape == (channels + 1, 3)
    assert preview.group.shape == (channels + 1, 3 * preview.spec.t)
    assert preview(np.zeros((2, 4, 4, channels), np.float32)).shape == (5, 4, 4, 3)
    assert Image.open(workdir / "preview.png").width > 100


def test_a_protocol_on_one_process_and_on_two(workdir, tmp_path):
    arguments = ("--mode=eval", f"--workdir={workdir}", "--config.eval.protocol=fsae_table2")
    said = run(*arguments, fails=True)
    assert "error: config.networks.lpips_vgg is empty" in said and "Traceback" not in said
    arguments += (
        "--config.eval.stand_ins=true",
        "--config.eval.leave_out=('fvd_i3d',)",
        "--config.eval.metrics=('fvd_videomae_tiny',)",
        "--config.eval.clips=3",
    )
    run(*arguments)
    folder = workdir / "eval" / "step_2_fsae_table2"
    about = json.loads((folder / "fsae_table2.json").read_text())
    assert about["measured"]["clips"] == 3 and about["measured"]["clips_found"] == 6
    assert {row["size"] for row in about["by_clip"]} == {"17x256x256"}
    for file in ("fsae_table2.md", "report.html", "best.png", "worst.mp4"):
        assert (folder / file).stat().st_size > 0

    run(*arguments, f"--output={tmp_path}", processes=2)
    other = json.loads((tmp_path / "fsae_table2.json").read_text())
    assert other["measured"]["scores"] == pytest.approx(about["measured"]["scores"], rel=1e-5)
    assert other["measured"]["definitions"] == about["measured"]["definitions"]
    assert {row["clip"] for row in other["by_clip"]} == {row["clip"] for row in about["by_clip"]}
