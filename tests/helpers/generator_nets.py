"""One tiny generator of each kind, with weights that are nowhere zero and conditions to read."""

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.models.generators import build_generator

WIDTHS = {"width": 24, "depth": 2, "heads": 2, "hidden": 16}
KINDS = {
    "wan": {"name": "wan", "latent_channels": 3, "mask_channels": 1, "condition_channels": 3}
    | {"freq_dim": 8, "text_dim": 6, "text_length": 5, "image_dim": 5, "depth": 2},
    "latte": {"name": "latte", "latent_channels": 3, "freq_dim": 8, "label_classes": 4},
    "reducio_dit": {"name": "reducio_dit", "latent_channels": 3, "freq_dim": 8}
    | {"text_dim": 6, "text_length": 5, "image_dim": 5, "image_tokens": 3, "content_factor": 2}
    | {"position_span": 4.0, "content_side": 2, "depth": 3},
    "reducio_2d1d": {"name": "reducio_dit", "latent_channels": 3, "freq_dim": 8}
    | {"text_dim": 6, "text_length": 5, "image_dim": 0, "attention": "2d+1d"}
    | {"content_factor": 2, "null_image": "learned", "null_text": "learned"},
    "promag_dit": {"name": "promag_dit", "latent_channels": 3, "width": 32, "time_dim": 12}
    | {"text_dim": 6, "text_length": 5},
}
LABELLED = ("wan", "reducio_dit", "promag_dit")  # by choice of a field
for kind in LABELLED:
    KINDS[kind + "_label"] = {**KINDS[kind], "label_classes": 4, "label_tokens": 2}
GRID = (2, 4, 4)


def build(kind, dtype=jnp.float32, **fields):
    return build_generator({**WIDTHS, **KINDS[kind], **fields}, dtype)


def array(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def conditions_of(model, batch=2, grid=GRID):
    """Whatever the generator reads; lengths of texts differ."""
    found = {}
    for name in model.reads:
        if name == "text":
            lengths = jnp.array([4, 2] * (batch // 2))
            found[name] = {"states": array(1, batch, 4, model.text_dim), "length": lengths}
        elif name == "label":
            found[name] = jnp.array([2, 0] * (batch // 2))
        elif name == "image":
            found[name] = array(2, batch, 3, model.image_dim)
        elif name == "first":
            found[name] = array(3, batch, 1, *grid[1:], model.condition_channels)
        else:
            side = [model.content_factor * n for n in grid[1:]]
            found[name] = array(4, batch, *side, model.content_channels) * 5
    return found


def inputs(model, batch=2, grid=GRID):
    noisy = array(0, batch, *grid, model.latent_channels)
    return noisy, jnp.linspace(20.0, 900.0, batch), conditions_of(model, batch, grid)


def parameters(model, *given):
    """Drawn ones: none is zero, and modulations stay near their size in training."""

    def init(*args):
        return model.init(jax.random.key(0), *args, method="denoise")

    rng = np.random.default_rng(0)

    def draw(leaf):
        size = 0.3 if leaf.ndim < 2 else leaf.shape[-2] ** -0.5
        return jnp.asarray(size * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree.map(draw, jax.eval_shape(init, *given)["params"])
