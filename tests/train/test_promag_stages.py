"""Three steps of a growing stage: earlier parts stay bit-identical, all new ones change."""

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent import config as configs
from vidlatent.models.tokenizers import build
from vidlatent.train.freeze import mark_frozen
from vidlatent.train.tasks.tokenizer import TokenizerTask
from vidlatent.weights.tables import initialize_from


def tiny(arg):
    config = configs.load(f"configs/promag.py:join=feature,{arg}")
    model = config.model
    model.multipliers, model.temporal_down = (1, 2), (0,)
    model.width, model.groups, model.latent_channels = 4, 2, 4
    return config


def leaves(tree):
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_a_stage_trains_its_own_parts_only():
    config = tiny("grow=2")
    step = TokenizerTask(config, build(config.model.to_dict()))
    quick = {"xla_backend_optimization_level": 0}
    state = jax.jit(step.init, compiler_options=quick)(jax.random.key(1))
    earlier = {name: part for name, part in state["params"].items() if name != "grow2"}
    before = jax.tree.map(lambda x: x + np.float32(0.01), earlier)
    start = initialize_from(config.train.init_kind, before, state["params"])
    state = {**state, "params": start}
    video = np.random.default_rng(0).integers(0, 256, (1, 9, 8, 8, 3), np.uint8)
    batch = {"video": jnp.asarray(video), "mask": jnp.ones(1)}
    train_step = jax.jit(step.train_step, compiler_options=quick)
    for _ in range(3):
        state, metrics = train_step(state, batch, {})
    assert np.isfinite(metrics["loss"]) and metrics["bad_steps"] == 0
    after, first = leaves(state["params"]), leaves(start)
    frozen = leaves(mark_frozen(start, config.optim.freeze))
    for path, stays in frozen.items():
        same = np.array_equal(after[path], first[path])
        assert same == stays, path
    trained = [path for path, stays in frozen.items() if not stays]
    moments = [x for x in jax.tree.leaves(state["opt"]) if x.ndim]
    assert len(moments) == 2 * len(trained), "no moments are kept for what stays"
    for path, x in leaves(before).items():
        if frozen[path]:
            np.testing.assert_array_equal(after[path], x)
