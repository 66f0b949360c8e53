"""The video model against cases of its specification, and the full-size key tables."""

import json

import jax
import numpy as np
import pytest

from tests.helpers.nets import decoder_values, frame0_features
from vidlatent import config as configs
from vidlatent.models.tokenizers import build
from vidlatent.models.tokenizers.fsvideo.names import FSAE_TABLE
from vidlatent.weights.importer import export_names

TOLERANCE = 2e-4
MODES = {"dec_causal": "causal", "dec_noncausal": "centred", "dec_group": "group"}


def test_latent(fsae_case):
    latent = fsae_case.run("encode", fsae_case.array("video"))[0].mean
    np.testing.assert_allclose(latent, fsae_case.array("latent"), atol=TOLERANCE)


def test_features_of_frame_0(fsae_case):
    features = fsae_case.run(frame0_features, fsae_case.array("video"))
    for stage, feature in enumerate(features):
        want = fsae_case.array(f"enc_stage_{stage}_frame0")[:, 0]
        np.testing.assert_allclose(feature, want, atol=TOLERANCE)


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("form", ["nearest", "subpixel"])
def test_decoder(fsae_case, name, form):
    if name not in fsae_case.arrays:
        pytest.skip(f"the case has no {name}")
    fields = {"decoder_time": MODES[name], "up_form": form}
    video = fsae_case.run("decode", fsae_case.array("latent"), **fields)[0]
    np.testing.assert_allclose(video, fsae_case.array(name), atol=TOLERANCE)


def test_decoder_stages(fsae_case):
    seen = fsae_case.run(decoder_values, fsae_case.array("latent"))
    prefix = "dec_causal_after_stage"
    for name in (name for name in fsae_case.arrays if name.startswith(prefix)):
        value = seen[f"block_{name.removeprefix(prefix)}"]
        np.testing.assert_allclose(value, fsae_case.array(name), atol=TOLERANCE)


@pytest.mark.parametrize("form", ["base", "standard", "lite"])
@pytest.mark.parametrize("width", [2048, 1024])
def test_full_size_key_table(reference, shapes_of, width, form):
    variant = f"w{width}_{form}"
    counts = json.loads(reference("fsae3d", "full_counts.json").read_text())[variant]
    config = configs.load(f"configs/fsae.py:paper,width={width},form={form}")
    shapes = shapes_of(build(config.model.to_dict()))
    sizes = {
        side: sum(leaf.size for leaf in jax.tree.leaves(tree)) for side, tree in shapes.items()
    }
    assert sizes == {side: counts[side] for side in ("encoder", "decoder")}
    assert sum(sizes.values()) == counts["total"]
    names = export_names(shapes, FSAE_TABLE)
    assert len(names) == counts["num_tensors"]
    if (width, form) in ((1024, "standard"), (1024, "lite")):
        return  # there are counts, but no tables of names
    table = json.loads(reference("fsae3d", f"full_keys_{variant}.json").read_text())
    assert names == {name: tuple(shape) for name, shape in table["tensors"].items()}
