"""FSVideo's transformer from Wan2.1's weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.generator_nets import build, inputs, parameters
from tests.helpers.wan_nets import QUICK
from vidlatent.errors import VidlatentError
from vidlatent.weights.tables import initialize_from


@pytest.fixture(scope="module")
def start():
    plain, target = build("wan", memory=False), build("wan", depth=3, memory_share=0.98)
    plain = plain.clone(depth=3)
    given = inputs(plain)
    source = parameters(plain, *given)
    fresh = parameters(target, *given)
    for layer in (2, 3):  # as they start
        fresh[f"router_{layer}"] = target._first_router(None, layer)
    return plain, target, given, source, fresh


def run(model, params, given):
    call = jax.jit(
        lambda p, *a: model.apply({"params": p}, *a, method="denoise"), compiler_options=QUICK
    )
    return call(params, *given)


def test_all_weights_and_new_routers(start):
    plain, target, given, source, fresh = start
    params = initialize_from("wan_memory", source, fresh)
    for name in source:
        jax.tree.map(np.testing.assert_array_equal, params[name], source[name])
    routers = {name: x for name, x in params.items() if name not in source}
    assert set(routers) == {"router_2", "router_3"}
    weights = jax.nn.softmax(routers["router_3"]["bias"])
    np.testing.assert_allclose(weights, [0.01, 0.01, 0.98], rtol=1e-5)
    exact = {
        name: {"kernel": x["kernel"], "bias": jnp.zeros_like(x["bias"]).at[-1].set(40.0)}
        for name, x in routers.items()
    }
    want, found = run(plain, source, given), run(target, {**params, **exact}, given)
    np.testing.assert_allclose(found, want, atol=1e-6 * np.abs(want).max())


def test_another_latent_starts_anew(start):
    plain, _, _, source, fresh = start
    wide = {"kernel": jnp.ones((1, 1, 1, 9, 24)), "bias": jnp.zeros(24)}
    head = {"kernel": jnp.ones((24, 4)), "bias": jnp.ones(4)}
    params = initialize_from("wan_memory", source, {**fresh, "patch_embedding": wide, "head": head})
    np.testing.assert_array_equal(params["patch_embedding"]["kernel"], wide["kernel"])
    np.testing.assert_array_equal(params["patch_embedding"]["bias"], wide["bias"])
    np.testing.assert_array_equal(params["head"]["bias"], 1)
    with pytest.raises(VidlatentError, match="time_projection"):
        short = {"kernel": jnp.zeros((24, 12)), "bias": jnp.zeros(12)}
        initialize_from("wan_memory", {**source, "time_projection": short}, fresh)
    with pytest.raises(VidlatentError, match="lack head_modulation"):
        rest = {name: x for name, x in source.items() if name != "head_modulation"}
        initialize_from("wan_memory", rest, fresh)
