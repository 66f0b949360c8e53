"""``benchmarks.discriminator_demos``: recipes as they are called, the clock, the page."""

import io
import json
import math
import types

import numpy as np
import pytest
from PIL import Image

from benchmarks import discriminator_demos
from benchmarks.discriminator_demos import RECIPES, Plan, Recipe, main
from benchmarks.discriminator_demos_page import write_page
from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.report.curves import write_curves

PLANS = [Plan("large", 128, 8, 5.0), Plan("small", 32, 1, 0.0)]


def loaded(flags):
    return configs.load(*discriminator_demos._parse_command(flags))


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.size)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_has_a_discriminator_and_starts_where_it_says(recipe, plan, tmp_path):
    config = loaded(plan.flags(recipe, tmp_path / "discriminator", tmp_path / "former"))
    assert config.discriminator.model.name and config.data.buckets[0][1:] == (plan.side,) * 2 + (
        plan.batch,
    )
    assert bool(config.train.init_recipes) == bool(recipe.former)
    assert config.eval.training_metrics == ("lpips_tiny",)
    if not recipe.former:
        assert not config.train.init_from
        return
    assert config.train.init_from == str(tmp_path / "former")
    former = loaded(plan.flags(recipe, tmp_path / "former", None))
    assert former.recipe in config.train.init_recipes and not former.discriminator.model
    assert former.data.buckets == config.data.buckets


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Writes a program that stands for Python and is called with ``vidlatent.main``'s flags."""

    def write(lines):
        file = tmp_path / "program"
        file.write_text("#!/bin/sh\n" + lines)
        file.chmod(0o755)
        monkeypatch.setattr(discriminator_demos, "sys", types.SimpleNamespace(executable=str(file)))

    monkeypatch.setattr(discriminator_demos, "_POLL_S", 0.05)
    return write


def test_the_clock_stops_a_run_and_goes_on_where_it_was(program, tmp_path, capsys):
    workdir = tmp_path / "a" / "b" / "run"
    line = json.dumps({"step": 8, "x": 1})
    program(
        f"echo started\ntrap 'exit 130' TERM\necho '{line}' >> {workdir}/metrics.jsonl\n"
        "while :; do sleep 0.05; done\n"
    )
    assert 0.4 <= discriminator_demos._run_main(["--x=1"], workdir, 0.4, after=7) < 30
    assert (workdir / "log.txt").read_text() == "started\n"
    assert (
        discriminator_demos._run_main(["--x=1"], workdir, 0.4) >= 0.4
    )  # all of it was spent before
    assert (workdir / "log.txt").read_text() == "started\n"
    (workdir / "seconds.json").write_text("0.3")
    assert discriminator_demos._run_main(["--x=1"], workdir, 0.4) >= 0.4
    assert (workdir / "log.txt").read_text() == "started\n" * 2
    assert capsys.readouterr().out == "python -m vidlatent.main --x=1\n" * 2


def test_a_run_that_fails_is_told(program, tmp_path):
    program("echo 'error: no such key'\nexit 1\n")
    with pytest.raises(VidlatentError, match="run ended with 1: error: no such key"):
        discriminator_demos._run_main([], tmp_path / "run")
    program("exit 130\n")  # by somebody else
    with pytest.raises(VidlatentError, match="ended with 130"):
        discriminator_demos._run_main([], tmp_path / "run", 9.0)


def result(folder, former=""):
    workdir = folder / "discriminator"
    workdir.mkdir(parents=True)
    lines = [
        {
            "step": s,
            "train/l1": 1 / s,
            "train/discriminator/real": -s,
            "val/psnr": 20 + s,
            "time": 0,
        }
        for s in range(1, 9)
    ]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "sheet.png")
    return {
        "recipe": {"name": folder.name, "config": "x:demo", "former": former, "frames": 17},
        "plan": {"size": "large", "side": 128, "batch": 8, "minutes": 5.0, "lpips": ""},
        "machine": {"device": "1 x Toy", "commit": "abc1234"},
        "commands": ["--config=a", "--mode=eval"],
        "steps": 1234,
        "minutes": 5.01,
        "start_step": 100,
        "frames_per_second": 321.09,
        "before": {"step": 100, "psnr_constant_colour": 12.0, "psnr": 21.234, "ssim": 0.5},
        "after": {"step": 1234, "psnr": 25.5, "ssim": 0.75, "lpips_tiny_random0": 0.25},
        "workdir": str(workdir),
        "sheets": [str(folder / "sheet.png")] * (2 if former else 1),
    }


def test_the_page(tmp_path):
    results = [result(tmp_path / "one"), result(tmp_path / "two", "y:demo")]
    page = tmp_path / "docs" / "demos.md"
    write_page(results, page)
    text = page.read_text()
    row = "| x:demo | 17x128x128, 8 a step | 5.0 | 1,234 | 321.1 | 21.23 | 25.50 | 0.500 | 0.750 |"
    assert f"{row}  | 0.250 |" in text and "Device 1 x Toy, commit abc1234." in text
    assert "the discriminator joins at step 100" in text and "Starts from `y:demo`" in text
    assert "`lpips_tiny_random0`), which stands in" in text and "toy size" not in text
    shown = {name for name in ("one_curves", "one_after", "two_curves", "two_after", "two_before")}
    assert {p.name for p in page.parent.glob("*.png")} == {f"demos_{name}.png" for name in shown}
    assert all(f"(demos_{name}.png)" in text for name in shown)
    assert Image.open(tmp_path / "docs" / "demos_one_curves.png").width > 1000


def test_curves_without_a_point_are_left_out():
    curves = {"nothing": ([1], [math.nan]), "none": ([], [])}
    heights = []
    for more in ({}, {str(i): ([1, 2], [3.0, None]) for i in range(5)}):
        buffer = io.BytesIO()
        write_curves(curves | more, buffer, columns=4)
        heights.append(Image.open(buffer).height)
    assert heights[0] < heights[1]


@pytest.mark.slow
def test_at_toy_size_once(tmp_path, capsys):
    arguments = ["--size=small", "--recipes=fsae", f"--folder={tmp_path}", "--commit=abc1234"]
    assert main(arguments) == 0
    text = (tmp_path / "discriminator_demos.md").read_text()
    assert "toy size" in text and "fsae:demo,stage=2" in text and "| 3 |" in text
    for name in ("curves", "before", "after"):
        assert Image.open(tmp_path / f"discriminator_demos_fsae_{name}.png").width > 200
    assert capsys.readouterr().out.count("python -m vidlatent.main") == 3
    assert main(arguments) == 0  # nothing is run again
    assert capsys.readouterr().out.count("python -m vidlatent.main") == 0
    with pytest.raises(VidlatentError, match="other settings"):
        main([*arguments, "--batch=2"])
    assert Recipe(**json.loads((tmp_path / "fsae" / "result.json").read_text())["recipe"])
