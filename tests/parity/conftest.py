"""Numeric cases: weights, hyper-parameters, inputs and outputs of published or specified networks.

``VIDLATENT_REFERENCE`` names a folder of cases; the default is the copy beside the tests. Every
hyper-parameter and size comes from the case, so that other cases of the same layout can be run.
A case that is absent is skipped.
"""

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.models.tokenizers import build
from vidlatent.models.tokenizers.fsvideo.names import (
    DCAE_TABLE,
    FSAE_TABLE,
    fields_from_diffusers,
)
from vidlatent.weights.importer import import_params
from vidlatent.weights.safetensors import load_safetensors

TABLES = {"dcae": DCAE_TABLE, "fsae": FSAE_TABLE}


def reference_path(*parts: str) -> Path:
    root = os.environ.get("VIDLATENT_REFERENCE", Path(__file__).parent.parent / "reference")
    path = Path(root, *parts)
    if not path.exists():
        pytest.skip(f"no case {path}")
    return path


def model_config(name: str, case: dict) -> dict:
    """Our model fields from a case's constructor arguments."""
    config = {"name": name, **fields_from_diffusers(case["config"])}
    if name == "fsae":
        config["temporal_down"] = case["temporal_down_after_stages"]
    return config


@dataclasses.dataclass
class Case:
    """A model with the case's weights, and the case's arrays (N, C, [T,] H, W)."""

    model: object
    params: dict
    tensors: dict
    arrays: dict
    case: dict
    table: tuple

    def array(self, name: str) -> jax.Array:
        """Channel-last with a time axis: ``[B, T, H, W, C]``."""
        x = self.arrays[name]
        x = x[:, :, None] if x.ndim == 4 else x
        return jnp.asarray(np.moveaxis(x, 1, -1))

    def run(self, method: str, *args, **fields):
        model = self.model.clone(**fields)
        return jax.jit(lambda p, *a: model.apply({"params": p}, *a, method=method))(
            self.params, *args
        )


def load_case(folder: str, name: str) -> Case:
    case = json.loads(reference_path(folder, "config.json").read_text())
    tensors = load_safetensors(reference_path(folder, "weights.safetensors"))
    arrays = dict(np.load(reference_path(folder, "io.npz")))
    model = build(model_config(name, case))
    params = import_params(tensors, TABLES[name], param_shapes(model))
    return Case(model, params, tensors, arrays, case, TABLES[name])


def param_shapes(model) -> dict:
    spec = model.latent_spec
    video = jnp.zeros((1, spec.rule.first, spec.h, spec.w, 3))
    return jax.eval_shape(model.init, jax.random.key(0), video)["params"]


@pytest.fixture(scope="session")
def dcae_case() -> Case:
    return load_case("dcae", "dcae")


@pytest.fixture(scope="session")
def fsae_case() -> Case:
    return load_case("fsae3d", "fsae")


@pytest.fixture(scope="session")
def shapes_of():
    return param_shapes


@pytest.fixture(scope="session")
def reference():
    return reference_path


class _Read(dict):
    """Arrays by name that record which of them were read."""

    def __init__(self, arrays):
        super().__init__(arrays)
        self.seen = set()

    def __getitem__(self, name):
        self.seen.add(name)
        return super().__getitem__(name)


@pytest.fixture(scope="session")
def losses_family():
    """``with losses_family("huber") as arrays``: of ``losses.npz``, by name without ``huber.``.

    Whoever opens a family reads all of it: an array that is left over fails the test.
    """

    @contextlib.contextmanager
    def family(name):
        with np.load(reference_path("losses", "losses.npz")) as stored:
            found = [key for key in stored.files if key.startswith(name + ".")]
            arrays = _Read({key.removeprefix(name + "."): stored[key] for key in found})
        yield arrays
        assert arrays and arrays.seen == set(arrays), f"{name}: {set(arrays) - arrays.seen} unread"

    return family


@pytest.fixture(scope="session")
def config_of():
    return model_config
