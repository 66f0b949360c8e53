"""Laws of the latent upsampler (specification J40 to J45)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.layers.resample import channel_to_space
from vidlatent.models.generators import build_upsampler
from vidlatent.models.generators.latent_upsampler.model import match_statistics

TINY = {"latent_channels": 4, "width": 16, "blocks": 2, "groups": 4, "remat": False}


def make(**fields):
    return build_upsampler({"name": "latent_upsampler", **TINY, **fields})


def test_paper_size():
    """239.5 M parameters (specification E); rows and columns double, frames stay."""
    model = build_upsampler({"name": "latent_upsampler"})
    latent = jax.ShapeDtypeStruct((1, 31, 12, 20, 128), jnp.float32)
    out, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), latent)
    assert out.shape == (1, 31, 24, 40, 128) and out.dtype == jnp.float32
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    conv = 27 * 512 * 512 + 512
    expected = (27 * 128 * 512 + 3 * 512) + (9 * 512 * 2048 + 2048)
    expected += 32 * (conv + 2 * 512) + (27 * 512 * 128 + 128)
    assert count == expected and round(count / 1e5) == 2395


def test_pixel_shuffle_reads_channels_then_rows_then_columns():
    """Channel ``(c, p1, p2)`` goes to row ``2 y + p1`` and column ``2 x + p2``."""
    x = np.random.default_rng(0).normal(size=(1, 1, 2, 3, 8))
    out = channel_to_space(jnp.asarray(x))
    for c, p1, p2, y, col in np.ndindex(2, 2, 2, 2, 3):
        wanted = x[0, 0, y, col, 4 * c + 2 * p1 + p2]
        np.testing.assert_allclose(out[0, 0, 2 * y + p1, 2 * col + p2, c], wanted, rtol=1e-6)


@pytest.mark.parametrize(("norm", "same"), [("pixel", True), ("group", False)])
def test_shift_in_time(norm, same):
    """Away from the ends a longer clip changes nothing with pixel norm; group norm pools it."""
    model = make(norm=norm, blocks=1)
    long = jax.random.normal(jax.random.key(1), (1, 12, 4, 4, 4))
    params = model.init(jax.random.key(0), long)
    run = jax.jit(model.apply)
    # Kernels of three frames in four convolutions: four frames from either end are spoilt.
    inner, outer = run(params, long[:, 1:])[:, 4:7], run(params, long)[:, 5:8]
    error = float(jnp.max(jnp.abs(inner - outer)))
    assert error < 1e-5 if same else error > 1e-3


def test_learns_nearest_upsampling():
    """The loss on smooth latents at least halves in 300 steps (specification J45)."""
    model = make(norm="pixel")
    coarse = jax.random.normal(jax.random.key(1), (2, 2, 3, 3, 4))
    low = jax.image.resize(coarse, (2, 2, 6, 6, 4), "linear")
    high = jnp.repeat(jnp.repeat(low, 2, 2), 2, 3)
    params = model.init(jax.random.key(0), low)
    optimizer = optax.adam(2e-3)

    @jax.jit
    def step(params, state):
        def loss(params):
            return jnp.mean(jnp.abs(model.apply(params, low) - high))

        value, gradient = jax.value_and_grad(loss)(params)
        update, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, update), state, value

    state, values = optimizer.init(params), []
    for _ in range(300):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.5 * values[0]


def test_matched_statistics():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 4)) * 3 + 1
    reference = jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 4))
    out = match_statistics(x, reference, 1.0)
    for moment in ("mean", "std"):
        options = {} if moment == "mean" else {"ddof": 1}
        ours, theirs = (getattr(y, moment)((1, 2, 3), **options) for y in (out, reference))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    half = match_statistics(x, reference, 0.5)
    np.testing.assert_allclose(half, (x + out) / 2, atol=1e-5)
    assert match_statistics(x, reference, 0.0) is x


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "batch"}, "config.generator.norm"),
        ({"groups": 3}, "config.generator.groups 3 does not divide width 16"),
        ({"latent_channels": 8}, "should be 8"),
        ({"depth": 3}, "config.generator.depth"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(VidlatentError, match=message):
        jax.eval_shape(make(**fields).init, jax.random.key(0), jnp.zeros((1, 1, 2, 2, 4)))
