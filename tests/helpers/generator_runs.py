"""What the tests of generators share: a tokenizer's workdir without any training."""

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent import config as configs
from vidlatent.checkpoint.manager import Checkpointer
from vidlatent.models.load import abstract_params, model_of

# Two convolutions and a step in time and space: t, h, w = 2, 2, 2.
MODEL = {
    "encoder_widths": (4, 8),
    "decoder_widths": (4, 8),
    "encoder_depths": (0, 1),
    "decoder_depths": (0, 1),
    "block_types": ("res", "res"),
    "multiscales": ((), ()),
    "temporal_down": (0,),
    "latent_channels": 4,
    "up_form": "nearest",
}
QUICK = {"xla_backend_optimization_level": 0}


def tokenizer_run(folder, seed=0):
    """A workdir with random weights, as if it had been trained for one step; its path."""
    config = configs.load("fsae")
    with config.unlocked():
        config.model.update(MODEL)
    folder.mkdir(parents=True, exist_ok=True)
    configs.write(config, folder)
    model = model_of(config)
    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100.0
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan), jnp.float32)

    params = jax.tree.map(draw, abstract_params(model))
    checkpoints = Checkpointer(folder / "checkpoints", every=0)
    checkpoints.save(
        1,
        {"ema": params},
        iterator={},
        spec=model.latent_spec,
        config_hash=configs.config_hash(config),
        force=True,
    )
    checkpoints.wait()
    checkpoints.close()
    return str(folder)


def tiny(tokenizer, arg="", **overrides):
    """The tiny generator's config, on that tokenizer."""
    keys = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return configs.load(
        f"tests/generator_tiny.py:{arg}", {"tokenizer.path": str(tokenizer), **keys}
    )
