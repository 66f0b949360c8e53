"""How much each layer of a generator reads of each earlier layer (FSVideo, figure 6)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.diffusion.objective import draw, fixed_levels
from vidlatent.errors import VidlatentError
from vidlatent.latents.inputs import Inputs, missing_condition_masks
from vidlatent.latents.space import make_noise_schedule
from vidlatent.media.sheets import weight_map
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, replicated

__all__ = ["LayerMemory", "check_memory", "measure_layer_memory"]

_NOISE = 20_241  # seed of the noise, the same in every run and no other use's


@dataclasses.dataclass(frozen=True)
class LayerMemory:
    """Weights that layers give to earlier states, over all tokens of a few clips.

    Row ``l``, from 1, belongs to layer ``l``. State 0 is the input of layer 1, state ``j`` the
    output of layer ``j``. The last state of a row is what a layer without memory would read.

    Attributes:
      largest, mean: over tokens; one row a layer, with a weight for each state that it can read.
    """

    largest: list[list[float]]
    mean: list[list[float]]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def pictures(self) -> dict[str, bytes]:
        """Title -> PNG, for both tables of weights."""
        found = {}
        for words, rows in (
            ("Largest weight over tokens", self.largest),
            ("Mean weight over tokens", self.mean),
        ):
            title = f"Layer memory: {words[0].lower()}{words[1:]}"
            found[title] = weight_map(rows, title=title, down="layer", across="state", first=(1, 0))
        return found


def measure_layer_memory(
    config: ConfigDict,
    inputs: Inputs,
    model: Any,
    frozen: Any,
    mesh: Mesh,
    params: Any,
    batch: Mapping[str, Any],
) -> LayerMemory:
    """Measure the weights on one batch, at the middle noise level and with all conditions.

    Args:
      config: of the run.
      inputs, model, frozen, params: the generator and what it computes with, on the devices.
      mesh: of the run.

    Raises:
      VidlatentError: the generator has no layer memory.
    """
    check_memory(model)
    places = jax.tree.map(lambda leaf: leaf.sharding, (params, frozen))
    rows, whole = batch_sharding(mesh), replicated(mesh)

    def look(params, frozen, batch):
        x0, conditions = inputs(batch, frozen, jax.random.key(_NOISE))
        schedule = make_noise_schedule(config, model, x0.shape[1:4])
        level = jnp.full(x0.shape[:1], fixed_levels(schedule, 1)[0])
        drawn = draw(schedule, jax.random.key(_NOISE), x0, level)
        missing = missing_condition_masks(conditions, model.reads, x0.shape[1])
        return model.apply(
            {"params": params},
            # With the mask, padding of the batch does not count.
            *(drawn.x, drawn.time, conditions, missing, batch["mask"]),
            method="memory_weights",
        )

    arrays = {name: batch[name] for name in inputs.arrays if name in batch}
    run = jax.jit(look, in_shardings=(*places, rows), out_shardings=whole)
    found = run(params, frozen, to_global(arrays, rows))
    largest, mean = (
        # Layer l, from 1, reads states 0 to l - 1; what follows in its row is padding.
        [row[: layer + 1].tolist() for layer, row in enumerate(np.asarray(weights, np.float64))]
        for weights in found
    )
    return LayerMemory(largest, mean)


def check_memory(model: Any) -> None:
    """Raise ``VidlatentError`` unless a generator has layer memory."""
    if not model.memory:
        raise VidlatentError(
            "config.eval.layer_memory: this generator has no layer memory; leave it false."
        )
