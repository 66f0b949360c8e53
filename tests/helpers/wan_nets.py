"""A video transformer small enough for every test, its weights drawn so that nothing is zero."""

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.models.generators import build_generator

QUICK = {"xla_backend_optimization_level": 0}  # each program runs once
FIELDS = {
    "name": "wan",
    "latent_channels": 3,
    "mask_channels": 1,
    "condition_channels": 3,
    "width": 24,
    "depth": 3,
    "heads": 2,
    "hidden": 32,
    "freq_dim": 8,
    "text_dim": 6,
    "image_dim": 5,
}


def net(dtype=jnp.float32, **fields):
    return build_generator({**FIELDS, **fields}, dtype)


def drawn(shapes, seed=0, size=0.3):
    """Random parameters of these shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(size * rng.standard_normal(x.shape), jnp.float32), shapes
    )


def input_shapes(model, batch=2, grid=(2, 2, 3), text=5, image=4):
    shapes = {"latent": (batch, *grid, model.in_channels), "text": (batch, text, model.text_dim)}
    if model.image_dim:
        shapes["image"] = (batch, image, model.image_dim)
    shapes["time"] = (batch,)
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def inputs(model, batch=2, **sizes):
    found = drawn(input_shapes(model, batch, **sizes), 1, 1.0)
    return {**found, "time": jnp.linspace(20.0, 900.0, batch)}


def shapes_of(model):
    given = input_shapes(model, 1, model.patch, 1, 1)
    return jax.eval_shape(lambda a: model.init(jax.random.key(0), **a), given)["params"]


def running(model, method="__call__"):
    return jax.jit(
        lambda p, a: model.apply({"params": p}, **a, method=method), compiler_options=QUICK
    )


def start_shapes(model, *given):
    """Shapes of the parameters that ``denoise`` with these arguments makes."""
    return jax.eval_shape(lambda *a: model.init(jax.random.key(0), *a, method="denoise"), *given)[
        "params"
    ]
