"""PixArt-alpha, of which Reducio-DiT is made, against its released code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.reducio_cases import Case, channels_last
from vidlatent.layers.positions import sincos_plane, time_features
from vidlatent.models.generators import build_generator
from vidlatent.models.generators.reducio_dit.names import fields_from_pixart
from vidlatent.weights.importer import export_params, import_params
from vidlatent.weights.tables import TABLES

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
QUICK = {"xla_backend_optimization_level": 0}  # each program runs once
TABLE = TABLES.get("pixart")


class PixArt(Case):
    """A case, our model of its sizes with its weights, and the arguments of its call."""

    def __init__(self, path):
        super().__init__(path)
        io, self.kwargs = self.io, self.meta["kwargs"]
        self.told = "csize_embedder.mlp.0.weight" in self.tensors
        fields = {**fields_from_pixart(self.kwargs), "size_embedding": self.told}
        self.model = build_generator({"name": "reducio_dit", **fields})
        text = {"states": jnp.asarray(io["y"][:, 0]), "length": jnp.asarray(io["lens"])}
        conditions = {"text": text}
        if self.told:
            size = np.concatenate([io["img_hw"], io["aspect_ratio"]], axis=1)
            conditions["size"] = jnp.asarray(size)
        noisy = channels_last(io["x"])[:, None]
        self.given = noisy, jnp.asarray(io["t"], jnp.float32), conditions
        shapes = jax.eval_shape(
            lambda *a: self.model.init(jax.random.key(0), *a, method="denoise"), *self.given
        )
        self.params = import_params(self.tensors, TABLE, shapes["params"])


@pytest.fixture(scope="module", params=["pixart", "pixartms"])
def case(request, reference):
    return PixArt(reference("reducio", f"{request.param}.npz"))


def test_output(case):
    def run(params, *given):
        return case.model.apply({"params": params}, *given, method="denoise")

    found = jax.jit(run, compiler_options=QUICK)(case.params, *case.given)
    np.testing.assert_allclose(np.moveaxis(found[:, 0], -1, 1), case.io["out"], **CLOSE)


def test_time_and_places(case):
    def times(model, time):
        embedded = model.time_embedding(time_features(time, model.freq_dim))
        return embedded, model.time_projection(jax.nn.silu(embedded))

    found = case.model.apply({"params": case.params}, case.given[1], method=times)
    np.testing.assert_allclose(found[0], case.io["t_emb"], **CLOSE)
    if case.io["t0"].size:
        np.testing.assert_allclose(found[1], case.io["t0"], **CLOSE)
    model, side = case.model, case.model.patch[1]
    scales = model.width, model.position_span, model.position_scale
    grids = {"pos_embed_init": (case.kwargs["input_size"] // side,) * 2}
    if "pos_embed_used" in case.io:
        grids["pos_embed_used"] = tuple(n // side for n in case.given[0].shape[2:4])
    for name, grid in grids.items():
        want = case.io[name].reshape(-1, model.width)
        np.testing.assert_allclose(sincos_plane(*grid, *scales), want, atol=1e-5)


def test_names_round_trip_bitwise(case):
    tensors = export_params(case.params, TABLE)
    assert set(tensors) == set(case.tensors)
    for name, value in case.tensors.items():
        assert tensors[name].tobytes() == np.ascontiguousarray(value).tobytes(), name
