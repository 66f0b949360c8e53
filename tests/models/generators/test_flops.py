"""Operations of one evaluation of FSVideo's transformer at full size, against the formula."""

import jax
import jax.numpy as jnp
import pytest

from tests.helpers.wan_nets import start_shapes
from vidlatent.models.generators import build_generator
from vidlatent.plan.flops import count_flops

WIDTH, HIDDEN, DEPTH, TEXT, IMAGE = 5120, 13824, 40, 512, 257


def formula(tokens, cached):
    """Linear layers, attention to itself and to the context; the context's keys and values."""
    linear = 2 * tokens * (6 * WIDTH**2 + 2 * WIDTH * HIDDEN)
    attention = 4 * tokens * (tokens + TEXT + IMAGE) * WIDTH
    context = 0 if cached else 2 * (TEXT + IMAGE) * 2 * WIDTH**2
    return DEPTH * (linear + attention + context)


@pytest.mark.parametrize(
    ("grid", "tera"), [((31, 6, 10), (51.7, 48.5)), ((31, 12, 20), (231.3, 228.0))]
)
def test_an_evaluation_costs_what_the_formula_says(grid, tera):
    model = build_generator({"name": "wan"}, jnp.bfloat16)
    shape = jax.ShapeDtypeStruct
    text = {"states": shape((1, TEXT, 4096), jnp.float32), "length": shape((1,), jnp.int32)}
    conditions = {"text": text, "image": shape((1, IMAGE, 1280), jnp.float32)}
    conditions["first"] = shape((1, 1, *grid[1:], 128), jnp.float32)
    given = shape((1, *grid, 128), jnp.float32), shape((1,), jnp.float32), conditions
    params = start_shapes(model, *given)

    def cache_conditions(params, conditions):
        return model.apply({"params": params}, conditions, method="cache_conditions")

    def denoise(params, noisy, time, conditions, cache=None):
        return model.apply(
            {"params": params}, noisy, time, conditions, None, cache, method="denoise"
        )

    cache = jax.eval_shape(cache_conditions, params, conditions)
    tokens = grid[0] * grid[1] * grid[2]
    for arguments, wanted in (((params, *given), tera[0]), ((params, *given, cache), tera[1])):
        found = count_flops(jax.make_jaxpr(denoise)(*arguments))
        assert found == pytest.approx(formula(tokens, len(arguments) == 5), rel=0.03)
        assert found / 1e12 == pytest.approx(wanted, rel=0.03)
