"""ProMAG's transformer against CogVideoX's of Diffusers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.models.generators import build_generator
from vidlatent.models.generators.promag_dit.names import fields_from_cogvideox
from vidlatent.weights.importer import export_params, import_params
from vidlatent.weights.tables import TABLES

FORWARD = {"atol": 2e-5, "rtol": 1e-4}
BACKWARD = {"atol": 2e-4, "rtol": 1e-3}
QUICK = {"xla_backend_optimization_level": 0}  # each program runs once
TABLE = TABLES.get("cogvideox_diffusers")


def channel_last(x):
    return jnp.asarray(np.moveaxis(x, 2, -1))


@pytest.fixture(scope="module")
def case(reference):
    return dict(np.load(reference("promag_dit", "cogvideox.npz")))


@pytest.fixture(scope="module")
def network(case):
    fields = fields_from_cogvideox(json.loads(str(case["config_json"])))
    model = build_generator({"name": "promag_dit", **fields})
    tensors = {name[3:]: value for name, value in case.items() if name.startswith("sd.")}
    shapes = jax.eval_shape(
        lambda *a: model.init(jax.random.key(0), *a, method="denoise"), *given(case, "a")
    )
    return model, tensors, import_params(tensors, TABLE, shapes["params"])


def given(case, size):
    states = jnp.asarray(case[f"{size}.text"])
    text = {"states": states, "length": jnp.full((states.shape[0],), states.shape[1])}
    return channel_last(case[f"{size}.x"]), jnp.asarray(case[f"{size}.time"]), {"text": text}


@pytest.mark.parametrize("size", ["a", "b"])
def test_output_and_gradients(case, network, size):
    """Size a is the one trained with; b is higher, and its positions lie in the middle."""
    model, _, params = network
    cotangent = channel_last(case[f"{size}.cotangent"])

    def loss(params, noisy, *rest):
        out = model.apply({"params": params}, noisy, *rest, method="denoise")
        return jnp.sum(out * cotangent), out

    run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, out), (grads, to_noisy) = jax.jit(run, compiler_options=QUICK)(params, *given(case, size))
    np.testing.assert_allclose(np.moveaxis(out, -1, 2), case[f"{size}.out"], **FORWARD)
    found = {"grad_x": np.moveaxis(to_noisy, -1, 2)}
    named = export_params(jax.device_get(grads), TABLE)
    found |= {f"grad.{name}": value for name, value in named.items()}
    compared = [name for name in case if name.startswith(f"{size}.grad")]
    assert len(compared) > 1
    for name in compared:
        largest = np.abs(case[name]).max()
        np.testing.assert_allclose(
            found[name[2:]] / largest, case[name] / largest, **BACKWARD, err_msg=name
        )


@pytest.mark.parametrize("size", ["a", "b"])
def test_rotary_tables(case, network, size):
    latent, patch = given(case, size)[0].shape[1:4], network[0].patch
    grid = tuple(n // p for n, p in zip(latent, patch, strict=True))
    for ours, name in zip(network[0]._tables(grid), ("cos", "sin"), strict=True):
        np.testing.assert_allclose(ours, case[f"{size}.{name}"][:, ::2], atol=1e-6)


def test_names_round_trip_bitwise(network):
    _, tensors, params = network
    named = export_params(params, TABLE)
    assert set(named) == set(tensors)
    for name, value in tensors.items():
        assert named[name].tobytes() == np.ascontiguousarray(value).tobytes(), name
