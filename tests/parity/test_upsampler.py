"""The latent upsampler against LTX-Video's class, in its order of layers and in FSVideo's."""

import json

import jax
import numpy as np
import pytest

from vidlatent.models.generators import build_upsampler
from vidlatent.models.generators.latent_upsampler.names import fields_from_ltx
from vidlatent.weights.importer import export_params, import_params
from vidlatent.weights.tables import TABLES

TABLE = TABLES.get("latent_upsampler")
FORWARD = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def case(reference):
    return dict(np.load(reference("upsampler", "latent_upsampler.npz")))


def weights_of(case, order):
    found = {k.removeprefix("sd."): v for k, v in case.items() if k.startswith("sd.")}
    if order == "fsvideo":
        found = {k: v for k, v in found.items() if not k.startswith("res_blocks.")}
    return found


@pytest.mark.parametrize("order", ["ltx", "fsvideo"])
def test_output(case, order):
    fields = fields_from_ltx(json.loads(str(case["config_json"])))
    if order == "fsvideo":
        fields["blocks_before"] = 0
    model = build_upsampler({"name": "latent_upsampler", **fields, "remat": False})
    latent = np.moveaxis(case["in.latent"], 1, -1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), latent)["params"]
    weights = weights_of(case, order)
    params = import_params(weights, TABLE, shapes)
    out = jax.jit(lambda p, x: model.apply({"params": p}, x))(params, latent)
    np.testing.assert_allclose(np.moveaxis(out, -1, 1), case[f"out.{order}_order"], **FORWARD)
    back = export_params(params, TABLE)
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(back[name], value)
