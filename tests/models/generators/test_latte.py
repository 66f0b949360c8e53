"""Latte against its definition written out in NumPy, under the names of its published weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.wan_nets import QUICK, drawn, start_shapes
from vidlatent.errors import VidlatentError
from vidlatent.layers.positions import sincos, sincos_plane
from vidlatent.models.generators import build_generator
from vidlatent.weights.importer import export_params, import_params
from vidlatent.weights.tables import TABLES

FIELDS = {"name": "latte", "latent_channels": 3, "width": 16, "depth": 4, "heads": 2}
FIELDS |= {"hidden": 24, "freq_dim": 8, "label_classes": 5}
TABLE = TABLES.get("latte")
GRID = (3, 4, 6)


def array(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class Oracle:
    """Latte of published names in float64, channels last."""

    def __init__(self, tensors, heads):
        self.w = {name: np.asarray(x, np.float64) for name, x in tensors.items()}
        self.heads = heads

    def linear(self, name, x):
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def modulated(self, x, shift, scale):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * (1 + scale[:, None, None]) + shift[:, None, None]

    def attend(self, name, u):
        """Along the last but one axis of ``[B, rows, tokens, D]``."""
        parts = self.linear(name + ".qkv", u).reshape(*u.shape[:3], 3, self.heads, -1)
        q, k, v = np.moveaxis(parts, 3, 0)
        scores = np.einsum("brnhd,brmhd->brhnm", q, k) / np.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        out = np.einsum("brhnm,brmhd->brnhd", scores, v).reshape(u.shape)
        return self.linear(name + ".proj", out)

    def block(self, i, x, c):
        name = f"blocks.{i}"
        parts = self.linear(name + ".adaLN_modulation.1", silu(c)).reshape(len(c), 6, -1)
        shift, scale, gate, shift_ff, scale_ff, gate_ff = parts.swapaxes(0, 1)
        h = self.attend(name + ".attn", self.modulated(x, shift, scale))
        x = x + gate[:, None, None] * h
        h = gelu(self.linear(name + ".mlp.fc1", self.modulated(x, shift_ff, scale_ff)))
        return x + gate_ff[:, None, None] * self.linear(name + ".mlp.fc2", h)

    def __call__(self, x, time, labels, depth, freq):
        b, t, h, w, _ = x.shape
        turns = 10_000.0 ** (-np.arange(freq // 2) / (freq // 2))
        angle = time[:, None] * turns
        c = self.linear("t_embedder.mlp.0", np.concatenate([np.cos(angle), np.sin(angle)], -1))
        c = self.linear("t_embedder.mlp.2", silu(c))
        c = c + self.w["y_embedder.embedding_table.weight"][labels]
        cut = x.reshape(b, t, h // 2, 2, w // 2, 2, -1)
        x = np.einsum("bthpwqc,dcpq->bthwd", cut, self.w["x_embedder.proj.weight"])
        x = (x + self.w["x_embedder.proj.bias"]).reshape(b, t, -1, c.shape[-1])
        x = x + sincos_plane(h // 2, w // 2, x.shape[-1])
        for i in range(0, depth, 2):
            x = self.block(i, x, c).swapaxes(1, 2)
            x = x if i else x + sincos(np.arange(t), x.shape[-1])
            x = self.block(i + 1, x, c).swapaxes(1, 2)
        shift, scale = np.split(self.linear("final_layer.adaLN_modulation.1", silu(c)), 2, -1)
        y = self.linear("final_layer.linear", self.modulated(x, shift, scale))
        y = y.reshape(b, t, h // 2, w // 2, 2, 2, -1).transpose(0, 1, 2, 4, 3, 5, 6)
        return y.reshape(b, t, h, w, -1)


@pytest.fixture(scope="module")
def latte():
    model = build_generator(FIELDS)
    given = (array(0, 2, *GRID, 3), jnp.array([20.0, 900.0]), {"label": jnp.array([3, 5])})
    params = drawn(start_shapes(model, *given))
    run = jax.jit(
        lambda p, *a: model.apply({"params": p}, *a, method="denoise"), compiler_options=QUICK
    )
    return model, params, given, run


def test_definition(latte):
    model, params, given, run = latte
    tensors = export_params(jax.device_get(params), TABLE)
    assert len(tensors) == 2 + 4 + 1 + 4 * 10 + 4
    oracle = Oracle(tensors, model.heads)
    want = oracle(*map(np.asarray, given[:2]), np.array([3, 5]), model.depth, model.freq_dim)
    found = run(params, *given)
    assert found.shape == (2, *GRID, 6) and model.learned_variance
    np.testing.assert_allclose(found, want, atol=1e-4 * np.abs(want).max())
    again = import_params({**tensors, "temp_embed": np.zeros((1, 16, 16))}, TABLE, params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_images_pass_no_temporal_block(latte):
    _, params, (noisy, time, conditions), run = latte
    odd = {**params, "blocks": jax.tree.map(lambda x: x.at[1::2].add(1.0), params["blocks"])}
    image, video = noisy[:, :1], noisy[:, :2]
    np.testing.assert_array_equal(*(run(p, image, time, conditions) for p in (params, odd)))
    a, b = (run(p, video, time, conditions) for p in (params, odd))
    assert np.abs(a - b).max() > 1e-3


def test_places_count_in_all_three_directions(latte):
    _, params, (noisy, time, conditions), run = latte
    for axis, step in ((1, 1), (2, 2), (3, 2)):
        turned = run(params, jnp.roll(noisy, step, axis), time, conditions)
        plain = jnp.roll(run(params, noisy, time, conditions), step, axis)
        assert np.abs(turned - plain).max() > 1e-3, axis


def test_published_sizes():
    """Latte-XL/2 has 673.68 M parameters without classes (Ma et al. 2024, table of sizes)."""
    for classes, size in ((0, 673_681_568), (101, 673_799_072)):
        model = build_generator({"name": "latte", "label_classes": classes})
        noisy = jax.ShapeDtypeStruct((1, 1, 2, 2, 4), jnp.float32)
        labels = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}
        shapes = start_shapes(model, noisy, jax.ShapeDtypeStruct((1,), jnp.float32), labels)
        assert sum(x.size for x in jax.tree.leaves(shapes)) == size


def test_mistakes_are_named(latte):
    _, _, given, _ = latte
    for fields, says in (
        ({"heads": 3}, "use config.generator.heads 2 or 4"),
        ({"depth": 3}, "pairs"),
    ):
        with pytest.raises(VidlatentError, match=says):
            start_shapes(build_generator({**FIELDS, **fields}), *given)
