"""Runs of policy updates: to the end, resumed within a window, ended early, refused."""

import functools
import json

import numpy as np
import pytest

from tests.helpers import reward_runs
from tests.helpers.generator_runs import tiny
from tests.train.test_generator_runs import digest
from vidlatent import config as configs
from vidlatent.data.renderers import shapes
from vidlatent.encode.run import encode_set
from vidlatent.errors import VidlatentError
from vidlatent.report.writers import read_metrics
from vidlatent.train.loop import INTERRUPTED, train
from vidlatent.train.reward_validation import FILE, find_hacking
from vidlatent.train.tasks.base import make_task

pytestmark = pytest.mark.usefixtures("one_device")

config_of = functools.partial(reward_runs.config_of, task="grpo")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return reward_runs.make_places(tmp_path_factory.mktemp("grpo"))


@pytest.fixture(scope="module")
def straight(places):
    assert train(config_of(places), places / "straight") == 0
    return places / "straight"


@pytest.mark.slow
def test_a_run_leaves_curves_rewards_and_a_report(straight):
    curves = read_metrics(straight / "metrics.jsonl")
    assert curves["train/first_ratio_error/must_be_zero"][1] == [0.0] * 7
    assert curves["train/window"][1] == [0, 0, 0, 1, 1, 1, 0]
    # By window: only the steps at its position.
    assert curves["train/window_1/reward"][0] == [4, 5, 6]
    assert curves["train/window_0/spread"][0] == [1, 2, 3, 7]
    np.testing.assert_allclose(
        curves["train/reward"][1],
        np.asarray(curves["train/reward/motion"][1])
        + 0.5 * np.asarray(curves["train/reward/colour"][1]),
        rtol=1e-5,
    )
    stored = json.loads((straight / FILE).read_text())["evaluations"]
    assert [row["step"] for row in stored] == [0, 3, 6, 7]
    assert {"reward", "motion", "colour", "sharpness", "clips"} == set(stored[0]["scores"])
    assert stored[0]["scores"] != stored[-1]["scores"]
    folder = straight / "eval" / "step_7"
    for name in ("scores.json", "report.html", "reward_curves.png", "contact_sheet.png"):
        assert (folder / name).stat().st_size > 500
    assert json.loads((folder / "scores.json").read_text())["scores"]["reward"] == pytest.approx(
        stored[-1]["scores"]["reward"]
    )


@pytest.mark.slow
def test_a_run_cut_within_a_window_is_bitwise_equal(straight, places):
    """The window, the noise and the history follow from the step."""
    cut = places / "cut"
    assert train(config_of(places, train__stop_at=4), cut) == INTERRUPTED
    assert train(config_of(places), cut) == 0
    assert digest(cut, 7) == digest(straight, 7)
    assert (cut / FILE).read_text() == (straight / FILE).read_text()


@pytest.mark.slow
def test_pictures_are_prompts_for_videos(places):
    """A set of single frames; the config says how long the videos are that begin with them."""
    config = configs.read(places / "tokenizer")
    with config.unlocked():
        config.data = tiny(places / "tokenizer", "videos").data
        config.data.buckets = ((1, 8, 8, 8),)
        config.encode.pictures = 0
    assert encode_set(config, places / "tokenizer", -1, str(places / "pictures")) == 0
    keys = {
        "task": "grpo",
        **reward_runs.KEYS,
        **reward_runs.OF_TASK["grpo"],
        "rl.frames": "5",
        "data.buckets": "((1, 8, 8, 2),)",
        "data.path": str(places / "pictures"),
        "tokenizer.path": str(places / "tokenizer"),
        "train.steps": "2",
    }
    config = configs.load("tests/generator_tiny.py:latents,first=true", keys)
    assert train(config, places / "from_pictures") == 0
    curves = read_metrics(places / "from_pictures" / "metrics.jsonl")
    # A picture has no motion.
    assert min(curves["train/reward/motion"][1]) > 0
    assert (places / "from_pictures" / "samples" / "step_2.png").stat().st_size > 500


@pytest.mark.slow
def test_prompts_need_no_pictures(places):
    """A generator of classes; one that starts from a picture, or other classes, are refused."""
    names = list(shapes.LABELS)
    rows = [{"classes": names}, *({"prompt": name, "label": name} for name in names)]
    (places / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = {
        "task": "grpo",
        **reward_runs.KEYS,
        **reward_runs.OF_TASK["grpo"],
        "rl.frames": "5",
        "data.source": "prompts",
        "data.buckets": "((1, 8, 8, 2),)",
        "data.path": str(places / "prompts.jsonl"),
        "tokenizer.path": str(places / "tokenizer"),
        "train.steps": "1",
    }
    config = configs.load("tests/generator_tiny.py:videos", keys)
    assert train(config, places / "from_prompts") == 0
    curves = read_metrics(places / "from_prompts" / "metrics.jsonl")
    assert min(curves["train/reward/motion"][1]) > 0
    with pytest.raises(VidlatentError, match="this generator starts from one .first.: list pict"):
        make_task(configs.load("tests/generator_tiny.py:videos,first=true", keys))
    (places / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows[1:])))
    keys["train.init_from"] = str(places / "from_prompts")
    config = configs.load("tests/generator_tiny.py:videos", keys)
    with pytest.raises(VidlatentError, match="each would get another one's number"):
        train(config, places / "other_classes")


def history(*rewards_and_others):
    spreads = {"reward": 1.0, "motion": 1.0, "sharpness": 0.5}
    return [
        {
            "step": 10 * n,
            "scores": {"reward": r, "motion": r, "sharpness": s, "clips": 3},
            "spreads": spreads,
        }
        for n, (r, s) in enumerate(rewards_and_others)
    ]


def test_a_reward_that_is_bought_ends_the_run(places):
    rl = config_of(places, rl__stop_fall=1.0).rl
    bought = history((1.0, 2.0), (1.5, 1.4), (1.6, 1.3))
    assert "sharpness fell from 2 to 1.3" in find_hacking(bought, rl, 20)
    # Not yet in two evaluations; the reward fell too; the run went on since.
    assert not find_hacking(bought[:2], rl, 10)
    assert not find_hacking(history((1.0, 2.0), (0.5, 1.4), (1.6, 1.3)), rl, 20)
    assert not find_hacking(history((1.0, 2.0), (1.5, 1.6), (1.6, 1.3)), rl, 20)
    assert not find_hacking(bought, rl, 25)
    with rl.unlocked():
        rl.stop_fall = 0.0
    assert not find_hacking(bought, rl, 20)


@pytest.mark.slow
def test_the_end_holds_when_the_command_is_given_again(places, monkeypatch):
    """It ends at an evaluation, with a report; the same command then trains no further."""
    from vidlatent.train import reward_validation

    def twice(history, rl, step):
        return "enough" if len(history) > 1 and history[-1]["step"] == step else ""

    monkeypatch.setattr(reward_validation, "find_hacking", twice)
    ended = places / "ended"
    assert train(config_of(places), ended) == 0
    assert read_metrics(ended / "metrics.jsonl")["train/loss"][0] == [1, 2, 3]
    assert (ended / "eval" / "step_3" / "scores.json").is_file()
    assert train(config_of(places), ended) == 0
    assert read_metrics(ended / "metrics.jsonl")["train/loss"][0] == [1, 2, 3]


@pytest.mark.slow
def test_a_ratio_that_is_not_1_ends_the_run(places, monkeypatch):
    from vidlatent.train.tasks import grpo

    kept = grpo.GrpoTask._report

    def off(self, rollout, windows, problem, samples, tally):
        return kept(self, rollout, windows, problem, samples, tally._replace(
            first_error=tally.first_error + 1e-7
        ))  # fmt: skip

    monkeypatch.setattr(grpo.GrpoTask, "_report", off)
    with pytest.raises(VidlatentError, match="step 1: first_ratio_error is 1e-07, and it is exact"):
        train(config_of(places), places / "off")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rl__parts": 3}, "rl.parts=3 divides the group of 4"),
        ({"rl__updates": 2}, "updates=2 the parts"),
        ({"sampler__name": "unipc"}, "policy updates train the steps of euler"),
        ({"rewards__use": "()"}, "no reward is named"),
        ({"rl__window__size": 4}, "size=4: a window lies within steps 0 to 2"),
        ({"optim__accumulate": 2}, "accumulate has no meaning here"),
        ({"tokenizer__path": ""}, "tokenizer.path is empty, and rewards look at frames"),
        ({"rl__kl_weight": 0.1, "train__init_from": ""}, "kl_weight holds the policy near"),
        ({"rl__noise": "white"}, "white"),
    ],
)
def test_what_does_not_fit_is_refused(places, keys, message):
    with pytest.raises(VidlatentError, match=message):
        task = make_task(config_of(places, **keys))
        assert task.frozen and task.windows_of((2, 4, 4, 4))
