"""The steps of distillation: what the student learns, what stays as it was, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.distillation import (
    guidance_task,
    make_teacher,
    progressive_task,
    random_params,
)
from tests.helpers.generator_runs import QUICK
from tests.helpers.generator_steps import batch_of, config_of, facts
from vidlatent.errors import VidlatentError
from vidlatent.latents.distilled import BuiltInGuidance, describe_grid
from vidlatent.latents.targets import GuidedTarget, Stages
from vidlatent.layers.embeddings import GuidanceEmbedding
from vidlatent.train.tasks.generator import GeneratorTask

DIT = "fsvideo_dit:demo,first=true"
X = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 4))
TIME = jnp.asarray([100.0, 500.0, 900.0])
CONDITIONS = {"label": jnp.asarray([1, 0, 1]), "first": X[:, :1] + 1.0}
KEPT = jnp.zeros(3, bool)


def teacher_of(system=DIT):
    teacher = make_teacher(config_of(system))
    return teacher.model, random_params(teacher.model)


def target_of(model, **distill):
    config = config_of(DIT)
    with config.unlocked():
        config.distill.drops = (("label",),)
        config.distill.update(distill)
    return GuidedTarget(config, model)


def ask(model, params, dropped=(), conditions=CONDITIONS):
    drop = {name: ~KEPT if name in dropped else KEPT for name in model.reads}
    return model.apply({"params": params}, X, TIME, conditions, drop=drop, method="denoise")


def test_a_scale_of_one_is_the_teacher_itself():
    """Its prediction under all conditions, exactly (J60), in both conventions."""
    model, params = teacher_of()
    for scales, convention in (((1.0,), "null"), ((0.0,), "condition")):
        target = target_of(model, scales=scales, convention=convention)
        found = target(params, X, TIME, CONDITIONS, {})
        np.testing.assert_array_equal(found, ask(model, params))


@pytest.mark.parametrize("batched", [True, False])
def test_the_target_is_the_guided_prediction(batched):
    """Only the label is guided: the first frame stays in both branches."""
    model, params = teacher_of()
    positive, negative = ask(model, params), ask(model, params, ("label",))
    want = negative + 5.0 * (positive - negative)
    assert np.abs(want - positive).max() > 1e-2
    for scales, convention in (((5.0,), "null"), ((4.0,), "condition")):
        target = target_of(model, scales=scales, convention=convention, batched=batched)
        found = target(params, X, TIME, CONDITIONS, {})
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_a_dropped_condition_is_the_teacher_without_it():
    """All branches are the same then, and no scale counts."""
    model, params = teacher_of()
    drop = {"label": jnp.asarray([False, True, False])}
    found = target_of(model, scales=(5.0,))(params, X, TIME, CONDITIONS, drop)
    np.testing.assert_allclose(found[1], ask(model, params, ("label",))[1], rtol=1e-6, atol=1e-6)


def test_a_scale_for_each_sample():
    model, params = teacher_of()
    target = target_of(model, scale_range=(1.0, 7.0))
    scales = jnp.asarray([1.0, 3.0, 7.0])
    found = target(params, X, TIME, {**CONDITIONS, "guidance": scales}, {})
    positive, negative = ask(model, params), ask(model, params, ("label",))
    want = negative + scales[:, None, None, None, None] * (positive - negative)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_an_embedded_scale_is_float32_and_starts_at_nothing():
    """bfloat16 would make 6016 of 6000."""
    embedding = GuidanceEmbedding(8, 64)
    params = embedding.init(jax.random.key(0), jnp.ones(2))
    assert not np.any(embedding.apply(params, jnp.asarray([1.0, 6.0])))
    kernel = jax.random.normal(jax.random.key(1), (8, 8))
    params["params"]["fc2"]["kernel"] = kernel
    near = embedding.apply(params, jnp.asarray([6.0, 6.004, 6.016]))
    assert near.dtype == jnp.float32
    assert np.abs(near[0] - near[1]).max() > 1e-3 < np.abs(near[1] - near[2]).max()


def test_two_links_have_a_scale_each():
    model, params = teacher_of()
    drops = (("label", "first"), ("label",))
    target = target_of(model, scales=(2.0, 3.0), drops=drops)
    none, first, both = (ask(model, params, names) for names in (*drops, ()))
    want = none + 2.0 * (first - none) + 3.0 * (both - first)
    found = target(params, X, TIME, CONDITIONS, {})
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def started(task, params):
    """The state of a student that starts from these weights, and the batch of its arrays."""
    state = jax.jit(task.init, compiler_options=QUICK)(jax.random.key(0))
    state = {**state, "params": params, "ema": jax.tree.map(jnp.copy, params)}
    batch = batch_of()
    return state, {name: batch[name] for name in task.arrays} | {"mask": batch["mask"]}


@pytest.mark.parametrize("system", [DIT, pytest.param("latte", marks=pytest.mark.slow)])
def test_the_student_learns_and_its_teacher_stays(system):
    """The loss falls on a repeated batch; the teacher has no gradient and no change."""
    task, model = guidance_task(system, optim__lr=1e-3)
    params = random_params(model)
    state, batch = started(task, params)
    before = jax.tree.map(np.array, params)
    frozen = {"teacher": params}
    step = jax.jit(task.train_step, compiler_options=QUICK)
    losses = []
    for _ in range(30):
        # The same noise and the same dropped conditions again.
        state, report = step({**state, "step": jnp.zeros((), jnp.int32)}, batch, frozen)
        losses.append(float(report["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, before, frozen["teacher"])
    slope = jax.jit(
        jax.grad(lambda frozen: task.compute_loss(params, batch, frozen, 0, 0)[0]),
        compiler_options=QUICK,
    )(frozen)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slope))


def test_a_student_that_is_told_its_scale():
    """It starts as its teacher for every scale, and the scale's embedding learns."""
    task, model = guidance_task(
        DIT,
        distill__scales=(),
        distill__scale_range=(1.0, 7.0),
        generator__guidance_embed=True,
        sampler__guidance__scales=(3.0,),
    )
    params = {**random_params(task.model), **(taught := random_params(model, 1))}
    last = params["guidance_embedding"]["fc2"]
    params["guidance_embedding"]["fc2"] = jax.tree.map(jnp.zeros_like, last)
    for scale in (1.0, 6.0):
        told = {**CONDITIONS, "guidance": jnp.full(3, scale)}
        np.testing.assert_array_equal(ask(task.model, params, (), told), ask(model, taught))
    _, batch = started(task, params)

    def loss(params):
        return task.compute_loss(params, batch, {"teacher": taught}, 0, 0)[0]

    slope = jax.jit(jax.grad(loss), compiler_options=QUICK)(params)
    assert np.any(slope["guidance_embedding"]["fc2"]["kernel"])
    with pytest.raises(VidlatentError, match="makes the guidance scale an input, and none is"):
        ask(task.model, params)


def test_the_student_keeps_one_branch_of_activations():
    """The gradient keeps what plain training does: nothing of the teacher's two branches."""

    def kept(task, frozen):
        params = random_params(task.model)
        _, batch = started(task, params)
        primal, pull = jax.vjp(lambda p: task.compute_loss(p, batch, frozen, 0, 0)[0], params)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(pull) if hasattr(leaf, "nbytes"))

    task, model = guidance_task(DIT)
    plain = GeneratorTask(config_of(DIT), model, facts())
    taught = random_params(model, 1)
    assert kept(task, {"teacher": taught}) <= 1.02 * kept(plain, {})


def test_a_stage_hands_over_to_the_next():
    """At its first step the averaged student is teacher and start; within it the teacher stays."""
    task = progressive_task(DIT, stages=(4, 2), steps=4, optim__ema_decay=0.5)
    params = random_params(task.model)
    state, batch = started(task, params)
    assert float(jnp.abs(state["teacher"]["params"]["head"]["kernel"]).sum()) == 0  # not yet
    step = jax.jit(task.train_step, compiler_options=QUICK)
    seen = []
    for _ in range(4):
        before = jax.tree.map(np.array, state)
        state, report = step(state, batch, {})
        assert np.isfinite(report["loss"])
        seen.append((before, jax.tree.map(np.array, state), float(report["lr"])))
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)  # noqa: E731
    same(seen[0][1]["teacher"]["params"], params)
    same(seen[1][1]["teacher"], seen[0][1]["teacher"])
    same(seen[2][1]["teacher"]["params"], seen[2][0]["ema"])
    same(seen[3][1]["teacher"], seen[2][1]["teacher"])
    # A stage has the whole schedule of the rate.
    assert seen[0][2] == seen[2][2] > seen[1][2] == seen[3][2]
    moments = [s[1]["opt"] for s in seen]
    counts = [int(leaf) for m in moments for leaf in jax.tree.leaves(m) if leaf.ndim == 0]
    assert counts == [1, 2, 1, 2]


@pytest.mark.parametrize("system", [DIT, pytest.param("latte", marks=pytest.mark.slow)])
def test_half_the_steps_are_learned(system):
    """The loss falls on a repeated batch."""
    task = progressive_task(system, stages=(4,), steps=100, optim__lr=1e-3)
    state, batch = started(task, random_params(task.model))
    step, losses = jax.jit(task.train_step, compiler_options=QUICK), []
    state, _ = step(state, batch, {})
    for _ in range(30):
        # The same noise and the same intervals again; the stage has begun.
        state, report = step({**state, "step": jnp.ones((), jnp.int32)}, batch, {})
        losses.append(float(report["loss"]))
    assert losses[-1] < 0.7 * losses[0]


def test_stages_of_a_run():
    config = config_of("fsvideo_dit:demo,stage=progressive")
    stages = Stages.of(config)
    assert stages == ((16, 8, 4), 300)
    at = [0, 299, 300, 599, 600, 899, 5000]
    assert [stages.stage_at(step) for step in at] == [0, 0, 1, 1, 2, 2, 2]
    assert [int(stages.stride_at(jnp.asarray(step))) for step in at] == [2, 2, 4, 4, 8, 8, 8]


BUILT_IN = BuiltInGuidance((5.0,), (), "null", (("label",),))


def grid_of(**keys):
    config = config_of(DIT, sampler__name="euler", **keys)
    return describe_grid(config, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guidance_task(DIT, base={"guidance": BUILT_IN}), "would be guided twice: name"),
        (lambda: guidance_task(DIT, base={"grid": grid_of()}), "its 8 steps alone: distil guid"),
        (
            lambda: guidance_task(DIT, sampler__guidance__scales=(2.0,)),
            r"scales=\(2.0,\) guides the student, which .* has its guidance built in",
        ),
        (lambda: progressive_task(DIT, sampler__guidance__scales=(2.0,)), "guides the student"),
        (lambda: guidance_task(DIT, told="text"), "drops names 'text', but the teacher reads"),
        (
            lambda: guidance_task(DIT, distill__scales=(2.0, 3.0)),
            "1 entries for 2 scales",
        ),
        (
            lambda: guidance_task(DIT, distill__scales=(), distill__scale_range=(1.0, 7.0)),
            "set config.generator.guidance_embed=True",
        ),
        (
            lambda: guidance_task(
                DIT,
                distill__scales=(),
                distill__scale_range=(0.0, 6.0),
                distill__convention="condition",
                generator__guidance_embed=True,
                sampler__guidance__scales=(9.0,),
            ),
            r"scales=\(9.0,\): the samples of this training.*give one from 1 to 7",
        ),
        (
            lambda: guidance_task(DIT, generator__guidance_embed=True),
            "set config.generator.guidance_embed=False",
        ),
        (
            lambda: progressive_task(DIT, distill__unguided=False),
            "sampled with the guidance scale 2.5, which steps that are halved would not have",
        ),
        (lambda: progressive_task(DIT, sampler__steps=8), "sampler.steps=8, but the student le"),
        (lambda: progressive_task(DIT, sampler__name="unipc"), "needs: set it to 'euler'"),
        (lambda: progressive_task("latte", sampler__eta=0.5), "steps that add noise"),
        (lambda: progressive_task("latte", sampler__spacing="even"), "every second one of those"),
        (
            lambda: progressive_task(DIT, base={"grid": grid_of(sampler__shift=5.0)}),
            "learned its steps with config.sampler.shift=5.0, and this config has 3.0",
        ),
        (
            lambda: progressive_task(DIT, stages=(8, 4), base={"grid": grid_of()}),
            r"takes 8 steps, and config.distill.stages=\(8, 4\) begins with 8: let it begin",
        ),
        (
            lambda: progressive_task(DIT, train__init_from="runs/other"),
            "the student starts from its teacher",
        ),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(VidlatentError, match=message):
        make()
