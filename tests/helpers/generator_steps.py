"""A generator's training step on random latents: config, facts of the latents, batch."""

import numpy as np

from vidlatent.config import load
from vidlatent.latents.contract import LatentSpace
from vidlatent.latents.space import Latents
from vidlatent.spec import FrameRule, LatentSpec

SMALL = {"width": 32, "depth": 2, "heads": 2, "hidden": 32, "latent_channels": 4}


def config_of(system, **keys):
    config = load(system)
    with config.unlocked():
        config.generator.update(SMALL)
        if "condition_channels" in config.generator and config.generator.condition_channels:
            config.generator.condition_channels = 4
        config.optim.update({"lr": 1e-2, "warmup_steps": 0, "schedule": "constant"})
        config.diffusion.eval_levels = 2
        for key, value in keys.items():
            section, _, name = key.partition("__")
            config[section][name] = value
    return config


def facts(std=2.0, rule=None):
    spec = LatentSpec("toy", 4, 4, 4, 4, rule or FrameRule(1, 4))
    return Latents(LatentSpace(spec, (0.5,) * 4, (std,) * 4), ("a", "b"), 8.0)


def batch_of(size=4, frames=2, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "latent": (0.5 + 2 * rng.normal(size=(size, frames, 4, 4, 4))).astype(np.float32),
        "mask": np.ones(size, np.float32),
        "label": rng.integers(0, 2, size).astype(np.int32),
        "content": rng.integers(0, 256, (size, 1, 16, 16, 3), np.uint8),
        "clip": np.arange(size, dtype=np.int32),
        "start": np.zeros(size, np.float32),
    }
