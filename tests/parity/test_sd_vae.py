"""The image autoencoder of Reducio-DiT's content frames against Diffusers' AutoencoderKL."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained.sd_vae import (
    SdEncoder,
    _encoding_half,
    fields_from_diffusers,
)
from vidlatent.weights.importer import export_params, import_params
from vidlatent.weights.tables import TABLES

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}
QUICK = {"xla_backend_optimization_level": 0}  # each program runs once


@pytest.fixture(scope="module")
def case(reference):
    arrays = dict(np.load(reference("sd_vae", "encoder.npz")))
    module = SdEncoder(**fields_from_diffusers(json.loads(str(arrays["config_json"]))))
    whole = {name[3:]: value for name, value in arrays.items() if name.startswith("sd.")}
    tensors = _encoding_half(whole)
    pixels = jnp.zeros((1, module.factor, module.factor, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), pixels)["params"]
    return module, import_params(tensors, TABLES.get("sd_vae_diffusers"), shapes), tensors, arrays


def last(array):
    return jnp.asarray(np.moveaxis(array, 1, -1))


def test_moments_and_draws(case):
    module, params, _, arrays = case
    tags = [name.removeprefix("in.x_") for name in arrays if name.startswith("in.x_")]
    assert tags

    @jax.jit
    def run(params, x, noise):
        found = module.apply({"params": params}, x, method="posterior")
        return found, *(module.apply({"params": params}, x, n) for n in (None, noise))

    for tag in tags:
        x, noise = (last(arrays[f"in.{name}_{tag}"]) for name in ("x", "noise"))
        (mean, logvar), plain, drawn = run(params, x, noise)
        moments = np.concatenate([mean, logvar], axis=-1)
        np.testing.assert_allclose(moments, last(arrays[f"out.moments_{tag}"]), **TOLERANCE)
        np.testing.assert_array_equal(plain, mean)
        np.testing.assert_allclose(drawn, last(arrays[f"out.sample_{tag}"]), **TOLERANCE)


def test_names_round_trip_bitwise(case):
    _, params, tensors, arrays = case
    named = export_params(params, TABLES.get("sd_vae_diffusers"))
    assert set(named) == set(tensors)
    for name, value in tensors.items():
        assert named[name].tobytes() == np.ascontiguousarray(value).tobytes(), name
    original = export_params(params, TABLES.get("sd_vae"))
    assert "encoder.mid.attn_1.q.weight" in original and "quant_conv.bias" in original
    inner = {f"first_stage_model.{name}": x for name, x in original.items()}
    inner["model.diffusion_model.out.0.weight"] = np.zeros(3)
    again = import_params(_encoding_half(inner), TABLES.get("sd_vae"), params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_published_size():
    """34,163,664 parameters: the encoder and quant_conv of the 83.7 M autoencoder."""
    shapes = jax.eval_shape(SdEncoder().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 34_163_664


def test_odd_sizes_are_named(case):
    module, params, _, _ = case
    odd, side = module.factor + 1, 4 * module.factor
    with pytest.raises(VidlatentError, match=f"{odd}x{side} pixels.*multiples of {module.factor}"):
        module.apply({"params": params}, jnp.zeros((1, odd, side, 3)))
