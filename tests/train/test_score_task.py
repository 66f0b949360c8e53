"""Score distillation's step: who moves when, what moves nothing, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.helpers.generator_runs import QUICK
from tests.helpers.generator_steps import batch_of, config_of, facts
from vidlatent.errors import VidlatentError
from vidlatent.latents.space import abstract_generator, generator_of
from vidlatent.latents.teacher import Teacher
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.train.score_losses import find_losses, tidy_gradients
from vidlatent.train.tasks.distill_score import ScoreTask, average_losses

SCORE = {"generator_after": 0, "adversarial_after": 0}


def make_config(system="latte", score=(), **keys):
    """Of a student; Latte by flow matching, whose program is the shortest."""
    config = config_of(system)
    with config.unlocked():
        config.task = "distill_score"
        if system == "latte":
            config.generator.learned_variance = False
            config.sampler.spacing = ""
            config.diffusion.schedule = ConfigDict({"name": "flow", "shift": 3.0})
        config.sampler.name, config.sampler.steps = "euler", 4
        config.sampler.guidance.scales = ()
        config.conditions.drop = {}
        config.distill.score.update({**SCORE, **dict(score)})
        config.distill.optim.update({"lr": 1e-3, "b1": 0.0, "b2": 0.999})
        config.optim.update({"lr": 1e-3, "b1": 0.0, "b2": 0.999, "clip_norm": 0.0})
        for key, value in keys.items():
            section, _, name = key.partition("__")
            config[section][name] = value
    return config


def make_teacher(config, guidance=None):
    model = generator_of(config)
    network = FrozenNetwork(abstract_generator(model), lambda abstract: abstract)
    return Teacher(config, model, network, guidance, None, {})


def draw_params(task, seed):
    """Parameters at which every output depends on every input, unlike new ones."""
    leaves, tree = jax.tree.flatten(abstract_generator(task.model))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


@functools.cache
def setup(system="latte", **score):
    """Task, state with three different networks, frozen parameters, and the compiled step."""
    config = make_config(system, score)
    task = ScoreTask(config, generator_of(config), facts(), make_teacher(config))
    state = jax.jit(task.init, compiler_options=QUICK)(jax.random.key(0))
    state = {**state, "params": draw_params(task, 1), "ema": draw_params(task, 1)}
    state["fake"] = {**state["fake"], "params": draw_params(task, 2)}
    frozen = {"teacher": draw_params(task, 3)}
    return task, state, frozen, jax.jit(task.train_step, compiler_options=QUICK)


def equal(a, b):
    same = jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), a, b)
    return all(jax.tree.leaves(same))


def rows(task, **arrays):
    batch = {**batch_of(), **arrays}
    return {name: batch[name] for name in task.arrays}


@pytest.mark.parametrize(
    "system", ["latte", pytest.param("fsvideo_dit:demo,first=true", marks=pytest.mark.slow)]
)
def test_each_update_leaves_the_others_bit_for_bit(system):
    """J66; steps 0 and 1 of a pair, and the teacher is no part of the state."""
    task, state, frozen, step = setup(system)
    model = ("params", "opt", "ema")
    first, report = step(state, rows(task), frozen)
    assert report["fake/loss/share"] == 1 and report["generator/loss/share"] == 0
    assert all(equal(first[name], state[name]) for name in model)
    assert not equal(first["fake"]["params"], state["fake"]["params"])
    second, report = step(first, rows(task), frozen)
    assert report["fake/loss/share"] == 0 and report["generator/loss/share"] == 1
    assert equal(second["fake"], first["fake"])
    assert not any(equal(second[name], first[name]) for name in model)
    assert int(second["step"]) == 2 and int(second["extra"]["images"]) == 4
    assert np.isfinite([float(value) for value in report.values()]).all()


def test_gradients_reach_the_sample_through_both_networks():
    """Without the way through the fake score, or through the teacher, the gradient is another."""
    task, state, frozen, _ = setup()
    task = ScoreTask(task.config, task.model, task.latents, task.teacher)  # to be changed

    def gradient(teacher, fake):
        def loss(params):
            given = {**state, "fake": {**state["fake"], "params": fake}}
            return task.compute_generator_loss(params, given, rows(task), {"teacher": teacher}, 0)[
                0
            ]

        return np.concatenate(
            [np.ravel(leaf) for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(state["params"]))]
        )

    whole = gradient(frozen["teacher"], state["fake"]["params"])
    match = task.losses.match
    for name in ("teacher", "fake"):

        def stopped(teacher, fake, *args, name=name):
            networks = {"teacher": teacher, "fake": fake}
            networks[name] = lambda *a, network=networks[name]: jax.lax.stop_gradient(network(*a))
            return match(networks["teacher"], networks["fake"], *args)

        task.losses = task.losses._replace(match=stopped)
        found = gradient(frozen["teacher"], state["fake"]["params"])
        assert np.linalg.norm(found - whole) > 0.05 * np.linalg.norm(whole), name


def test_equal_scores_leave_the_generator_alone_without_an_adversary():
    task, state, frozen, _ = setup(adversarial_weight=0.0, discriminator_weight=0.0)
    same = {**state, "fake": {**state["fake"], "params": frozen["teacher"]}}
    compute = jax.jit(jax.value_and_grad(task.compute_generator_loss, has_aux=True))
    (loss, report), grads = compute(state["params"], same, rows(task), frozen, 0)
    assert abs(loss) < 1e-3 and report["gap"] < 1e-6
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    (_, _), usual = compute(state["params"], state, rows(task), frozen, 0)
    assert norm < 1e-3 * np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(usual)))


@pytest.mark.parametrize("fake_updates", [1, 5])
def test_turns_and_start_up_counts(fake_updates):
    config = make_config(score={"fake_updates": fake_updates, "generator_after": 40})
    task = ScoreTask(config, generator_of(config), facts(), make_teacher(config))

    def turns(images):
        extra = {"images": jnp.int32(images)}
        return [
            bool(task.is_generators_turn({"step": jnp.int32(n), "extra": extra})) for n in range(12)
        ]

    assert not any(turns(39))  # the fake score learns alone
    period = fake_updates + 1
    assert turns(40) == [n % period == fake_updates for n in range(12)]


def test_the_adversary_begins_after_its_count():
    """Its weight is 0 before, so the discriminator's answer changes no gradient."""
    task, state, frozen, _ = setup()
    with task.config.unlocked():
        task.config.distill.score.adversarial_after = 8
    weights = [
        float(task._find_adversarial_weight({"extra": {"images": jnp.int32(n)}}, 0.25))
        for n in (0, 7, 8, 9)
    ]
    with task.config.unlocked():
        task.config.distill.score.adversarial_after = 0
    assert weights == [0, 0, 0.25, 0.25]


def test_the_discriminator_sees_the_batch_s_real_latents():
    task, state, frozen, _ = setup()
    compute = jax.jit(task.compute_fake_loss)
    batch = rows(task)
    one = compute(state["fake"]["params"], state, batch, frozen, 0)[1]
    batch["latent"] = batch["latent"] + 1.0
    other = compute(state["fake"]["params"], state, batch, frozen, 0)[1]
    assert one["flow"] == other["flow"] and one["bce"] != other["bce"]


def test_losses_by_kind():
    """SiDA: sums, 0.5 and 0.5; DMD2: means, and the discriminator's two halves are added."""
    options = {"kind": "sida", "alpha": 1.0, "weighting": "one_minus_sigma", "score_weight": 3.0}
    match = find_losses(options).match(
        lambda z, s: z, lambda z, s: 0 * z, jnp.ones((1, 2)), jnp.ones((1, 2)), jnp.array([0.25])
    )
    bce, size = jnp.array([0.7]), 2
    sida, dmd = find_losses(options), find_losses({**options, "kind": "dmd"})
    found = sida.generator(match, bce, size, 0.1)
    np.testing.assert_allclose(found, 0.5 * (3 * match.loss + 0.1 * 0.75 * 2 * 0.7), rtol=1e-6)
    np.testing.assert_allclose(sida.fake(jnp.array([5.0]), bce, size, 0.1), 5 + 0.1 * 2 * 0.7)
    np.testing.assert_allclose(
        dmd.generator(match, bce, size, 0.1), 3 * match.loss / 2 + 0.07, rtol=1e-6
    )
    np.testing.assert_allclose(dmd.fake(jnp.array([5.0]), bce, size, 0.1), 2.5 + 0.14)
    with pytest.raises(VidlatentError, match=r"score.kind 'sidaa': did you mean 'sida'"):
        find_losses({**options, "kind": "sidaa"})


def test_gradients_are_tidied():
    wild = {"a": jnp.array([jnp.nan, jnp.inf, -jnp.inf, 2.0])}
    np.testing.assert_array_equal(tidy_gradients(wild)["a"], [0, 1e5, -1e5, 2])
    np.testing.assert_array_equal(tidy_gradients(wild, 1.0)["a"], [0, 1, -1, 1])


def test_a_sample_that_is_not_finite_counts_as_0_and_all_of_them_as_a_bad_step():
    mask = jnp.array([1.0, 1.0, 1.0, 0.0])
    mean, lost = average_losses(jnp.array([3.0, jnp.nan, 6.0, jnp.inf]), mask)
    assert mean == 3 and lost == pytest.approx(1 / 3)
    assert np.isnan(average_losses(jnp.full(4, jnp.nan), mask)[0])
    assert average_losses(jnp.full(4, jnp.nan), 0 * mask)[0] == 0  # padding alone
    task, state, frozen, step = setup()
    new, report = step(state, rows(task, latent=np.full((4, 2, 4, 4, 4), np.nan, "f4")), frozen)
    assert report["bad_streak"] == 1 and equal(new["fake"], state["fake"])


def test_one_step_is_drawn_for_all_slices_and_depends_on_seed_and_step_alone():
    task, state, frozen, _ = setup()
    draw = jax.jit(lambda state, number: task._draw(state, rows(task), frozen, number))
    drawn = [draw({**state, "step": jnp.int32(n)}, number) for n in range(8) for number in (0, 1)]
    numbers = [int(d.number) for d in drawn]
    assert numbers[::2] == numbers[1::2] and set(numbers) <= {1, 2, 3, 4} and len(set(numbers)) > 1
    assert np.abs(drawn[0].eps - drawn[1].eps).max() > 0.1  # slices have noise of their own
    # One step for all, but a level for each sample: with one for all the scores learn slowly.
    levels = np.concatenate([np.asarray(d.sigma) for d in drawn])
    assert len(np.unique(levels)) == levels.size == 16 * drawn[0].eps.shape[0]


class Heard:
    """A generator that remembers the conditions of each call."""

    def __init__(self, model, calls):
        self._model, self.calls = model, calls

    def __getattr__(self, name):
        return getattr(self._model, name)

    def apply(self, variables, noisy, time, conditions, **more):
        self.calls.append((conditions, more["drop"]))
        return self._model.apply(variables, noisy, time, conditions, **more)


@pytest.mark.parametrize("loss", ["compute_generator_loss", "compute_fake_loss"])
def test_student_fake_score_and_teacher_are_told_the_same(loss):
    """A first frame that one of them does not see makes videos stand still."""
    config = make_config("fsvideo_dit:demo,first=true")
    task = ScoreTask(config, generator_of(config), facts(), make_teacher(config))
    state = jax.eval_shape(task.init, jax.random.key(0))
    frozen, calls = {"teacher": state["params"]}, []
    task.model = Heard(task.model, calls)
    task.teacher = task.teacher._replace(model=Heard(task.teacher.model, calls))
    own = state["params"] if loss == "compute_generator_loss" else state["fake"]["params"]
    jax.eval_shape(lambda *args: getattr(task, loss)(*args, 0), own, state, rows(task), frozen)
    # Steps before the last, the last step, the fake score, and the teacher or the real samples.
    assert len(calls) == 4
    for conditions, drop in calls:
        assert conditions is calls[0][0] and drop is calls[0][1]
        assert {"first", "label"} <= set(conditions)


def test_uniform_levels_are_shifted_like_the_sampler_s():
    config = make_config(
        score={"levels": "uniform", "level_range": (0.02, 0.98)}, sampler__shift=3.0
    )
    task = ScoreTask(config, generator_of(config), facts(), make_teacher(config))
    levels = np.asarray(task.draw_levels(jax.random.key(0), 4000, (2, 4, 4)))
    even = levels / (3 - 2 * levels)  # the shift undone
    assert 0.019 < even.min() < 0.03 and 0.97 < even.max() < 0.981
    assert abs(even.mean() - 0.5) < 0.02


def refused(match, **keys):
    config = make_config(**keys)
    with pytest.raises(VidlatentError, match=match):
        ScoreTask(config, generator_of(config), facts(), make_teacher(config))


def test_misuse_is_refused():
    noise = {"diffusion__schedule": config_of("latte").diffusion.schedule}
    refused("latte of this config predicts noise", **noise)
    refused("latte of this config predicts noise", generator__learned_variance=True)
    refused(r"'unipc': a student learns the steps of euler, ddim", sampler__name="unipc")
    refused("the discriminator would learn nothing", score={"discriminator_weight": 0.0})
    refused("two levels between 0 and 1", score={"level_range": (0.9, 0.1)})
    config = make_config()
    with config.unlocked():
        config.sampler.guidance.scales = (2.0,)
    with pytest.raises(VidlatentError, match="guides the student, which learns to do without"):
        ScoreTask(config, generator_of(config), facts(), make_teacher(make_config()))
    guided = make_config()
    with guided.unlocked():
        guided.sampler.guidance.scales = (2.0,)
    plain = make_config()
    with pytest.raises(VidlatentError, match=r"usually sampled with guidance \(2.0,\)"):
        ScoreTask(plain, generator_of(plain), facts(), make_teacher(guided))
    with plain.unlocked():
        plain.distill.unguided = True
    ScoreTask(plain, generator_of(plain), facts(), make_teacher(guided))


@pytest.mark.slow
def test_the_fake_score_may_be_adapters_on_the_teacher():
    """They begin as the teacher, learn in their turn, and take no second copy of its weights."""
    config = make_config()
    with config.unlocked():
        config.distill.optim.lora.rank = config.optim.lora.rank = 2
    task = ScoreTask(config, generator_of(config), facts(), make_teacher(config))
    assert set(task.frozen) == {"teacher", "adapted"} and task.players["fake"].start == ""
    state = jax.jit(task.init, compiler_options=QUICK)(jax.random.key(0))
    weights = draw_params(task, 3)
    frozen = {"teacher": weights, "adapted": weights}
    begun = task.merge_fake(state["fake"]["params"], frozen)
    jax.tree.map(np.testing.assert_array_equal, begun, weights)
    step = jax.jit(task.train_step, compiler_options=QUICK)
    first, _ = step(state, rows(task), frozen)
    assert equal(first["params"], state["params"])
    assert not equal(first["fake"]["params"], state["fake"]["params"])
    # The fake score has learned, so that the second update has something to follow.
    second, report = step(first, rows(task), frozen)
    assert equal(second["fake"], first["fake"]) and not equal(second["params"], first["params"])
    assert report["generator/gap"] > 0
    count = sum(leaf.size for leaf in jax.tree.leaves(second["fake"]["params"]))
    assert count < 0.5 * sum(leaf.size for leaf in jax.tree.leaves(weights))
