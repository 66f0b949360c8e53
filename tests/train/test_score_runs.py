"""Runs of score distillation: teacher to student, resumed bit for bit, with its curves."""

import json

import jax
import numpy as np
import pytest

from tests.helpers.generator_runs import generator_run, tiny, tokenizer_run
from tests.train.test_generator_runs import digest, sampled
from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.latents.distilled import Distilled
from vidlatent.latents.space import abstract_generator, generator_of
from vidlatent.models.load import open_checkpoints
from vidlatent.report.writers import read_metrics
from vidlatent.train.loop import INTERRUPTED, train
from vidlatent.weights.files import load_params

pytestmark = pytest.mark.usefixtures("one_device")
SLOW = pytest.mark.slow

SCORE = {
    "task": "distill_score",
    "distill.unguided": "true",
    "sampler.name": "euler",
    "sampler.steps": "3",
    "train.steps": "6",
    "train.log_every": "1",
    "checkpoint.every": "0",
    "checkpoint.best_metric": "frechet_latents",
    # The generator may move after the first update, the adversary after the second of the fake
    # score: the updates are fake, generator, fake, generator, fake, generator.
    "distill.score.generator_after": "8",
    "distill.score.adversarial_after": "16",
    "optim.b1": "0.0",
    "optim.warmup_steps": "0",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tokenizer, and a teacher with random weights."""
    folder = tmp_path_factory.mktemp("score")
    tokenizer_run(folder / "tokenizer")
    generator_run(tiny(folder / "tokenizer", "videos"), folder / "teacher")
    return folder


def config_of(places, **keys):
    own = {key.replace(".", "__"): value for key, value in SCORE.items()}
    named = {"distill__teacher": places / "teacher", "sampler__guidance__scales": "()"}
    return tiny(places / "tokenizer", "videos", **{**own, **named, **keys})


@pytest.fixture(scope="module")
def straight(places):
    assert train(config_of(places, eval__every=3), places / "straight") == 0
    return places / "straight"


@SLOW
@pytest.mark.parametrize("cut", [1, 4, 5])
def test_cut_and_resumed_run_is_bitwise_equal(places, straight, cut):
    """At 1 and 5 a pair's fake score has been updated and its generator has not."""
    folder = places / f"cut_{cut}"
    stopped = config_of(places, eval__every=3, train__stop_at=cut)
    assert train(stopped, folder) == INTERRUPTED
    assert train(config_of(places, eval__every=3), folder) == 0
    assert digest(folder, 6) == digest(straight, 6)
    ours, theirs = (read_metrics(w / "metrics.jsonl") for w in (folder, straight))
    for name in ("val/score_gap", "val/frechet_latents"):
        assert ours[name][1][-1] == theirs[name][1][-1]


@SLOW
def test_both_start_from_the_teacher_and_learn_in_turn(places, straight):
    """The first update is the fake score's, so the student of step 1 is the teacher."""
    folder = places / "first"
    assert train(config_of(places, train__stop_at=1), folder) == INTERRUPTED
    config = configs.read(folder)
    shapes = abstract_generator(generator_of(config))
    taught = load_params(places / "teacher", shapes, family="wan")
    student = load_params(folder, shapes, family="wan")
    jax.tree.map(np.testing.assert_array_equal, student, taught)
    curves = read_metrics(straight / "metrics.jsonl")
    assert curves["train/fake/flow"][0] == [1, 3, 5]
    assert curves["train/generator/score"][0] == [2, 4, 6]
    assert curves["train/images"][1] == [8, 8, 16, 16, 24, 24]
    with_all = load_params(straight, shapes, family="wan")
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), with_all, taught)
    assert any(jax.tree.leaves(moved))


def test_progress_is_scored_and_drawn(straight):
    curves = read_metrics(straight / "metrics.jsonl")
    for name in ("val/score_gap", "val/frechet_latents"):
        assert curves[name][0] == [3, 6] and np.isfinite(curves[name][1]).all()
    folder = straight / "eval" / "step_6"
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["scores"]["score_gap"] == pytest.approx(
        np.sqrt(np.mean([row["gap"] ** 2 for row in scores["by_level"]]))
    )
    assert scores["definitions"]["frechet_latents"]["n"] == scores["scores"]["clips"] > 4
    page = (folder / "report.html").read_text()
    for text in ("val/frechet_latents", "val/score_gap", "Score gap by noise level"):
        assert text in page, text
    assert (folder / "contact_sheet.png").stat().st_size > 500  # decoded, at fixed seeds


def test_the_steps_are_stored_with_the_student(places, straight):
    stored = Distilled.load(straight)
    grid = stored.grid_at(6)
    assert (grid.solver, grid.steps) == ("euler", 3) and stored.guidance is None
    assert stored.teacher["workdir"] == str(places / "teacher")
    saved = open_checkpoints(configs.read(straight), straight)
    assert saved.all_steps() == [6]
    saved.close()


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"sampler__shift": "8.0"}, "config.sampler.shift=8.0"),
        ({"sampler__steps": "30"}, "config.sampler.steps=30"),
        ({"sampler__name": "unipc"}, "config.sampler.name='unipc'"),
    ],
)
def test_a_student_of_few_steps_is_not_sampled_otherwise(straight, tmp_path, keys, named):
    """Not with another shift than it was trained with, nor in more steps."""
    with pytest.raises(VidlatentError, match=f"{named}, but this generator"):
        sampled(straight, tmp_path / "x", prompt="3", **keys)


def test_training_on_data_would_undo_it(places, straight):
    config = tiny(places / "tokenizer", "videos", train__init_from=straight)
    with pytest.raises(VidlatentError, match="built in, which training on data undoes: start from"):
        train(config, places / "plain")
