"""Every stage of every published recipe: its step can be traced at full size, with its networks.

Nothing is computed: shapes alone go through ``init`` and ``train_step``.
"""

import jax
import jax.numpy as jnp
import pytest

from vidlatent.config import load
from vidlatent.infer.load import model_of
from vidlatent.models.frozen import network_shapes
from vidlatent.train.steps.objective import Objective
from vidlatent.train.steps.tokenizer import make_step
from vidlatent.typing import VidlatentError

STAGES = [
    *(f"fsae:paper,stage={stage}" for stage in ("1", "2", "3", "vf")),
    "fsae:standard",
    "fsae:lite",
    *(f"ivvae:paper,stage={stage}" for stage in (1, 2, 3, 4)),
    "reducio_vae:paper",
    "reducio_vae:paper,time=2",
    "promag:paper,image=true",
    "promag:paper",
    "promag:paper,grow=1",
    "promag:paper,grow=2",
    "promag:paper,model=magvit2,k=16",
]


@pytest.mark.parametrize("stage", STAGES)
def test_a_recipe_says_what_it_needs(stage):
    config = load(stage)
    assert config.recipe
    objective = Objective(config.loss.to_dict())
    assert set(objective.networks) >= {"lpips_vgg"}
    with pytest.raises(VidlatentError, match="config.networks.lpips_vgg is empty.*convert|from"):
        make_step(config, model_of(config)).load_networks()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_step_of_every_stage_can_be_traced(stage):
    config = load(stage)
    step = make_step(config, model_of(config))
    state = jax.eval_shape(step.init, jax.random.key(0))
    names = Objective(config.loss.to_dict()).networks
    networks = {name: network_shapes(name) for name in names}
    frames, height, width, _ = max(config.data.buckets)
    batch = {
        "video": jax.ShapeDtypeStruct((1, frames, height, width, 3), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((1,), jnp.float32),
    }
    after, report = jax.eval_shape(step.train_step, state, batch, networks)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert {"loss", "l1", "lpips_vgg"} <= set(report)
    if config.critic.model and (frames > 1 or config.critic.images):
        assert "critic/loss" in report
