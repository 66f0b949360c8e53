"""Properties of Wan2.1's transformer for any weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.wan_nets import drawn, inputs, net, running, shapes_of
from vidlatent.errors import VidlatentError
from vidlatent.layers.patches import from_patches, to_patches
from vidlatent.layers.positions import axis_sizes, rope_tables, rotate_pairs
from vidlatent.models.generators import build_generator
from vidlatent.models.generators.conditions import (
    make_frame_mask,
    mark_first_frame,
    pad_text,
)
from vidlatent.models.generators.wan.names import fields_from_original


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def changed(params, path, change):
    """A copy with the leaf at ``path`` replaced by ``change`` of it."""
    head, *rest = path
    value = changed(params[head], rest, change) if rest else change(params[head])
    return {**params, head: value}


@pytest.fixture(scope="module")
def plain():
    model = net(memory=False)
    params = drawn(shapes_of(model))
    return model, params, inputs(model), running(model)


def test_full_sizes():
    shapes = shapes_of(build_generator({"name": "wan"}))
    routers = {name: leaf for name, leaf in shapes.items() if name.startswith("router")}
    assert count(routers) == 4_194_099 == sum(n * (5120 + 1) for n in range(2, 41))
    assert count(shapes) - count(routers) == 16_395_800_448
    wan = {"dim": 5120, "num_layers": 40, "num_heads": 40, "ffn_dim": 13824, "freq_dim": 256}
    wan |= {"out_dim": 16, "eps": 1e-6}
    for kind, channels, size in (("i2v", 36, 16_394_878_784), ("t2v", 16, 14_288_491_584)):
        fields = fields_from_original({**wan, "model_type": kind, "in_dim": channels})
        assert count(shapes_of(build_generator({"name": "wan", **fields}))) == size


def test_a_new_model_is_still(plain):
    model, _, given, run = plain
    fresh = jax.jit(model.init)(jax.random.key(0), **inputs(model, 1, grid=(1, 1, 1)))["params"]
    assert not np.any(run(fresh, given))
    # Every layer is drawn for itself.
    kernels = fresh["blocks"]["ffn"]["fc1"]["kernel"]
    assert np.all(np.abs(kernels[0] - kernels[1]).max() > 0.01)
    assert 0.9 < np.max(kernels) / np.sqrt(6 / (24 + 32)) <= 1


def test_rows_of_a_batch_do_not_meet(plain):
    """Samples do not depend on each other, so guidance may batch its branches."""
    _, params, given, run = plain
    turned = run(params, jax.tree.map(lambda x: x[::-1], given))
    np.testing.assert_allclose(turned[::-1], run(params, given), atol=1e-6)


def test_query_scale_does_not_count(plain):
    _, params, given, run = plain
    still = changed(params, ("blocks", "self_attn", "q", "bias"), jnp.zeros_like)
    louder = changed(still, ("blocks", "self_attn", "q", "kernel"), lambda x: 7 * x)
    np.testing.assert_allclose(run(louder, given), run(still, given), atol=1e-4)


def test_padding_of_the_text_is_attended_to(plain):
    _, params, given, run = plain
    lengths = jnp.array([3, 3])
    noise = given["text"].at[:, 3:].add(5.0)
    padded = run(params, {**given, "text": pad_text(given["text"], lengths, 5)})
    again = run(params, {**given, "text": pad_text(noise, lengths, 5)})
    np.testing.assert_array_equal(padded, again)
    cut = run(params, {**given, "text": given["text"][:, :3]})
    assert np.abs(cut - padded).max() > 1e-3
    with pytest.raises(VidlatentError, match="cut the text"):
        pad_text(given["text"], lengths, 4)


def test_leaving_the_image_out_is_silencing_its_values(plain):
    _, params, given, run = plain
    silent = params
    for name in ("kernel", "bias"):
        silent = changed(silent, ("blocks", "cross_attn", "v_img", name), jnp.zeros_like)
    without = run(params, {name: x for name, x in given.items() if name != "image"})
    np.testing.assert_allclose(run(silent, given), without, atol=1e-6)


def test_time_counts_and_stays_exact(plain):
    model, params, given, run = plain
    first, last = (run(params, {**given, "time": jnp.full(2, t)}) for t in (0.0, 999.0))
    assert np.abs(first - last).max() > 1e-3
    half = net(jnp.bfloat16, memory=False, residual_dtype="bfloat16")
    seen = jax.eval_shape(
        lambda p, a: half.apply({"params": p}, **a, method="values"), params, given
    )
    assert seen["temb"].dtype == seen["time"].dtype == seen["output"].dtype == jnp.float32
    assert {block["state"].dtype for block in seen["blocks"]} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (2, 2, 1)])
def test_patches_and_back(patch):
    """With an identity kernel and head, the latent passes through unchanged."""
    size = int(np.prod(patch)) * 2
    model = net(
        latent_channels=2,
        mask_channels=0,
        condition_channels=0,
        patch=patch,
        width=2 * size if size > 6 else 12,
        heads=1,
        memory=False,
    )
    latent = jnp.arange(2 * 4 * 4 * 4 * 2, dtype=jnp.float32).reshape(2, 4, 4, 4, 2)
    grid = tuple(n // p for n, p in zip(latent.shape[1:4], patch, strict=True))
    tokens = to_patches(latent, patch)
    assert tokens.shape == (2, int(np.prod(grid)), size)
    # The head's features are cut as the kernel's inputs are: (pt, ph, pw, c).
    np.testing.assert_array_equal(from_patches(tokens, grid, patch), latent)
    last = tokens.reshape(2, -1, size // 2, 2).swapaxes(2, 3).reshape(tokens.shape)
    np.testing.assert_array_equal(from_patches(last, grid, patch, channels_first=True), latent)
    shapes = jax.eval_shape(
        lambda p: model.apply({"params": p}, **{**inputs(model), "latent": latent}),
        shapes_of(model),
    )
    assert shapes.shape == latent.shape


def test_rotary_positions():
    assert axis_sizes(128) == (44, 42, 42)
    # Channel pair i of an axis of n channels turns by place * 10000^(-2 i / n).
    tables, places = rope_tables((2, 3, 4), 128), np.indices((2, 3, 4)).reshape(3, -1)
    angles = [
        place[:, None] * 10_000.0 ** (-2 * np.arange(size // 2) / size)
        for place, size in zip(places, (44, 42, 42), strict=True)
    ]
    angles = np.concatenate(angles, axis=1)
    for table, wanted in zip(tables, (np.cos(angles), np.sin(angles)), strict=True):
        assert table.dtype == np.float32
        np.testing.assert_allclose(table, wanted, atol=1e-7)
    grid, dim = (3, 4, 5), 16
    tables = rope_tables(grid, dim)
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 1, dim)) for i in range(2))
    turned = [rotate_pairs(jnp.broadcast_to(x, (1, 60, 1, dim)), tables)[0, :, 0] for x in (q, k)]
    np.testing.assert_allclose(jnp.linalg.norm(turned[0], axis=-1), jnp.linalg.norm(q), rtol=1e-5)
    scores = (turned[0] @ turned[1].T).reshape(*grid, *grid)
    np.testing.assert_allclose(
        scores[1:, 1:, 1:, 1:, 1:, 1:], scores[:-1, :-1, :-1, :-1, :-1, :-1], atol=1e-5
    )
    with pytest.raises(VidlatentError, match="rotary"):
        rope_tables(grid, 7)


def test_masks():
    mask = make_frame_mask(jnp.zeros(121).at[0].set(1))
    assert mask.shape == (31, 4)
    assert np.all(mask[0] == 1) and np.sum(mask) == 4
    np.testing.assert_array_equal(make_frame_mask(jnp.arange(5) == 0, 1), [[1], [0]])
    # Two clips: the last group of four given as a whole, and one frame of it alone.
    given = jnp.zeros((2, 121)).at[0, 117:].set(1).at[1, 118].set(1)
    np.testing.assert_array_equal(make_frame_mask(given, 1)[:, -1, 0], [1, 0.25])
    np.testing.assert_array_equal(make_frame_mask(given)[1, -1], [0, 1, 0, 0])
    given = mark_first_frame(jnp.ones((2, 1, 6, 10, 3)), 31)
    assert given.shape == (2, 31, 6, 10, 7)
    assert np.sum(given[0, ..., :4]) == 4 * 6 * 10
    assert np.all(given[:, 0] == 1) and not np.any(given[:, 1:])
    with pytest.raises(VidlatentError, match=r"1 \+ 4 k"):
        make_frame_mask(jnp.ones(4))
    with pytest.raises(VidlatentError, match="mask_channels"):
        make_frame_mask(jnp.ones(5), 3)


def test_mistakes_are_named(plain):
    model, _, given, _ = plain
    start = {"params": shapes_of(model)}

    def apply(model, start, **change):
        return jax.eval_shape(lambda s: model.apply(s, **{**given, **change}), start)

    with pytest.raises(VidlatentError, match="channel|axis C"):
        apply(model, start, latent=given["latent"][..., :3])
    with pytest.raises(VidlatentError, match="text tokens"):
        apply(model, start, text=None)
    with pytest.raises(VidlatentError, match="patches"):
        cut = net(patch=(1, 2, 2), memory=False)
        apply(cut, {"params": shapes_of(cut)})
    with pytest.raises(VidlatentError, match="heads"):
        apply(net(heads=5), start)
    with pytest.raises(VidlatentError, match="stack"):
        apply(net(stack="wide"), start)
    with pytest.raises(VidlatentError, match="image_dim 0"):
        words = net(image_dim=0, memory=False)
        apply(words, {"params": shapes_of(words)})
