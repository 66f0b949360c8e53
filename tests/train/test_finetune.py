"""Starting from other weights, and training the decoder alone."""

import jax
import numpy as np
import pytest

from vidlatent import config as configs
from vidlatent.infer.codec import Codec
from vidlatent.io.checkpoint import Checkpointer
from vidlatent.train.loop import train
from vidlatent.typing import VidlatentError


def config(**model):
    loaded = configs.load("tests/tiny.py", {"train.steps": "2", "eval.every": "0"})
    loaded.data.buckets = ((5, 16, 16, 8),)
    with loaded.unlocked():
        loaded.model.update(model)
    return loaded


def test_lite_from_a_causal_run_with_the_encoder_frozen(tmp_path):
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    train(config(), base)
    form = config(cross_stages=(2,), cross_head_dim=8, noise_weight=0.05, decoder_time="centred")
    form.train.init_kind = "standard"
    with pytest.raises(VidlatentError, match="init_from"):
        train(form, tuned)
    form.train.init_from = str(base)
    form.optim.frozen = "encoder/"
    train(form, tuned)
    before, after = Codec.from_workdir(base).params, Codec.from_workdir(tuned).params
    jax.tree.map(np.testing.assert_array_equal, after["encoder"], before["encoder"])
    moved = after["decoder"]["conv_out"]["kernel"] - before["decoder"]["conv_out"]["kernel"]
    assert np.abs(moved).max() > 0
    assert np.any(after["decoder"]["first_frame_attn_2"]["to_out"]["kernel"])
    # No moments are kept for what stays.
    checkpoints = Checkpointer(tuned / "checkpoints", every=0)
    manifest, _ = checkpoints._open(2)
    assert not any("encoder" in name for name in manifest.item("opt"))
    checkpoints.close()


def test_a_pattern_that_freezes_nothing_is_refused(tmp_path):
    wrong = config()
    wrong.optim.frozen = "encodr/"
    with pytest.raises(VidlatentError, match="matches no parameter"):
        train(wrong, tmp_path)
