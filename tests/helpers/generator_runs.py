"""What the tests of generators share: a tokenizer's workdir without any training."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent import config as configs
from vidlatent.checkpoint.manager import Checkpointer
from vidlatent.latents.channels import follow_latents
from vidlatent.models.load import abstract_params, model_of
from vidlatent.train.tasks.base import make_task
from vidlatent.weights.files import load_params

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


def tokenizer_run(folder, seed=0, start="", frozen=True, **fields):
    """A workdir with random weights, as if it had been trained for one step; its path.

    Args:
      folder: of the run.
      seed: of the weights.
      start: workdir that it started from, whose encoder it has if that was ``frozen``.
      fields: of the model, beside ``MODEL``.
    """
    config = configs.load("fsae")
    with config.unlocked():
        config.model.update({**MODEL, **fields})
        config.train.init_from = str(start)
    folder.mkdir(parents=True, exist_ok=True)
    configs.write(config, folder)
    model = model_of(config)
    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100.0
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan), jnp.float32)

    params = jax.tree.map(draw, abstract_params(model))
    if start and frozen:
        former = abstract_params(model_of(configs.read(Path(start))))
        params["encoder"] = load_params(start, former, family="fsae")["encoder"]
    save_step(config, folder, params, model.latent_spec)
    return str(folder)


def save_step(config, folder, params, spec, step=1):
    """A checkpoint with these averaged parameters."""
    checkpoints = Checkpointer(folder / "checkpoints", every=0)
    about = {"iterator": {}, "spec": spec, "config_hash": configs.config_hash(config)}
    checkpoints.save(step, {"ema": params}, **about, force=True)
    checkpoints.wait()
    checkpoints.close()


def generator_run(config, folder, labels=()):
    """The workdir of a generator (or upsampler) with random weights, on the config's latents."""
    config = follow_latents(config)
    task, rng = make_task(config), np.random.default_rng(0)
    shapes = task.abstract_params(task.config)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 10, leaf.dtype), shapes
    )
    folder.mkdir(parents=True)
    configs.write(config, folder)
    task.begin(folder, 0, labels)
    save_step(config, folder, params, task.spec)
    return str(folder)


def tiny(tokenizer, arg="", **overrides):
    """The tiny generator's config, on that tokenizer."""
    keys = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return configs.load(
        f"tests/generator_tiny.py:{arg}", {"tokenizer.path": str(tokenizer), **keys}
    )
