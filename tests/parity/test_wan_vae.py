"""Wan's autoencoders against Diffusers' AutoencoderKLWan, small and at the published width."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent import config as configs
from vidlatent.models.load import abstract_params, model_of
from vidlatent.models.tokenizers import build
from vidlatent.parallel.compilation import quick_options
from vidlatent.weights.files import find_table
from vidlatent.weights.importer import export_names, export_params, import_params
from vidlatent.weights.tables import TABLES

# The case is float64; a float32 convolution over 1000 values loses some units of 6e-8 a layer.
TOLERANCE = 1e-5  # of the largest value
KINDS = ("wan21", "wan22")


def fields_of(case):
    """Our model's fields from the arguments of Diffusers' class."""
    return {
        "name": "wan_vae",
        "latent_channels": case["z_dim"],
        "width": case["base_dim"],
        "decoder_width": case["decoder_base_dim"] or 0,
        "shortcuts": case["is_residual"],
        "pixel_patch": case["patch_size"] or 1,
        "multipliers": case["dim_mult"],
        "blocks": case["num_res_blocks"],
        "temporal_down": [i for i, down in enumerate(case["temperal_downsample"]) if down],
    }


class Case:
    def __init__(self, kind, folder):
        stored = dict(np.load(folder / f"{kind}.npz"))
        self.released = json.loads((folder / "released_keys.json").read_text())[kind]
        self.config = json.loads(str(stored["config"]))
        weights = [name for name in stored if name.startswith("w/")]
        self.tensors = {n.removeprefix("w/"): stored[n].astype(np.float32) for n in weights}
        self.arrays = {
            name: np.moveaxis(stored[name], 1, -1)
            for name in ("video_u8", "mean", "logvar", "latent", "decoded")
        }
        self.table = TABLES.get(f"wan_vae_diffusers{kind[3:]}")
        self.model = build(fields_of(self.config))
        self.params = import_params(self.tensors, self.table, abstract_params(self.model))
        self.video = jnp.asarray(self.arrays["video_u8"], jnp.float32) / 127.5 - 1
        self.encode, self.decode = (self.jit(method) for method in ("encode", "decode"))

    def jit(self, method):
        def run(x, cache=None):
            return self.model.apply({"params": self.params}, x, cache=cache, method=method)

        return jax.jit(run, compiler_options=quick_options(0))


@pytest.fixture(scope="module", params=KINDS)
def case(request, reference):
    return Case(request.param, reference("wan_vae"))


def close(found, wanted):
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(np.asarray(found) / scale, wanted / scale, rtol=0, atol=TOLERANCE)


def test_encode_and_decode_give_diffusers_numbers(case):
    posterior, _ = case.encode(case.video)
    close(posterior.mean, case.arrays["mean"])
    close(posterior.logvar, case.arrays["logvar"])
    close(case.decode(jnp.asarray(case.arrays["latent"]))[0], case.arrays["decoded"])


@pytest.mark.slow
def test_pieces_give_diffusers_numbers_too(case):
    step, cache, means = case.model.latent_spec.t, None, []
    first = case.video.shape[1] % step
    for start in (0, *range(first, case.video.shape[1], step)):
        piece = case.video[:, start : start + step if start else first]
        posterior, cache = case.encode(piece, cache)
        means.append(posterior.mean)
    close(jnp.concatenate(means, axis=1), case.arrays["mean"])
    cache, frames = None, []
    for latent in np.split(case.arrays["latent"], case.arrays["latent"].shape[1], axis=1):
        video, cache = case.decode(jnp.asarray(latent), cache)
        frames.append(video)
    close(jnp.concatenate(frames, axis=1), case.arrays["decoded"])


def test_both_namings_are_recognised_and_hold_the_same_weights(case):
    table = find_table(case.tensors, ("wan_vae",))
    assert TABLES.get(table) is case.table
    back = export_params(case.params, case.table)
    assert set(back) == set(case.tensors)
    released = export_params(case.params, TABLES.get("wan_vae"))
    assert {name: list(x.shape) for name, x in released.items()} == case.released
    assert find_table(released, ("wan_vae",)) == "wan_vae"
    again = import_params(released, TABLES.get("wan_vae"), abstract_params(case.model))
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(case.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_published_width_has_the_published_parameters(kind, reference):
    stored = np.load(reference("wan_vae", f"{kind}.npz"))
    case = json.loads(str(stored["config"]))
    model = model_of(configs.load(f"wan_vae:{kind}"))
    params = abstract_params(model)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert count == case["published_parameters"]
    names = export_names(params, TABLES.get(f"wan_vae_diffusers{kind[3:]}"))
    assert set(names) == {name[2:] for name in stored if name.startswith("w/")}
    if kind == "wan21":  # Diffusers has the moments of Wan2.1 as its defaults
        assert model.latent_mean == tuple(case["latents_mean"])
        assert model.latent_std == tuple(case["latents_std"])
