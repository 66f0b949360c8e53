"""Cases of the video transformer: its fields, its weights by both namings, its inputs."""

import json
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.models.generators import build_generator
from vidlatent.models.generators.wan.names import (
    WAN_DIFFUSERS_TABLE,
    fields_from_diffusers,
)
from vidlatent.weights.importer import import_params


def channel_last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


@dataclass
class WanCase:
    """A plain case, or one with layer memory on the inputs and weights of another."""

    arrays: dict
    memory: dict | None = None

    @cached_property
    def tensors(self):
        both = {**self.arrays, **(self.memory or {})}
        return {name[3:]: value for name, value in both.items() if name.startswith("sd.")}

    @cached_property
    def model(self):
        config = json.loads(str(self.arrays["config_json"]))
        fields = {**fields_from_diffusers(config), "memory": self.memory is not None}
        return build_generator({"name": "wan", **fields})

    @cached_property
    def shapes(self):
        return jax.eval_shape(self.model.init, jax.random.key(0), *self.inputs)["params"]

    @cached_property
    def params(self):
        return import_params(self.tensors, WAN_DIFFUSERS_TABLE, self.shapes)

    @cached_property
    def inputs(self):
        a = self.arrays
        image = a.get("in.encoder_hidden_states_image")
        return (
            channel_last(a["in.hidden_states"]),
            jnp.asarray(a["in.timestep"]),
            jnp.asarray(a["in.encoder_hidden_states"]),
            None if image is None else jnp.asarray(image),
        )

    def expected(self, name):
        return (self.arrays if self.memory is None else self.memory)[name]

    def loss(self, params, latent, **fields):
        """The case's scalar, whose gradients it holds, and the output."""
        out = self.model.clone(**fields).apply({"params": params}, latent, *self.inputs[1:])
        return jnp.sum(out * channel_last(self.arrays["grad.cotangent"])), out
