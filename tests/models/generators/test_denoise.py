"""``WanDiT.denoise``, as training and sampling call it: conditions by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.wan_nets import QUICK, drawn, net, running
from vidlatent.models.generators.conditions import mark_first_frame, pad_text

GRID = (2, 2, 3)


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def conditions_of(model, batch=2):
    found = {
        "text": {"states": array(1, batch, 4, 6), "length": jnp.array([4, 2][:batch])},
        "label": jnp.array([2, 0][:batch]),
        "image": array(2, batch, 3, 5),
        "first": array(3, batch, 1, *GRID[1:], 3),
    }
    return {name: found[name] for name in model.reads}


def prepared(**fields):
    model = net(text_length=5, depth=2, **fields)
    given = (array(0, 2, *GRID, 3), jnp.array([20.0, 900.0]), conditions_of(model))

    def init(*args):
        return model.init(jax.random.key(0), *args, method="denoise")

    params = drawn(jax.eval_shape(init, *given)["params"])
    run = jax.jit(
        lambda p, x, t, c, d=None, k=None: model.apply(
            {"params": p}, x, t, c, d, k, method="denoise"
        ),
        compiler_options=QUICK,
    )
    return model, params, given, run


@pytest.fixture(scope="module")
def texts():
    return prepared(memory=False)


@pytest.fixture(scope="module")
def labels():
    return prepared(label_classes=3)


def test_names_are_places_in_the_call(texts):
    model, params, (noisy, time, conditions), run = texts
    assert model.reads == ("text", "image", "first") and not model.learned_variance
    text = pad_text(conditions["text"]["states"], conditions["text"]["length"], 5)
    latent = jnp.concatenate([noisy, mark_first_frame(conditions["first"], 2, 1)], axis=-1)
    call = {"latent": latent, "time": time, "text": text, "image": conditions["image"]}
    want = running(model)(params, call)
    found = run(params, noisy, time, conditions)
    assert found.shape == noisy.shape and found.dtype == jnp.float32
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_null_text_of_the_caller(texts):
    _, params, (noisy, time, conditions), run = texts
    null = {"states": array(7, 1, 2, 6), "length": jnp.array([2])}
    written = {"states": jnp.repeat(null["states"], 2, 0), "length": jnp.array([2, 2])}
    want = run(params, noisy, time, {**conditions, "text": written})
    given = {**conditions, "null_text": null}
    drop = {"text": jnp.array([True, True])}
    np.testing.assert_allclose(run(params, noisy, time, given, drop), want, atol=1e-5)
    found = run(params, noisy, time, {**given, "text": None})
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_what_is_cache_is_not_read_again(texts, labels):
    for model, params, (noisy, time, conditions), run in (texts, labels):
        drop = {name: jnp.array([True, False]) for name in model.reads}
        cache = jax.jit(
            lambda p, c, d, model=model: model.apply(
                {"params": p}, c, d, method="cache_conditions"
            ),
            compiler_options=QUICK,
        )(params, conditions, drop)
        assert all(x.shape[:2] == (2, model.depth) for x in jax.tree.leaves(cache))
        want = run(params, noisy, time, conditions, drop)
        rest = {"first": conditions["first"]}
        found = run(params, noisy, time, rest, {"first": drop["first"]}, cache)
        np.testing.assert_allclose(found, want, atol=1e-5)


def test_given_frames_in_place_of_the_first(labels):
    _, params, (noisy, time, conditions), run = labels
    given = mark_first_frame(conditions["first"], 2, 1)
    rest = {"label": conditions["label"], "image": conditions["image"]}
    found = run(params, noisy, time, {**rest, "given": given})
    np.testing.assert_allclose(found, run(params, noisy, time, conditions), atol=1e-5)


def test_no_label_is_minus_one(labels):
    model, params, (noisy, time, conditions), run = labels
    assert model.reads == ("label", "image", "first") and "text_embedding" not in params
    absent = run(params, noisy, time, {**conditions, "label": jnp.array([-1, -1])})
    dropped = run(params, noisy, time, conditions, {"label": jnp.array([True, True])})
    np.testing.assert_array_equal(absent, dropped)
