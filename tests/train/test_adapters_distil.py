"""Distillation by adapters: student and fake score begin as their teacher, and move alone."""

import jax
import numpy as np
import pytest

from tests.helpers.distillation import progressive_task, random_params
from tests.helpers.generator_runs import QUICK
from tests.helpers.generator_steps import facts
from tests.train.test_score_task import equal, make_config, make_teacher, rows
from vidlatent.latents.space import generator_of
from vidlatent.train.adapters import BASE
from vidlatent.train.tasks.distill_score import ScoreTask

LORA = {"rank": 3, "alpha": 6.0, "targets": "blocks/"}


def score_task(adapted):
    config = make_config()
    with config.unlocked():
        if adapted:
            config.optim.lora.update(LORA)
            config.distill.optim.lora.update(LORA)
    return ScoreTask(config, generator_of(config), facts(), make_teacher(config))


def compiled(task):
    return jax.jit(task.train_step, compiler_options=QUICK)


@pytest.mark.slow
def test_three_networks_on_one_set_of_weights():
    """Two updates: the first losses are those of whole networks, and each moves its adapters."""
    whole, task = score_task(False), score_task(True)
    weights = random_params(task.model)
    state = whole.init(jax.random.key(0))
    state = {**state, "params": weights, "ema": weights}
    state["fake"] = {**state["fake"], "params": weights}
    _, want = compiled(whole)(state, rows(whole), {"teacher": weights})

    start = task.init(jax.random.key(0))
    for tree in (start["params"], start["ema"], start["fake"]["params"]):
        last = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
        assert set(tree) == {"blocks"} and last == {"lora_a", "lora_b"}
    # Their draws differ, so that the two do not learn in the same directions.
    assert not equal(start["params"], start["fake"]["params"])
    frozen, step = {"teacher": weights, BASE: weights}, compiled(task)
    first, report = step(start, rows(task), frozen)
    np.testing.assert_allclose(report["loss"], want["loss"], rtol=4e-6)
    assert equal(first["params"], start["params"])
    assert not equal(first["fake"]["params"], start["fake"]["params"])
    second, report = step(first, rows(task), frozen)
    assert report["generator/loss/share"] == 1 and report["generator/grad_norm"] > 0
    assert equal(second["fake"], first["fake"])
    assert not equal(second["params"], first["params"])
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(second["ema"]))


def test_adapters_of_the_teacher_s_weights_take_no_second_copy(tmp_path):
    """Where the student starts from the teacher's newest checkpoint, as it usually does."""

    def task_of(start, step=-1):
        config = make_config()
        with config.unlocked():
            config.optim.lora.update(LORA)
            config.train.init_from, config.distill.teacher_step = str(start), step
        teacher = make_teacher(config)._replace(place=place)
        return ScoreTask(config, generator_of(config), facts(), teacher)

    place = {"workdir": str(tmp_path), "step": 7}
    task = task_of(tmp_path)
    assert set(task.frozen) == {"teacher"}
    weights = random_params(task.model)
    trained = task.adapters.init(jax.random.key(0), weights)
    merged = task.adapters.merge(trained, {"teacher": weights})
    jax.tree.map(np.testing.assert_array_equal, merged, weights)  # adapters begin at nothing
    assert task.adapters.describe({"teacher": weights})["step"] == 7
    for other in (task_of(tmp_path / "other"), task_of(tmp_path, step=3)):
        assert set(other.frozen) == {"teacher", BASE}


@pytest.mark.slow
def test_a_teacher_of_halved_steps_is_the_merged_student():
    keys = {f"optim__lora__{name}": value for name, value in LORA.items()}
    whole = progressive_task("fsvideo_dit:demo,first=false")
    task = progressive_task("fsvideo_dit:demo,first=false", **keys)
    weights = random_params(task.model)
    state = whole.init(jax.random.key(0))
    state = {**state, "params": weights, "ema": weights}
    _, want = compiled(whole)(state, rows(whole), {})
    state, report = compiled(task)(task.init(jax.random.key(0)), rows(task), {BASE: weights})
    np.testing.assert_allclose(report["loss"], want["loss"], rtol=4e-6)
    # The first stage's teacher is the weights themselves, at rest.
    pairs = zip(jax.tree.leaves(state["teacher"]["params"]), jax.tree.leaves(weights), strict=True)
    assert all(equal(got, np.asarray(want, got.dtype)) for got, want in pairs)
