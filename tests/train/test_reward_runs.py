"""Runs that train a reward on judged pairs, with the published mix of adapters and full parts."""

import jax

from vidlatent import config as configs
from vidlatent.models.pretrained import network_shapes
from vidlatent.parallel.paths import path_name
from vidlatent.weights.lora import Lora, describe_adapters


def test_the_published_mix_has_the_published_numbers_of_parameters():
    """Adapters of 196 modules, the vision tower, the head of one output, and three rows."""
    config = configs.load("configs/reward_videoalign.py:paper")
    added = describe_adapters(network_shapes("videoalign"), Lora.of(config.optim.lora))
    counts = dict.fromkeys(("text/blocks", "text/embedding", "visual", "head"), 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(added):
        name = path_name(path)
        counts[next(part for part in counts if name.startswith(part))] += leaf.size
    assert counts == {
        "text/blocks": 73_859_072,
        "text/embedding": 3 * 1536,
        "visual": 665_271_296,
        "head": 1536,
    }
