"""The number of steps is an argument of the compiled step, so going on does not compile again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.distillation import progressive_task
from tests.helpers.generator_steps import batch_of
from tests.helpers.micro import Micro
from vidlatent.config import load
from vidlatent.parallel.mesh import make_mesh
from vidlatent.parallel.sharding import batch_sharding, with_shardings
from vidlatent.train.optim import give_length, make_learning_rate
from vidlatent.train.program import describe_length, describe_state, jit_train_step
from vidlatent.train.tasks.tokenizer import TokenizerTask


def lower(steps):
    config = load("tests/tiny.py", {"optim.schedule": "cosine", "train.steps": str(steps)})
    with config.unlocked():
        config.loss = {"l1": 1.0}
        config.data.buckets = ((2, 16, 16, 4),)
    task = TokenizerTask(config, Micro())
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state = describe_state(task, 0, mesh)
    batch = {
        "video": jax.ShapeDtypeStruct((4, 2, 16, 16, 3), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((4,), jnp.float32),
    }
    batch = with_shardings(batch, batch_sharding(mesh))
    with jax.set_mesh(mesh):
        step = jit_train_step(task, state, {}, mesh, steps)
        return step.lower(state, batch, {}, describe_length(mesh)).as_text()


def test_runs_of_any_length_are_one_program():
    assert lower(120) == lower(4567)


@pytest.mark.slow
def test_stages_of_any_length_are_one_program():
    """Their ends are in the step itself, not only in its learning rate."""

    def lower_stages(steps, stages):
        task = progressive_task("fsvideo_dit:demo,first=true", stages, steps)
        mesh = make_mesh(task.config.mesh, jax.devices()[:1])
        state, given = describe_state(task, 0, mesh), batch_of()
        batch = {name: given[name] for name in (*task.arrays, "mask")}
        batch = with_shardings(batch, batch_sharding(mesh))
        with jax.set_mesh(mesh):
            step = jit_train_step(task, state, {}, mesh, steps)
            return step.lower(state, batch, {}, describe_length(mesh)).as_text()

    assert lower_stages(120, (4, 2)) == lower_stages(4560, (4, 2))


def test_the_rate_of_a_stage_that_is_given():
    config = load("tests/tiny.py", {"optim.schedule": "cosine", "optim.warmup_steps": "2"})
    rate, of_stage = make_learning_rate(config, 30, 3), make_learning_rate(config, 10)

    def given(step, length):
        with give_length(30, length):
            return rate(step)

    for step in (0, 9, 10, 19, 29):
        np.testing.assert_array_equal(rate(step), of_stage(step % 10))
        found = jax.jit(given)(jnp.int32(step), np.float32(30))
        np.testing.assert_allclose(found, of_stage(step % 10), rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_length_that_is_given_is_the_schedule_s_end(schedule):
    config = load("tests/tiny.py", {"optim.schedule": schedule, "optim.warmup_steps": "4"})
    rate = make_learning_rate(config, 20)

    def given(step, length, of=20):
        with give_length(of, length):
            return rate(step)

    # Dividing by an argument and by a constant may differ in the last place.
    for step in (0, 3, 4, 11, 19, 20):
        found = jax.jit(given)(step, np.float32(20))
        np.testing.assert_allclose(found, rate(step), rtol=1e-5, atol=1e-10)
    # Twice as far away.
    longer = make_learning_rate(config, 36)
    np.testing.assert_allclose(given(12, np.float32(36)), longer(12), rtol=1e-6)
    # Of another length: the schedule of a part of the run keeps its own.
    np.testing.assert_array_equal(given(12, np.float32(36), of=21), rate(12))
