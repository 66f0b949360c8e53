"""What a stage takes over from the run before it, and which runs it refuses to start from."""

import jax
import numpy as np
import pytest

from tests.train.test_resume import digest, train
from vidlatent import config as configs
from vidlatent.infer.load import model_of, open_checkpoints
from vidlatent.train.loop import INTERRUPTED
from vidlatent.train.stages import check_start
from vidlatent.train.steps.tokenizer import make_step
from vidlatent.typing import VidlatentError


def stage(source, *recipes):
    config = configs.load("tests/tiny.py:critic")
    with config.unlocked():
        config.recipe = "tiny next"
        config.train.init_from = str(source)
        config.train.init_recipes = recipes
    return config


def folder(path, recipe):
    """A workdir as far as its recipe is looked at."""
    config = configs.load("tests/tiny.py")
    with config.unlocked():
        config.recipe = recipe
    (path / "checkpoints").mkdir(parents=True)
    configs.write(config, path)
    return path


def test_a_wrong_stage_is_refused_by_name(tmp_path):
    wrong = folder(tmp_path / "wrong", "tiny other")
    with pytest.raises(VidlatentError, match="'tiny other'.*follows on 'tiny critic'"):
        check_start(stage(wrong, "tiny critic"))
    nameless = folder(tmp_path / "nameless", "")
    with pytest.raises(VidlatentError, match="no recipe.*init_recipes"):
        check_start(stage(nameless, "tiny critic"))
    with pytest.raises(VidlatentError, match="'tiny next' follows on tiny critic.*init_from"):
        check_start(stage("", "tiny critic"))


def saved(workdir, step):
    config = configs.read(workdir)
    abstract = jax.eval_shape(make_step(config, model_of(config)).init, jax.random.key(0))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), abstract
    )
    checkpoints = open_checkpoints(config, workdir)
    state = checkpoints.restore(target, step=step).state
    checkpoints.close()
    return state


@pytest.mark.slow
def test_resume_is_bitwise_with_a_critic_and_the_next_stage_takes_it_along(tmp_path):
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    train(straight, preset="critic")
    train(cut, "--config.train.stop_at=5", preset="critic", status=INTERRUPTED)
    train(cut, preset="critic")
    assert digest(cut, 12) == digest(straight, 12)
    first = saved(straight, 12)
    assert float(np.abs(first["critic"]["anchors"]["real"]).max()) > 0

    # A stage that does not move: its critic is the one it was given.
    still = tmp_path / "still"
    train(
        still,
        f"--config.train.init_from={straight}",
        "--config.train.init_recipes=('tiny critic',)",
        "--config.train.steps=1",
        "--config.critic.start_step=5",
        preset="critic",
    )
    jax.tree.map(np.testing.assert_array_equal, saved(still, 1)["critic"], first["critic"])
