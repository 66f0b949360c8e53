"""ProMAG's arithmetic and sizes against the numbers derived from the paper."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.chunks import key_frames, latent_span
from vidlatent.layers.norms import apply_affine, group_affine
from vidlatent.layers.resample import double_frames
from vidlatent.metrics.frechet import frechet_distance
from vidlatent.models.load import abstract_params
from vidlatent.models.tokenizers import build
from vidlatent.models.tokenizers.chunks import compute_fade, plan_chunks
from vidlatent.models.tokenizers.promag.blocks import CausalConv
from vidlatent.models.tokenizers.promag.tiling import cut_line

TINY = {
    "name": "promag",
    "latent_channels": 2,
    "width": 2,
    "groups": 1,
    "blocks": 0,
    "first_frame_join": "none",
}


@pytest.fixture(scope="module")
def fixtures(reference):
    return json.loads(reference("promag_fixtures.json").read_text())


def numbered(fixtures, prefix):
    """(number, entry) of the entries whose name is ``prefix`` and a number; there are some."""
    names = [name for name in fixtures if name.startswith(prefix)]
    assert names
    return [(int(name.removeprefix(prefix)), fixtures[name]) for name in names]


def frames_after(model, method, x, kind):
    """Frame counts at every change in ``method``, from the shapes of the layers' outputs."""

    def run(x):
        params = model.init(jax.random.key(0), jnp.zeros((1, 1 + model.latent_spec.t, 8, 8, 3)))
        return model.apply(
            params, x, method=method, capture_intermediates=kind, mutable=["intermediates"]
        )

    (result, _), seen = jax.eval_shape(run, x)
    layers = next(iter(seen["intermediates"].values()))
    return result, {
        name: layer["__call__"][0][0].shape[1] for name, layer in layers.items() if "_" in name
    }


@pytest.mark.parametrize("drop", ["each", "final"])
def test_frame_counts(fixtures, drop):
    for entry in fixtures["frame_counts"]:
        k, frames = entry["k"], entry["T"]
        extra = (4,) * ((k // 4).bit_length() - 1)
        model = build({**TINY, "extra_multipliers": extra, "drop_mode": drop})
        assert model.latent_spec.t == k
        # 1x1 positions in the latent: only time matters here.
        video = jax.ShapeDtypeStruct((1, frames, 8, 8, 3), jnp.float32)
        strided = lambda m, _: isinstance(m, CausalConv) and m.strides[0] == 2  # noqa: E731
        posterior, downs = frames_after(model, "encode", video, strided)
        assert [frames, *(downs[name] for name in sorted(downs))] == entry["encoder"]
        restored, ups = frames_after(model, "decode", posterior.mean, _doubles)
        counts = [ups[name] for name in sorted(ups, reverse=True)]
        assert [entry["encoder"][-1], *counts] == entry[f"decoder_{drop}_drop"]
        assert restored.shape[1] == frames
        if drop == "final":
            assert counts[-1] - restored.shape[1] == entry["final_drop_count"]


def _doubles(module, _):
    return type(module).__name__ == "Up" and module.factors[0] == 2


def test_latents_and_frames(fixtures):
    ((_, spans),) = numbered(fixtures, "latent_to_frame_span_inclusive_")
    for factor, pairs in spans.items():
        got = [latent_span(i, int(factor)) for i in range(len(pairs))]
        assert got == [tuple(pair) for pair in pairs]
    ((length, keys),) = numbered(fixtures, "keyframes_")
    for name, frames in keys.items():
        assert key_frames(length, int(name.removesuffix("x"))) == frames


def test_key_expansion(fixtures):
    for name, want in fixtures["key_expand_index"].items():
        count = int(name.removeprefix("from").split("_")[0])
        index = jnp.arange(count)[None, :, None, None, None]
        assert double_frames(index, True)[0, :, 0, 0, 0].tolist() == want


def test_chunks(fixtures):
    for entry in fixtures["temporal_chunks"]:
        plan = plan_chunks(entry["frames"], entry["overlap"])
        assert list(plan.starts) == entry["starts"] and len(plan.starts) == entry["chunks"]
        assert plan.padded == entry["padded"]
        assert {k: plan.latents(int(k)) for k in entry["latents"]} == entry["latents"]
    for overlap, weights in numbered(fixtures, "blend_w_overlap"):
        np.testing.assert_allclose(compute_fade(overlap), weights)


def test_tile_spans(fixtures):
    for entry in fixtures["tile_spans"]:
        got = cut_line(entry["L"], entry["tile"], entry["overlap"])
        assert got == [tuple(pair) for pair in entry["spans"]]


@pytest.mark.parametrize(
    ("name", "kind", "axes"),
    [
        ("per_frame", "rms", "hw"),
        ("over_time", "rms", "thw"),
        ("ordinary_group_norm_per_frame", "group", "hw"),
    ],
)
def test_group_norms(fixtures, name, kind, axes):
    case = fixtures["rms_group_norm"]
    x = jnp.asarray(case["x"], jnp.float32)
    got = apply_affine(x, group_affine(x, case["groups"], case["eps"], kind, axes))
    np.testing.assert_allclose(got, case[name], atol=2e-6)


def test_rms_norm_keeps_the_mean():
    x = jax.random.normal(jax.random.key(0), (1, 2, 4, 4, 8))

    def norm(x, kind="rms"):
        return apply_affine(x, group_affine(x, 2, 1e-6, kind))

    np.testing.assert_allclose(norm(3 * x), norm(x), atol=1e-5)
    np.testing.assert_allclose(norm(jnp.full_like(x, -0.5)), -1, atol=1e-5)
    np.testing.assert_allclose(norm(jnp.full_like(x, -0.5), "group"), 0, atol=1e-5)
    centred = x.reshape(1, 2, 4, 4, 2, 4)
    centred = (centred - centred.mean(axis=(2, 3, 5), keepdims=True)).reshape(x.shape)
    for kind in ("group", "std_no_shift"):
        np.testing.assert_allclose(norm(centred), norm(centred, kind), atol=1e-5)


def test_frechet_distance(fixtures):
    case = fixtures["frechet_biased_cov"]
    a, b = (np.asarray(case[name]) for name in "ab")
    assert frechet_distance(a, b) == pytest.approx(case["fd"], abs=5e-9)
    shift = case["shift_only"]
    shifted = a + np.asarray(shift["shift"])
    assert frechet_distance(a, shifted) == pytest.approx(shift["expected"], abs=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(b, a) == pytest.approx(case["fd"], abs=5e-9)
    size = (a.shape[1], a.shape[1])
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=size))[0]
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(case["fd"], abs=5e-9)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_sizes_of_promag(fixtures):
    want = fixtures["param_counts_full_size"]
    for channels, grow in ((16, 0), (8, 1)):
        model = build({"name": "promag", "latent_channels": channels, "grow": grow})
        shapes = abstract_params(model)
        layers = [count(shapes["bottleneck"][side]) for side in ("encoder", "decoder")]
        assert layers == list(want[f"bottleneck_z{channels}"].values())
    assert count(shapes["encoder"]) == want["E4_hat"]
    assert count(shapes["decoder"]) == want["D4_hat_without_z_conv"]
    assert count(shapes["image"]) == want["E_img_2d"]
    added = shapes["grow1"]
    assert count(added["encoder"]) == want["grow_encoder_block_total"]
    assert count(added["encoder"].pop("ada")) == want["grow_encoder_ada_1x1x1_512_to_1024"]
    assert count(added["encoder"]) == want["grow_encoder_res4_plus_down"]
    assert count(added["decoder"]) == want["grow_decoder_block"]


@pytest.mark.parametrize("k", [8, 16])
def test_sizes_of_direct_models(fixtures, k):
    """Without the decoder's stem and adaptive norms, as the numbers count them."""
    extra = (4,) * (k // 8)
    fields = {"extra_multipliers": extra, "first_frame_join": "none", "latent_channels": 8}
    shapes = abstract_params(build({"name": "promag", **fields}))
    want = fixtures["param_counts_full_size"]
    assert count(shapes["encoder"]) == want[f"direct{k}_E"]
    assert count(shapes["decoder"]) == want[f"direct{k}_D"]
