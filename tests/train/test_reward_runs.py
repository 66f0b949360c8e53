"""Runs that train a reward on judged pairs: resumed, on eight devices, and with the published mix
of adapters and parts in full."""

import jax
import numpy as np
import pytest

from tests.helpers.judged_pairs import SIZE, reward_config, write_colour_pairs
from tests.train.test_generator_runs import digest
from vidlatent import config as configs
from vidlatent.data.loader import make_loader
from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained import network_shapes
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.paths import path_name
from vidlatent.parallel.sharding import batch_sharding, shardings
from vidlatent.rewards.pairs import PairJudge
from vidlatent.train.loop import INTERRUPTED, train
from vidlatent.train.tasks.reward import RewardTask
from vidlatent.weights.files import load_params
from vidlatent.weights.lora import Lora, describe_adapters


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_colour_pairs(tmp_path_factory.mktemp("pairs") / "judged", 24)


def small(pairs, **keys):
    config = reward_config(pairs, **{"train__steps": 4, "train__log_every": 1, **keys})
    config.data.buckets = ((*SIZE, 8),)
    config.optim.update({"lr": 1e-3, "schedule": "constant", "ema_decay": 0.5})
    config.checkpoint.every = 0
    return config


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


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_that_was_cut_is_bitwise_equal(pairs, tmp_path):
    assert train(small(pairs), tmp_path / "straight") == 0
    assert train(small(pairs, train__stop_at=2), tmp_path / "cut") == INTERRUPTED
    assert train(small(pairs), tmp_path / "cut") == 0
    assert digest(tmp_path / "cut", 4) == digest(tmp_path / "straight", 4)


def reports(pairs, sizes, **keys):
    """Loss and gradient norm of two steps, and the scores of a batch, on a mesh of these sizes."""
    task = RewardTask(small(pairs, **keys))
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), jax.devices()[: int(np.prod(sizes))])
    data = task.config.data.to_dict()
    with make_loader(data, split="whole", rule=PairJudge.spec.lengths, seed=0) as loader:
        batch = task.read_batch(next(iter(loader)))
    placed = shardings(jax.eval_shape(task.init, jax.random.key(0)), mesh)
    rows, found = batch_sharding(mesh), []
    with jax.set_mesh(mesh):
        state = jax.device_put(jax.jit(task.init)(jax.random.key(0)), placed)
        arrays = to_global(batch, rows)
        step = jax.jit(task.train_step, in_shardings=(placed, rows, None))
        for _ in range(2):
            state, report = step(state, arrays, {})
            state = jax.device_put(state, placed)
            found.append([float(report[name]) for name in ("loss", "grad_norm", "accuracy")])
        scores = jax.jit(task.eval_step)(state["params"], arrays)
    return np.asarray(found), np.asarray(scores["first"])


@pytest.mark.slow
def test_eight_devices_learn_what_one_does(pairs):
    """Pairs over data 2 and fsdp 2, kernels over fsdp 2 and tensor 2."""
    one, many = reports(pairs, (1, 1, 1, 1)), reports(pairs, (2, 2, 1, 2))
    np.testing.assert_allclose(many[0], one[0], rtol=1e-3)
    # Adam amplifies the different rounding of gradients.
    np.testing.assert_allclose(many[1], one[1], atol=2e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_the_demo_learns_in_the_published_mix(pairs, tmp_path):
    """What is trained changes, in a cut run alike; norms, biases and all other rows stay."""
    keys = {
        "data.path": str(pairs),
        "data.buckets": str(((*SIZE, 8),)),
        "data.validation_share": "0.2",
        "train.tensorboard": "False",
        "eval.every": "0",
        "optim.lr": "1e-2",
        "optim.warmup_steps": "0",
    }
    demo = "configs/reward_videoalign.py"
    assert train(configs.load(demo, {**keys, "train.steps": "1"}), tmp_path / "base") == 0
    paper = configs.load(f"{demo}:paper").optim.lora
    mixed = configs.load(
        demo, {**keys, "train.steps": "3", "train.init_from": str(tmp_path / "base")}
    )
    with mixed.unlocked():
        mixed.optim.lora.update(paper.to_dict())
        mixed.optim.lora.rank, mixed.optim.lora.rows = 2, ((paper.rows[0][0], (509, 510, 511)),)
    assert train(mixed, tmp_path / "mixed") == 0
    # The adapters' dropout follows from the step.
    assert mixed.optim.lora.dropout == 0.05
    with mixed.unlocked():
        mixed.train.stop_at = 1
    assert train(mixed, tmp_path / "cut") == INTERRUPTED
    with mixed.unlocked():
        mixed.train.stop_at = 0
    assert train(mixed, tmp_path / "cut") == 0
    assert digest(tmp_path / "cut", 3) == digest(tmp_path / "mixed", 3)
    abstract = network_shapes("videoalign_tiny")
    before, after = (
        load_params(str(tmp_path / name), abstract, family="videoalign_tiny")
        for name in ("base", "mixed")
    )
    changed = {
        path_name(path): np.asarray(a != b)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
        )
    }
    rows = changed.pop("text/embedding/kernel").any(axis=1)
    assert np.flatnonzero(rows).tolist() == [509, 510, 511]
    for name, leaf in changed.items():
        whole = name.startswith(("visual/", "head/"))
        adapted = name.startswith("text/blocks/") and name.endswith("kernel")
        assert leaf.any() == (whole or adapted), name


def test_dropout_that_nothing_applies_is_refused(pairs):
    keys = {"optim.lora.rank": "2", "optim.lora.dropout": "0.05", "data.path": str(pairs)}
    with pytest.raises(VidlatentError, match="in VideoAlign's text/blocks/, and head/kernel"):
        RewardTask(configs.load("configs/reward_videoalign.py", keys))
    with pytest.raises(VidlatentError, match="lora.dropout=0.05 is of the task 'reward' alone"):
        configs.load("configs/latte.py", {"optim.lora.dropout": "0.05"})
