"""A video model so small that compiling it is all that takes time, with random weights."""

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.models.tokenizers import build

CONFIG = {
    "name": "fsae",
    "latent_channels": 4,
    "encoder_widths": (4, 8, 8),
    "decoder_widths": (4, 8, 8),
    "encoder_depths": (1, 1, 1),
    "decoder_depths": (1, 1, 1),
    "block_types": ("res", "res", "evit"),
    "multiscales": ((), (), (5,)),
    "head_dim": 4,
    "temporal_down": (0, 1),
}
SIZE = 16


def fast_jit(f, **options):
    """``jax.jit`` that compiles in a fraction of the time; these programs run for milliseconds."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0}, **options)


class Net:
    """A model with random parameters everywhere (biases and norms too), compiled per method."""

    def __init__(self, params=None, **fields):
        self.model = build({**CONFIG, **fields})
        video = jnp.zeros((1, self.model.latent_spec.rule.first, SIZE, SIZE, 3))
        self.shapes = jax.eval_shape(self.model.init, jax.random.key(0), video)["params"]
        self.params = randomise(self.shapes) if params is None else params
        self._compiled = {}

    def run(self, method, x, **given):
        """A method of the model on this net's parameters, compiled."""

        def call(params, x, given):
            return self.model.apply({"params": params}, x, **given, method=method)

        return self._compiled.setdefault(method, fast_jit(call))(self.params, x, given)

    def init(self, seed=0):
        """Parameters as training starts with them."""
        return fast_jit(self.model.init)(jax.random.key(seed), video_of(1))["params"]

    def encode(self, video, cache=None):
        posterior, cache = self.run("encode", video, cache=cache)
        return posterior.mean, cache

    def decode(self, latent, cache=None, condition=None):
        return self.run("decode", latent, cache=cache, condition=condition)

    def condition(self, video):
        return self.run("make_condition", video)

    def chunked(self, method, x, sizes, **given):
        run, parts, cache, start = getattr(self, method), [], None, 0
        for size in sizes:
            part, cache = run(x[:, start : start + size], cache, **given)
            given = {}
            parts.append(part)
            start += size
        return jnp.concatenate(parts, axis=1)


def randomise(shapes):
    rng = np.random.default_rng(7)

    def draw(path, leaf):
        name = path[-1].key
        x = rng.normal(size=leaf.shape)
        if name == "scale":
            return jnp.asarray(1 + 0.2 * x, jnp.float32)
        fan = np.prod(leaf.shape[:-1]) if name == "kernel" else 100.0
        return jnp.asarray(x / np.sqrt(fan), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def video_of(frames, seed=0):
    shape = (1, frames, SIZE, SIZE, 3)
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


def frame0_features(model, video):
    """A bound FSAE's encoder features of frame 0, one ``[B, H / 2^i, W / 2^i, C_i]`` per stage."""
    seen = model.encoder_values(video)
    return tuple(seen[f"stage_{i}"][:, 0] for i in range(len(model.encoder_widths)))


def decoder_values(model, latent):
    """A bound FSAE's intermediate values of decoding, by name."""
    return model.decoder(latent)[2]
