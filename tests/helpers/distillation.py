"""What the tests of distillation share: tasks whose teacher has random weights, without any run."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers.generator_steps import config_of, facts
from vidlatent.config import distil_guidance, halve_steps
from vidlatent.latents.space import abstract_generator, generator_of
from vidlatent.latents.teacher import Teacher
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.train.tasks.distill_guidance import GuidanceTask
from vidlatent.train.tasks.distill_progressive import ProgressiveTask

PLACE = {"workdir": "runs/teacher", "step": 1}


def random_params(model, seed=0):
    """Weights with which every layer counts: the heads of new models are 0."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype),
        abstract_generator(model),
    )


def make_teacher(config, guidance=None, grid=None):
    model = generator_of(config)
    network = FrozenNetwork(abstract_generator(model), lambda abstract: abstract)
    return Teacher(config, model, network, guidance, grid, PLACE)


def guidance_task(system, scale=2.5, told="label", base=None, **keys):
    """``(task, the teacher's model)``: the demo ``system`` distilled from itself."""
    teacher = config_of(system)
    config = config_of(system)
    with config.unlocked():
        distil_guidance(config, scale, told, config.recipe)
        set_keys(config, keys)
    taught = make_teacher(teacher, **(base or {}))
    return GuidanceTask(config, generator_of(config), facts(), taught), taught.model


def progressive_task(system, stages=(4, 2), steps=4, base=None, **keys):
    config = config_of(system)
    teacher = config_of(system, sampler__steps=2 * stages[0])
    with config.unlocked():
        halve_steps(config, stages, config.recipe)
        config.sampler.spacing = "" if config.sampler.name == "euler" else "trailing"
        config.train.steps = steps
        config.data.buckets = ((5, 16, 16, 4),)
        config.distill.unguided = True
        set_keys(config, keys)
    return ProgressiveTask(
        config, generator_of(config), facts(), make_teacher(teacher, **(base or {}))
    )


def set_keys(config, keys):
    """``section__key`` of a config."""
    for key, value in keys.items():
        *sections, name = key.split("__")
        node = config
        for section in sections:
            node = node[section]
        node[name] = value
