"""ProMAG models so small that compiling them is all that takes time, with random weights."""

import functools

import jax
import jax.numpy as jnp

from tests.helpers.nets import fast_jit, randomise
from vidlatent.models.tokenizers import build

CONFIG = {
    "name": "promag",
    "latent_channels": 4,
    "width": 4,
    "multipliers": (1, 1, 2),
    "temporal_down": (0, 1),
    "blocks": 1,
    "grow_blocks": 1,
    "groups": 2,
    "first_frame_join": "none",
}
SIZE = 8


class Net:
    """A model with random parameters everywhere, compiled per method."""

    def __init__(self, params=None, **fields):
        self.model = build({**CONFIG, **fields})
        self.k = self.model.latent_spec.t
        video = jnp.zeros((1, 1 + self.k, SIZE, SIZE, 3))
        self.shapes = jax.eval_shape(self.model.init, jax.random.key(0), video)["params"]
        self.params = randomise(self.shapes) if params is None else params
        self._compiled = {}

    def run(self, method, x, cache=None):
        def call(params, x, cache):
            return self.model.apply({"params": params}, x, cache=cache, method=method)

        return self._compiled.setdefault(method, fast_jit(call))(self.params, x, cache)

    def moments(self, video, cache=None):
        posterior, cache = self.run("encode", video, cache)
        return jnp.concatenate(posterior, axis=-1), cache

    def encode(self, video):
        return self.run("encode", video)[0].mean

    def decode(self, latent):
        return self.run("decode", latent)[0]

    def apply(self, function, *args):
        """``function(bound model, *args)``, compiled."""
        return fast_jit(lambda p, *a: self.model.apply({"params": p}, *a, method=function))(
            self.params, *args
        )

    def chunked(self, method, x, sizes):
        parts, cache, start = [], None, 0
        for size in sizes:
            part, cache = method(x[:, start : start + size], cache)
            parts.append(part)
            start += size
        return jnp.concatenate(parts, axis=1)


@functools.cache
def net(k=4, **fields):
    """The net of compression ``k``, grown from 4."""
    return Net(grow=(k // 4).bit_length() - 1, **fields)


def video_of(frames, seed=0, batch=1):
    return jax.random.uniform(
        jax.random.key(seed), (batch, frames, SIZE, SIZE, 3), minval=-1, maxval=1
    )


def without_residual(params):
    """Down convolutions of the added blocks set to zero."""
    zeroed = dict(params)
    for name in params:
        if name.startswith("grow"):
            down = jax.tree.map(jnp.zeros_like, params[name]["encoder"]["down"])
            zeroed[name] = {
                **params[name],
                "encoder": {**params[name]["encoder"], "down": down},
            }
    return zeroed
