"""Runs of ReFL: curves, resumed in the middle, from pictures, and refused."""

import functools
import json

import numpy as np
import pytest

from tests.helpers import reward_runs
from tests.train.test_generator_runs import digest
from vidlatent.errors import VidlatentError
from vidlatent.report.writers import read_metrics
from vidlatent.train.loop import INTERRUPTED, train
from vidlatent.train.reward_validation import FILE
from vidlatent.train.tasks.base import make_task

pytestmark = pytest.mark.usefixtures("one_device")
config_of = functools.partial(reward_runs.config_of, task="refl")
COLOUR = {"rewards__use": "('colour',)", "rewards__weights": "()"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return reward_runs.make_places(tmp_path_factory.mktemp("refl"))


@pytest.fixture(scope="module")
def straight(places):
    assert train(config_of(places), places / "straight") == 0
    return places / "straight"


@pytest.mark.slow
def test_a_run_leaves_curves_rewards_and_samples(straight):
    curves = read_metrics(straight / "metrics.jsonl")
    assert set(curves["train/step_with_gradient"][1]) == {1.0, 2.0}
    scores = [np.asarray(curves[f"train/reward/{name}"][1]) for name in ("motion", "colour")]
    np.testing.assert_allclose(curves["train/reward"][1], scores[0] + 0.5 * scores[1], rtol=1e-5)
    whole = 1e-3 * np.asarray(curves["train/reward_loss"][1])
    whole += 0.1 * np.asarray(curves["train/data_loss"][1])
    np.testing.assert_allclose(curves["train/loss"][1], whole, rtol=1e-4)
    stored = json.loads((straight / FILE).read_text())["evaluations"]
    assert [row["step"] for row in stored] == [0, 3, 6, 7]
    # sharpness is watched.
    assert {"reward", "motion", "colour", "sharpness", "clips"} == set(stored[0]["scores"])
    for name in ("scores.json", "report.html", "reward_curves.png", "contact_sheet.png"):
        assert (straight / "eval" / "step_7" / name).stat().st_size > 500
    assert (straight / "samples" / "step_7.png").stat().st_size > 500


@pytest.mark.slow
def test_a_run_that_is_cut_is_bitwise_equal(straight, places):
    cut = places / "cut"
    assert train(config_of(places, train__stop_at=4), cut) == INTERRUPTED
    assert train(config_of(places), cut) == 0
    assert digest(cut, 7) == digest(straight, 7)
    assert (cut / FILE).read_text() == (straight / FILE).read_text()


@pytest.mark.slow
def test_it_ends_when_a_reward_is_bought(places, monkeypatch):
    """The rule is ``tests/train/test_grpo_runs.py``'s; here, that this task asks it."""
    from vidlatent.train import reward_validation

    def twice(history, rl, step):
        return "enough" if len(history) > 1 and history[-1]["step"] == step else ""

    monkeypatch.setattr(reward_validation, "find_hacking", twice)
    assert train(config_of(places, **COLOUR), places / "ended") == 0
    assert read_metrics(places / "ended" / "metrics.jsonl")["train/loss"][0] == [1, 2, 3]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"refl__steps": "(2, 4)"}, r"refl.steps=\(2, 4\): the sampler's steps are 0 to 3"),
        ({"refl__steps": "(2, 1)"}, "the first is not after the last"),
        ({"refl__steps": "2"}, "refl.steps"),
        ({"refl__margins": "(('mps', 1.0),)"}, "refl.margins: no reward gives 'mps'"),
        ({"refl__standards": "(('mtion', 1.0, 2.0),)"}, "did you mean 'motion'"),
        ({"refl__standards": "(('motion', 1.0, 0.0),)"}, "refl.standards"),
        ({"rewards__weights": "(('motion', -1.0),)"}, "weights of 0 or more to refl"),
        ({"rewards__weights": "(('motion', 0.0),)"}, "every score has weight 0"),
        ({"rewards__use": "()"}, "no reward is named"),
        ({"tokenizer__path": ""}, "tokenizer.path is empty, and rewards look at frames"),
        ({"sampler__name": "unipc"}, "set one of these"),
        ({"refiner__base": "base"}, "a refiner learns by policy updates"),
        ({"rewards__use": "('mps',)", "rewards__mps__quantize": "round"}, "has no gradient for"),
        ({"refl__groups": 0}, "refl.groups"),
    ],
)
def test_what_does_not_fit_is_refused(places, keys, message):
    with pytest.raises(VidlatentError, match=message) as error:
        task = make_task(config_of(places, **keys))
        assert task.policy_of((2, 4, 4, 4))
    assert "\n" not in str(error.value).strip()
