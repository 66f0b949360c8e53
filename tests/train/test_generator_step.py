"""The generator's step: it learns, drops conditions, and every evaluation is the same task."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.generator_runs import QUICK
from tests.helpers.generator_steps import batch_of, config_of, facts
from vidlatent.config import load, to_json
from vidlatent.errors import VidlatentError
from vidlatent.latents.channels import follow_latents
from vidlatent.latents.contract import LatentSpace
from vidlatent.latents.inputs import Inputs, missing_condition_masks, pool_content
from vidlatent.latents.space import Latents, check_generator, generator_of
from vidlatent.spec import FrameRule, LatentSpec
from vidlatent.train.optim import make_optimizer
from vidlatent.train.tasks.generator import GeneratorTask

SLOW = ("fsvideo_dit", "latte", "reducio_dit", "promag_dit")
SYSTEMS = [pytest.param(name, marks=pytest.mark.slow) for name in SLOW]
SYSTEMS.append("fsvideo_dit:demo,first=true")


@pytest.mark.parametrize("system", SYSTEMS)
def test_loss_falls_on_a_repeated_batch(system):
    config = config_of(system)
    step = GeneratorTask(config, generator_of(config), facts())
    state = jax.jit(step.init, compiler_options=QUICK)(jax.random.key(0))
    train_step = jax.jit(step.train_step, compiler_options=QUICK)
    batch, losses = {name: batch_of()[name] for name in step.arrays}, []
    batch["latent"] = 4.0 * (batch["label"][:, None, None, None, None] - 0.5) + 0.5
    batch["latent"] = np.broadcast_to(batch["latent"], (4, 2, 4, 4, 4)).astype(np.float32)
    for _ in range(60):
        state, report = train_step(state, batch, {})
        losses.append(float(report["loss"]))
    assert np.isfinite(losses).all() and int(state["extra"]["bad_steps"]) == 0
    assert np.mean(losses[-15:]) < 0.85 * np.mean(losses[:15])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state["ema"], state["params"])
    assert any(jax.tree.leaves(moved))


class Probe:
    """A stand-in that has only what the code for conditions reads of a generator."""

    reads = ("label", "image", "first")


def dropped(frames, drop, joint=0.0, labels=0):
    """Drop masks of 64 samples, by condition."""
    config = config_of("fsvideo_dit")
    with config.unlocked():
        config.conditions.drop, config.conditions.joint = drop, joint
    task = GeneratorTask(config, Probe(), facts())
    x0 = np.zeros((64, frames, 1, 1, 1), np.float32)
    conditions = {"label": np.full(64, labels), "image": x0, "first": x0}
    masks = jax.jit(lambda key: task.draw_drop_masks(key, x0, conditions))(jax.random.key(0))
    return {name: np.asarray(mask) for name, mask in masks.items()}


def test_conditions_are_dropped_alone_together_and_where_they_are_missing():
    seen = dropped(2, {"label": 0.5, "first+image": 0.25})
    np.testing.assert_array_equal(seen["first"], seen["image"])
    assert 0.3 < seen["label"].mean() < 0.7 and 0.1 < seen["first"].mean() < 0.4
    assert (seen["label"] != seen["first"]).any()
    every = dropped(2, {"label": 0.0, "first": 0.0}, joint=0.5)
    np.testing.assert_array_equal(every["label"], every["first"])
    assert dropped(2, {}, labels=-1)["label"].all()
    # For images, the first frame is never given: it is all there is to generate.
    alone = dropped(1, {})
    assert alone["first"].all() and alone["image"].all()
    with pytest.raises(VidlatentError, match="conditions.drop names 'text'"):
        dropped(2, {"text": 0.1})


def test_noise_depends_on_seed_and_step_alone():
    config = config_of("latte")
    model = generator_of(config)
    step = GeneratorTask(config, model, facts())
    state = jax.jit(step.init, compiler_options=QUICK)(jax.random.key(0))
    batch = {name: batch_of()[name] for name in step.arrays}
    train_step = jax.jit(step.train_step, compiler_options=QUICK)
    first, again = (train_step(state, batch, {})[1]["loss"] for _ in range(2))
    later = train_step({**state, "step": state["step"] + 1}, batch, {})[1]["loss"]
    assert first == again != later

    # A masked sample does not count, and slices add up to the whole batch.
    halves = config_of("latte", optim__accumulate=2)
    halved = GeneratorTask(halves, model, facts())
    loss = jax.jit(halved.train_step, compiler_options=QUICK)(state, batch, {})[1]["loss"]
    assert np.isfinite(float(loss)) and float(loss) != float(first)
    none = {**batch, "mask": np.zeros(4, np.float32)}
    assert float(train_step(state, none, {})[1]["loss"]) == 0.0


def test_evaluation_asks_each_clip_the_same_whatever_its_batch():
    config = config_of("fsvideo_dit")
    model, latents = generator_of(config), facts()
    step = GeneratorTask(config, model, latents)
    params = jax.jit(step.init, compiler_options=QUICK)(jax.random.key(0))["params"]
    params = jax.tree.map(lambda p: p + 0.02, params)
    measure = jax.jit(step.eval_step, compiler_options=QUICK)
    batch = batch_of(4)
    losses = measure(params, {}, batch)["loss"]
    assert losses.shape == (4, 2) and len(np.unique(losses)) == 8
    np.testing.assert_array_equal(measure(params, {}, batch)["loss"], losses)
    turned = jax.tree.map(lambda x: x[::-1].copy(), batch)
    np.testing.assert_allclose(measure(params, {}, turned)["loss"][::-1], losses, rtol=1e-6)


def test_latents_are_standardised_and_conditions_are_named():
    config = config_of("reducio_dit")
    inputs = Inputs(config, generator_of(config), facts(rule=FrameRule(16, 16)))
    batch = batch_of()
    x0, conditions = inputs(batch, {}, jax.random.key(0))
    np.testing.assert_allclose(facts().restore(x0), batch["latent"], rtol=1e-5)
    assert abs(float(x0.mean())) < 0.3 and conditions["content"].shape == (4, 4, 4, 4)
    grey = pool_content(np.full((1, 8, 8, 3), 255, np.uint8), 4)
    np.testing.assert_allclose(grey, 1.0)
    with pytest.raises(VidlatentError, match="data has no label"):
        inputs({"latent": batch["latent"], "mask": batch["mask"]}, {}, None)
    lengths = {"text": {"states": np.zeros((2, 3, 4)), "length": np.array([0, 2])}}
    np.testing.assert_array_equal(
        missing_condition_masks(lengths, ("text",), 2)["text"], [True, False]
    )


def test_generators_that_do_not_fit_the_latents_are_refused():
    model = generator_of(config_of("fsvideo_dit:demo,first=true"))
    check_generator(model, facts())
    with pytest.raises(VidlatentError, match="latent_channels is 4.*have 8"):
        spec = LatentSpec("toy", 8, 4, 4, 4, FrameRule(1, 4))
        check_generator(model, Latents(LatentSpace.of_spec(spec)))
    with pytest.raises(VidlatentError, match="label_classes is 48.*60 classes"):
        names = tuple(f"class {n}" for n in range(60))
        check_generator(model, Latents(facts().space, names))
    with pytest.raises(VidlatentError, match="first frame, which toy"):
        check_generator(model, facts(rule=FrameRule(16, 16)))
    with pytest.raises(VidlatentError, match="above 0"):
        facts(std=0.0)


def test_channels_follow_the_latents():
    """-1 becomes the latents' number, which is stored; a wrong one is named with its key."""
    spec = LatentSpec("toy", 6, 4, 4, 4, FrameRule(1, 4))
    config = follow_latents(load("fsvideo_dit:demo,first=true"), spec)
    assert config.generator.latent_channels == config.generator.condition_channels == 6
    model = generator_of(config)
    check_generator(model, Latents(LatentSpace.of_spec(spec)))
    assert model.in_channels == 6 + 1 + 6
    assert '"condition_channels": 6' in to_json(config)
    with pytest.raises(VidlatentError, match="condition_channels is 8.*toy have 6.*set it to 6"):
        follow_latents(
            load("fsvideo_dit:demo,first=true", {"generator.condition_channels": "8"}), spec
        )
    plain = follow_latents(load("fsvideo_dit:demo"), spec)
    assert (plain.generator.latent_channels, plain.generator.condition_channels) == (6, 0)
    # Without latents given frames have the channels that the latents are said to have.
    asked = load("fsvideo_dit:demo,first=true", {"generator.latent_channels": "5"})
    assert generator_of(asked).condition_channels == 5
    tokenizer = load("fsae")
    assert follow_latents(tokenizer) is tokenizer
    with pytest.raises(VidlatentError, match="latent_channels=0: give.*or -1 to take it from"):
        load("latte", {"generator.latent_channels": "0"})
    with pytest.raises(VidlatentError, match="model.latent_channels=-1: give"):
        load("fsae", {"model.latent_channels": "-1"})


def test_rates_decay_and_clipping_by_path_and_time():
    config = load("fsvideo_dit")
    config.optim.update({"lr_factors": (("router_", 10.0),), "no_decay": "router_"})
    config.optim.update({"weight_decay": 1.0, "clip_norm": 0.1, "clip_after": 1})
    optimizer = make_optimizer(config)
    params = {"router_2": {"kernel": jnp.ones((2, 2))}, "blocks": {"kernel": jnp.ones((2, 2))}}
    state = optimizer.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    update, _ = optimizer.update(zeros, state, params)
    assert float(update["router_2"]["kernel"][0, 0]) == 0.0
    assert float(update["blocks"]["kernel"][0, 0]) == 1.0
    ones = jax.tree.map(jnp.ones_like, params)
    grads = functools.partial(optimizer.update, ones)
    first, state = grads(state, zeros)
    np.testing.assert_allclose(
        first["router_2"]["kernel"], 10 * first["blocks"]["kernel"], rtol=1e-6
    )
    moments = [float(jax.tree.leaves(s)[-1].max()) for s in (state, grads(state, zeros)[1])]
    # The second gradient is clipped from a norm of 2.8 to 0.1, and so hardly adds to the mean.
    assert moments[1] < 1.1 * moments[0]
    with pytest.raises(VidlatentError, match="factors 'roter_' matches no parameter"):
        config.optim.lr_factors = (("roter_", 2.0),)
        make_optimizer(config).update(zeros, state, params)
