"""Score distillation through the real loop, of FSVideo's refiner and Latte, to few-step videos."""

import json

import numpy as np
import pytest

from tests.helpers.generator_runs import generator_run
from tests.helpers.second_half import DIT, LARGE, SMALL, digest, load, make_parts, refiner_config
from tests.train.test_generator_runs import sampled
from vidlatent.latents.distilled import Distilled
from vidlatent.report.writers import read_metrics
from vidlatent.sample.cascade import Cascade
from vidlatent.sample.generator import Generator
from vidlatent.train.loop import INTERRUPTED, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

# Both players move in four updates, with the adversary from the third on.
SCORE = {
    "distill.unguided": "true",
    "train.init_recipes": "()",  # its teacher has nothing built in
    "distill.score.generator_after": 4,
    "distill.score.adversarial_after": 8,
    "train.log_every": 1,
    "optim.lr": 1e-3,
    "distill.optim.lr": 1e-3,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("systems")
    make_parts(folder)
    return folder


def check_run(config, folder):
    """A run of both networks that goes on bit for bit when it is cut between the two."""
    assert train(config, folder / "straight") == 0
    curves = read_metrics(folder / "straight" / "metrics.jsonl")
    assert curves["train/fake/flow"][0] == [1, 3]
    assert curves["train/generator/score"][0] == [2, 4]
    for name in ("grad_norm", "score", "bce"):
        assert np.all(np.isfinite(curves[f"train/generator/{name}"][1])), name
    assert min(curves["train/generator/grad_norm"][1]) > 0
    scores = json.loads((folder / "straight" / "eval" / "step_4" / "scores.json").read_text())
    for name in ("frechet_latents", "score_gap", "score_pull", "adversarial_pull"):
        assert scores["scores"][name] > 0, name
    with config.unlocked():
        config.train.stop_at = 3
    assert train(config, folder / "cut") == INTERRUPTED
    with config.unlocked():
        config.train.stop_at = 0
    assert train(config, folder / "cut") == 0
    assert digest(folder / "cut", 4) == digest(folder / "straight", 4)
    stored = Distilled.load(folder / "straight")
    assert stored.grid_at(4).steps == 2


def test_the_refiner_is_distilled_with_its_conditions(places):
    """Its mask, the upsampled video and the label reach all three networks."""
    teacher = generator_run(refiner_config(places), places / "refiner")
    keys = {**DIT, **LARGE, **SCORE, "distill.teacher": teacher}
    config = load("configs/fsvideo_refiner.py:demo,stage=sida", places, **keys)
    check_run(config, places / "refiner_sida")
    base = Generator.from_workdir(places / "base")
    cascade = Cascade.of(base, places / "refiner_sida" / "straight")
    assert cascade.nfe["refiner"] == 2


def test_latte_is_distilled(places, tmp_path):
    own = {key: value for key, value in DIT.items() if key != "generator.label_tokens"}
    keys = {**own, **SMALL, "data.path": places / "small"}
    teacher = load("configs/latte.py:demo,flow=true", places, **keys)
    keys |= {**SCORE, "distill.teacher": generator_run(teacher, places / "latte")}
    config = load("configs/latte.py:demo,flow=true,stage=sida", places, **keys)
    check_run(config, places / "latte_sida")
    assert sampled(places / "latte_sida" / "straight", tmp_path, prompt="3")["nfe"] == 2
