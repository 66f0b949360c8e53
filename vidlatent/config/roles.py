"""What a run's model is for: the task says how it is trained, which is not the same."""

from __future__ import annotations

from ml_collections import ConfigDict

__all__ = ["ROLES", "role_of"]

# Tasks that are named after what they train. Other tasks go on training one of the last two.
ROLES = ("tokenizer", "upsampler", "generator", "refiner")


def role_of(config: ConfigDict) -> str:
    """One of ``ROLES``: what can be done with the model that a run of this config trains.

    A run of another task, such as distillation, that names the base model of a refiner
    (``config.refiner.base``) trains a refiner; else it trains a generator.
    """
    if config.task in ROLES:
        return config.task
    if "generator" not in config:
        return "tokenizer"
    return "refiner" if config.refiner.base else "generator"
