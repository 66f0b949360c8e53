"""Experiments: what runs in which order, what is chosen, kept and shown; never an outcome."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from experiments import runner
from experiments.cli import main, main_with_data
from experiments.design import FIXED, Arm, Difference, Experiment, Run
from experiments.growth import build
from experiments.report import summarise, write_table_and_plot
from experiments.runner import Results, run_all
from vidlatent.errors import VidlatentError
from vidlatent.train.loop import INTERRUPTED

RATES = tuple({"optim.lr": rate} for rate in ("1e-4", "1e-3"))
CONFIG = "configs/promag.py:line"


def experiment(**changes):
    arms = (
        Arm("base", CONFIG, 3, "the base", settings=RATES),
        Arm("grown", f"{CONFIG},grow=1", 2, follows="base", starts_from="base", more_steps=3),
        Arm("direct", f"{CONFIG},k=8", 5, settings=RATES),
        Arm("longer", f"{CONFIG},k=8", 10, continues="direct"),
    )
    fields = {
        "arms": arms,
        "seeds": (0, 1),
        "differences": (Difference("grown", "direct"),),
        "gate": ("base", 20.0),
        "notes": ("a remark",),
    }
    return Experiment("test", "A test", **{**fields, **changes})


class Loop:
    """Stands in for the training loop: the higher rate is the better one."""

    def __init__(self):
        self.calls = []
        self.stop_at = -1

    def __call__(self, config, workdir):
        if len(self.calls) == self.stop_at:
            self.stop_at = -1
            return INTERRUPTED
        self.calls.append((workdir, config))
        psnr = [20.0 + 1000 * config.optim.lr + config.seed + 0.1 * i for i in range(17)]
        folder = workdir / "eval" / f"step_{config.train.steps}"
        folder.mkdir(parents=True)
        scores = {"psnr": float(np.mean(psnr)), "ssim": float("nan"), "clips": 4}
        text = json.dumps({"scores": scores, "by_frame_position": {"psnr": psnr}})
        (folder / "scores.json").write_text(text)
        return 0


_counted = {}  # parameters by model: shapes cost more than all the rest


@pytest.fixture
def loop(monkeypatch):
    count = runner._count_parameters

    def counted(config):
        key = str(config.model), config.optim.freeze
        if key not in _counted:
            _counted[key] = count(config)
        return _counted[key]

    monkeypatch.setattr(runner, "_count_parameters", counted)
    monkeypatch.setattr(runner, "train", stand_in := Loop())
    return stand_in


def test_arms_run_in_order_with_the_best_setting(loop, tmp_path):
    assert run_all(experiment(), tmp_path) == 0
    made = [(w.relative_to(tmp_path / "runs").parts, c) for w, c in loop.calls]
    order = ["base"] * 4 + ["grown"] * 2 + ["direct"] * 6  # the longer arm goes on in its place
    assert [parts[0] for parts, _ in made] == order
    assert {parts[1] for parts, _ in made[4:6]} == {"optim.lr=1e-3"}
    assert [config.seed for _, config in made[:4]] == [0, 1, 0, 1]
    for parts, config in made[4:6]:
        assert config.train.init_from == str(tmp_path / "runs" / "base" / parts[1] / parts[2])
        assert config.optim.lr == 1e-3 and config.model.grow == 1
    assert [config.train.steps for _, config in made[6:]] == [5] * 4 + [10] * 2
    assert made[-1][0] == ("direct", "optim.lr=1e-3", "seed_1")
    count = len(loop.calls)
    assert run_all(experiment(), tmp_path) == 0 and len(loop.calls) == count, "nothing runs twice"


def test_an_arm_is_told_the_workdirs_of_those_it_uses(loop, tmp_path):
    """The same seed's, at the setting that was chosen; results do not depend on where they are."""
    user = Arm("user", CONFIG, 2, uses={"data.path": "base"})
    design = experiment(arms=(experiment().arms[0], user), differences=())
    with pytest.raises(VidlatentError, match="needs all runs of base first"):
        run_all(design, tmp_path, ["user"])
    assert run_all(design, tmp_path) == 0
    told = [config.data.path for _, config in loop.calls[4:]]
    chosen = tmp_path / "runs" / "base" / "optim.lr=1e-3"
    assert told == [str(chosen / "seed_0"), str(chosen / "seed_1")]
    with pytest.raises(VidlatentError, match="must come first"):
        experiment(arms=(user,), differences=(), gate=None)


def test_seeds_share_the_run_of_a_shared_arm(loop, tmp_path, monkeypatch):
    arms = (
        Arm("base", CONFIG, 3, shared=True),
        Arm("grown", f"{CONFIG},grow=1", 2, starts_from="base"),
    )
    measured = []

    def measure(config, workdir, seed, scores):
        measured.append((workdir.name, config.seed, seed))
        return {}

    made = experiment(arms=arms, gate=None, differences=(), measure=measure)
    # The real loop finds the run finished when it is asked for again.
    folder = tmp_path / "runs" / "base" / "fixed" / "seed_0"
    monkeypatch.setattr(
        runner, "train", lambda config, workdir: 0 if workdir.exists() else loop(config, workdir)
    )
    assert run_all(made, tmp_path) == 0
    assert measured == [("seed_0", 0, 0), ("seed_0", 0, 1), ("seed_0", 0, 0), ("seed_1", 1, 1)]
    starts = [config.train.init_from for _, config in loop.calls]
    assert starts == ["", str(folder), str(folder)]
    assert Results(tmp_path / "results").read(Run(arms[0], FIXED, 1))["seed"] == 1


def test_a_stopped_experiment_goes_on(loop, tmp_path):
    loop.stop_at = 5
    assert run_all(experiment(), tmp_path) == INTERRUPTED
    assert len(loop.calls) == 5
    summary = write_table_and_plot(experiment(), tmp_path)
    assert "grown/optim.lr=1e-3, seed 1" in summary["missing"]
    assert any("longer: takes the setting of direct" in line for line in summary["missing"])
    assert "Missing" in (tmp_path / "table.md").read_text()
    assert run_all(experiment(), tmp_path) == 0
    assert len(loop.calls) == 12 and summarise(experiment(), results(tmp_path))["missing"] == []


def results(folder):
    return Results(folder / "results")


def test_report(loop, tmp_path):
    run_all(experiment(), tmp_path)
    summary = write_table_and_plot(experiment(), tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert summary == json.loads((tmp_path / "table.json").read_text())
    rows = {row["arm"]: row for row in summary["arms"] if row["chosen"]}
    psnr = rows["base"]["metrics"]["psnr"]
    assert psnr["mean"] == pytest.approx(22.3) and psnr["sd"] == pytest.approx(0.5**0.5)
    assert rows["base"]["metrics"]["psnr_without_frame_0"]["mean"] == pytest.approx(22.35)
    assert rows["grown"]["steps_in_all"] == 5 and rows["longer"]["steps_in_all"] == 10
    assert 0 < rows["grown"]["parameters"]["trained"] < rows["grown"]["parameters"]["all"]
    assert "ssim" not in rows["base"]["metrics"], "what is not a number is left out"
    (difference,) = summary["differences"]
    assert difference["mean"] == pytest.approx(0) and difference["seeds"] == [0, 1]
    assert summary["gate"]["passed"] and "passed" in text and "a remark" in text
    for piece in ("22.30 ± 0.71", "Every setting tried", "optim.lr 1e-4", "the base"):
        assert piece in text
    assert Image.open(tmp_path / "plot.png").width > 500


def test_only_some_arms(loop, tmp_path):
    with pytest.raises(VidlatentError, match="setting of base"):
        run_all(experiment(), tmp_path, ["grown"])
    assert run_all(experiment(), tmp_path, ["base"]) == 0
    assert run_all(experiment(), tmp_path, ["grown"]) == 0 and len(loop.calls) == 6
    with pytest.raises(VidlatentError, match="no arm 'grwn'"):
        run_all(experiment(), tmp_path, ["grwn"])


def test_results_of_another_design_are_refused(loop, tmp_path):
    run_all(experiment(), tmp_path, ["base"])
    other = experiment()
    arms = (dataclasses.replace(other.arms[0], overrides={"optim.b2": "0.9"}), *other.arms[1:])
    with pytest.raises(VidlatentError, match="another design"):
        run_all(experiment(arms=arms), tmp_path)


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ([Arm("a", CONFIG, 1, follows="b")], "must come first"),
        ([Arm("a", CONFIG, 1), Arm("a", CONFIG, 1)], "two arms"),
        ([Arm("a", CONFIG, 2), Arm("b", CONFIG, 2, continues="a")], "more steps"),
        (
            [
                Arm("a", CONFIG, 2),
                Arm("b", CONFIG, 4, continues="a"),
                Arm("c", CONFIG, 1, starts_from="a"),
            ],
            "goes on",
        ),
    ],
)
def test_impossible_designs(arms, said):
    with pytest.raises(VidlatentError, match=said):
        experiment(arms=tuple(arms), differences=(), gate=None)


@pytest.mark.parametrize("size", ["cpu", "gpu", "smoke"])
def test_the_growth_design(size):
    design = build(size)
    arms = {arm.name: arm for arm in design.arms}
    base, direct = arms["base_4x"], arms["direct_16x"]
    assert base.settings == direct.settings == arms["direct_8x"].settings
    for k, grown in ((8, "grown_8x"), (16, "grown_16x")):
        once = arms[grown].steps + arms[grown].more_steps
        assert (
            arms[f"direct_{k}x"].steps
            == once
            == arms[grown.replace("grown", "plain")].steps + (arms[grown].more_steps)
        )
        assert [arms[f"direct_{k}x_{n}_times"].steps for n in (2, 4)] == [2 * once, 4 * once]
    assert len(design.seeds) >= 3 or size == "smoke"
    assert set(design.columns) >= {"psnr", "psnr_without_frame_0"}


def test_command_line(loop, tmp_path, capsys):
    sizes = ("small", "large")
    words = ["--workdir", str(tmp_path), "--seeds", "4", "--size", "large"]
    asked = []

    def make(size):
        asked.append(size)
        return experiment()

    assert main(make, sizes, "text", [*words, "--only", "base"]) == 0
    assert main(make, sizes, "text", [*words, "--report"]) == 0
    assert asked == ["large"] * 2 and len(loop.calls) == 2
    assert "runs missing" in capsys.readouterr().out
    assert main(make, sizes, "text", [*words, "--only", "nothing"]) == 2
    assert "no arm 'nothing'" in capsys.readouterr().err


def test_data_are_made_once_before_the_runs(loop, tmp_path, capsys):
    made, built = [], []

    def make(size, folder):
        made.append((size, folder))
        return 0 if len(made) == 1 else INTERRUPTED

    def build_on(size, folder):
        built.append((size, folder))
        return experiment()

    def call(*words):
        words = ["--workdir", str(tmp_path), *words]
        return main_with_data("test", build_on, make, ("small", "large"), "text", words)

    assert call("--only", "base") == 0 and made == built == [("small", tmp_path / "data")]
    assert call("--report", "--size=large") == 0 and len(made) == 1, "a report makes nothing"
    count = len(loop.calls)
    assert call("--data", str(tmp_path / "other")) == INTERRUPTED, "no run without its data"
    assert made[-1] == ("small", tmp_path / "other") and len(loop.calls) == count
    assert len(built) == 2
    capsys.readouterr()
