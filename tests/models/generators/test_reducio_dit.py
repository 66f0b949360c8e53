"""Reducio-DiT: its condition tokens, its two forms of attention, its sizes and its start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.generator_nets import GRID, array, build, inputs, parameters
from tests.helpers.wan_nets import QUICK, drawn, start_shapes
from vidlatent.errors import VidlatentError
from vidlatent.layers.positions import sincos_plane
from vidlatent.models.generators import build_generator
from vidlatent.models.generators.reducio_dit.names import fields_from_pixart
from vidlatent.weights.tables import initialize_from

PIXART = {"input_size": 32, "patch_size": 2, "in_channels": 4, "hidden_size": 1152, "depth": 28}
PIXART |= {"num_heads": 16, "caption_channels": 4096, "model_max_length": 120}


def tokens_of(model, params, conditions, drop=None, plane=GRID[1:]):
    return model.apply(
        {"params": params}, method=lambda m: m.conditions(conditions, drop, 2, plane)
    )


@pytest.fixture(scope="module")
def reducio():
    model = build("reducio_dit")
    given = inputs(model)
    return model, parameters(model, *given), given[2]


def test_grids_are_parities_of_row_and_column(reducio):
    """8 x 8 latents of the content frame are 4 x 4 tokens, or four grids of 2 x 2."""
    model, params, conditions = reducio
    found = tokens_of(model, params, conditions)
    whole = tokens_of(model.clone(content_side=1), params, conditions)
    assert found.grids.shape == (2, 4, 4, 24) and whole.grids.shape == (2, 1, 16, 24)
    square = whole.grids.reshape(2, 4, 4, 24)
    for grid in range(4):
        want = square[:, grid // 2 :: 2, grid % 2 :: 2].reshape(2, 4, 24)
        np.testing.assert_array_equal(found.grids[:, grid], want)
        seen = found.of_block(jnp.array(grid + 4))
        np.testing.assert_array_equal(seen[:, :4], want)
        np.testing.assert_array_equal(seen[:, 4:], found.every)
    # Content, semantic and text tokens; texts have 4 and 2 of 5.
    np.testing.assert_array_equal(found.lengths, [4 + 3 + 4, 4 + 3 + 2])
    np.testing.assert_array_equal(whole.lengths, [16 + 3 + 4, 16 + 3 + 2])


def test_dropped_images_and_texts(reducio):
    model, params, conditions = reducio
    one = {"image": jnp.array([False, True])}
    both = tokens_of(model, params, conditions, one)
    assert np.all(both.grids[1] == 0) and np.all(both.every[1, :3] == 0) and np.any(both.grids[0])
    apart = tokens_of(model.clone(images_together=False), params, conditions, one)
    assert np.any(apart.grids[1]) and np.all(apart.every[1, :3] == 0)
    text = {"text": jnp.array([False, True])}
    np.testing.assert_array_equal(tokens_of(model, params, conditions, text).lengths, [11, 12])
    long = tokens_of(model.clone(null_as_long=True), params, conditions, text)
    np.testing.assert_array_equal(long.lengths, [11, 9])
    learned = model.clone(null_image="learned")
    vector = array(5, model.width)
    more = {"null_image": vector, "null_content": 2 * vector}
    params = {**params, "conditions": {**params["conditions"], **more}}
    found = tokens_of(learned, params, conditions, one)
    np.testing.assert_array_equal(found.every[1, :3], np.tile(vector, (3, 1)))
    np.testing.assert_array_equal(found.grids[1, 2], np.tile(2 * vector, (4, 1)))


def test_null_text_learns_only_if_asked_to(reducio):
    model, params, conditions = reducio

    def gradient(model):
        def loss(params):
            return jnp.sum(tokens_of(model, params, {**conditions, "text": None}).every)

        return jax.grad(loss)(params)["conditions"]["null_text"]

    assert not np.any(gradient(model))
    assert np.any(gradient(model.clone(null_text="learned")))


def test_frames_meet_in_joint_attention_or_along_time():
    moved = {}
    for attention in ("joint", "2d+1d"):
        model = build("reducio_2d1d", attention=attention, depth=1)
        noisy, *rest = inputs(model)
        params = parameters(model, noisy, *rest)
        assert ("time_attn" in params["blocks"]) == (attention == "2d+1d")
        run = jax.jit(
            lambda p, *a, m=model: m.apply({"params": p}, *a, method="denoise"),
            compiler_options=QUICK,
        )
        other = noisy.at[:, 1].add(1.0)

        def first_frame(p, run=run, rest=rest, noisy=noisy, other=other):
            return np.abs(run(p, other, *rest) - run(p, noisy, *rest))[:, 0].max()

        moved[attention] = first_frame(params)
        if attention == "2d+1d":  # as it starts
            silent = jax.tree.map(jnp.zeros_like, params["blocks"]["time_attn"]["o"])
            still = {**params["blocks"]["time_attn"], "o": silent}
            blocks = {**params["blocks"], "time_attn": still}
            assert first_frame({**params, "blocks": blocks}) == 0
    assert min(moved.values()) > 1e-3


def test_sizes_are_told_from_the_latent():
    model = build("reducio_2d1d", size_embedding=True)
    noisy, time, conditions = inputs(model)
    params = parameters(model, noisy, time, conditions)

    def told(conditions):
        return model.apply({"params": params}, method=lambda m: m._embed_size(noisy, conditions))

    size = jnp.tile(jnp.array([128.0, 128.0, 1.0]), (2, 1))
    np.testing.assert_allclose(told({}), told({"size": size}), atol=1e-6)
    assert np.abs(told({"size": size.at[:, 0].set(96.0)}) - told({})).max() > 1e-3


def test_places_span_the_same_at_every_size():
    fine, coarse = (sincos_plane(n, n, 16, 16.0).reshape(n, n, 16) for n in (32, 16))
    np.testing.assert_allclose(fine[::2, ::2], coarse, atol=1e-6)
    np.testing.assert_allclose(coarse.reshape(-1, 16), sincos_plane(16, 16, 16), atol=1e-6)
    np.testing.assert_allclose(sincos_plane(4, 4, 16, scale=2.0)[8], sincos_plane(4, 4, 16)[4])


def full(fields, noisy, text):
    model = build_generator({"name": "reducio_dit", **fields})
    states = jax.ShapeDtypeStruct((1, 2, text), jnp.float32)
    conditions = {"text": {"states": states, "length": jax.ShapeDtypeStruct((1,), jnp.int32)}}
    conditions |= {name: None for name in model.reads if name != "text"}
    shaped = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (noisy, (1,))]
    return start_shapes(model, *shaped, conditions)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_published_sizes():
    """PixArt-alpha XL/2: 610.9 M (Chen et al. 2023), its fixed null text (120 x 4096) apart."""
    pixart = full(fields_from_pixart(PIXART), (1, 1, 2, 2, 4), 4096)
    assert count(pixart) - 120 * 4096 == 610_856_096
    target = full({}, (1, 1, 2, 2, 16), 4096)
    assert count(target) - 120 * 4096 == 613_682_208
    # Joint attention adds nothing to the blocks.
    shapes = [jax.tree.map(lambda x: x.shape, tree["blocks"]) for tree in (pixart, target)]
    assert shapes[0] == shapes[1]


def test_start_from_pixart(reducio):
    model, params, _ = reducio
    fields = {"latent_channels": 4, "patch": (1, 2, 2), "image_dim": 0, "content_channels": 0}
    image = model.clone(**fields)
    source = drawn(jax.tree.map(lambda x: x, parameters(image, *inputs(image))), 3)
    start = initialize_from("pixart", source, params)
    for part in ("patch_embedding", "head"):
        part = (part, "linear") if part == "head" else (part,)
        ours, fresh = start, params
        for key in part:
            ours, fresh = ours[key], fresh[key]
        jax.tree.map(np.testing.assert_array_equal, ours, fresh)
    for name in ("blocks", "time_embedding", "time_projection"):
        jax.tree.map(np.testing.assert_array_equal, start[name], source[name])
    found = start["conditions"]
    jax.tree.map(
        np.testing.assert_array_equal, found["content_embedding"], source["patch_embedding"]
    )
    np.testing.assert_array_equal(found["null_text"], source["conditions"]["null_text"])
    jax.tree.map(
        np.testing.assert_array_equal,
        found["image_embedding"],
        params["conditions"]["image_embedding"],
    )
    np.testing.assert_array_equal(start["head"]["modulation"], source["head"]["modulation"])
    wide = {**source, "time_projection": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}
    with pytest.raises(VidlatentError, match="time_projection"):
        initialize_from("pixart", wide, params)
    with pytest.raises(VidlatentError, match="PixArt"):
        initialize_from("pixart", {"head": {}}, params)


def test_stage_three_goes_on_from_a_model_without_sizes(reducio):
    """Only the embeddings of size and ratio are new; everything else is the earlier stage's."""
    model, source, _ = reducio
    target = model.clone(size_embedding=True, pixels_per_latent=4)
    fresh = jax.tree.map(lambda x: x + 1, parameters(target, *inputs(target)))
    start = initialize_from("reducio_sizes", source, fresh)
    new = set(start) - set(source)
    assert new == {"extent_embedding", "ratio_embedding"}
    for name in new:
        jax.tree.map(np.testing.assert_array_equal, start[name], fresh[name])
    for name in source:
        jax.tree.map(np.testing.assert_array_equal, start[name], source[name])
    again = initialize_from("reducio_sizes", start, fresh)
    jax.tree.map(np.testing.assert_array_equal, again, start)


def test_mistakes_are_named(reducio):
    model, params, conditions = reducio
    for change, match in (
        ({"null_text": "none"}, "null_text"),
        ({"null_image": "none"}, "null_image"),
        ({"content_side": 3}, "content_side"),
    ):
        with pytest.raises(VidlatentError, match=match):
            tokens_of(model.clone(**change), params, conditions)
    with pytest.raises(VidlatentError, match="attention"):
        tokens_of(model.clone(attention="1d"), params, conditions)
    with pytest.raises(VidlatentError, match="axis H"):
        tokens_of(model, params, conditions, plane=(8, 4))
    odd = {**conditions, "content": conditions["content"][:, :6]}
    with pytest.raises(VidlatentError, match="do not part into grids"):
        tokens_of(model, params, odd, plane=None)
    with pytest.raises(VidlatentError, match="no size"):
        tokens_of(model, params, {**conditions, "content": None}, plane=None)
