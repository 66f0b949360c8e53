"""Training steps by rewards on random weights: config, task, frozen networks, prompts."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers.generator_runs import MODEL
from tests.helpers.generator_steps import config_of
from vidlatent.config import load
from vidlatent.latents.contract import LatentSpace
from vidlatent.latents.space import Latents, generator_of
from vidlatent.models.load import model_of
from vidlatent.train.tasks.base import TASKS

LABELS = ("red square moving left", "green circle moving up")


def tokenizer_config(**fields):
    config = load("fsae")
    with config.unlocked():
        config.model.update({**MODEL, **fields})
    return config


def grpo_config(system="fsvideo_dit:demo", **keys):
    """A policy of 4 steps whose windows have 2; ``rl__group=...`` sets keys."""
    usual = {
        "task": "grpo",
        "tokenizer__path": "tokenizer",
        "rewards__use": ("motion",),
        "rl__group": 4,
        "rl__clip": 1e-3,
        "sample__fps": 8.0,
    }
    config = config_of(system)
    with config.unlocked():
        config.generator.patch = (1, 1, 1)
        config.sampler.name, config.sampler.steps, config.sampler.guidance.scales = "euler", 4, ()
        config.sampler.guidance.drops = ()
        config.optim.update({"lr": 1e-3, "weight_decay": 0.0})
        config.rl.window.stay = 3
        for key, value in {**usual, **keys}.items():
            place, _, name = key.rpartition("__")
            section = config
            for part in filter(None, place.split("__")):
                section = section[part]
            section[name] = value
    return config


def refl_config(system="fsvideo_dit:demo", **keys):
    """As ``grpo_config``, for gradients of rewards at the first two of 4 steps."""
    usual = {"refl__steps": (0, 1), "refl__latents": 0, "refl__scale": 1.0, "optim__lr": 1e-2}
    return grpo_config(system, task="refl", **{**usual, **keys})


def make(config, own=None, **keys):
    """Task, state and frozen networks with random weights; ``own`` is the tokenizer's config."""
    own = tokenizer_config() if own is None else own
    spec = model_of(own).latent_spec
    latents = Latents(LatentSpace(spec, (0.0,) * 4, (1.0,) * 4), LABELS, 8.0)
    task = TASKS.get(config.task)(config, generator_of(config), latents, tokenizer=own, **keys)
    state = jax.jit(task.init)(jax.random.key(0))
    # A head begins with zeros, and a policy that always says 0 learns nothing below it.
    state["params"] = randomize(state["params"], 1)
    state["ema"] = jax.tree.map(jnp.copy, state["params"])
    frozen = {name: randomize(network.abstract, 2) for name, network in task.frozen.items()}
    return task, state, frozen


def randomize(tree, seed):
    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100.0
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan), leaf.dtype)

    return jax.tree.map(draw, tree)


def prompts(task, size=2, frames=2, side=2):
    rng = np.random.default_rng(0)
    batch = {
        "latent": rng.normal(size=(size, frames, side, side, 4)).astype(np.float32),
        "mask": np.ones(size, np.float32),
        "label": np.arange(size, dtype=np.int32) % len(LABELS),
        "clip": np.arange(size, dtype=np.int32),
    }
    return task.read_batch(batch)
