"""Training adapters in place of a model's parameters, from the first step to the export."""

import functools
import shutil

import jax
import numpy as np
import pytest

from tests.helpers.generator_runs import generator_run, tiny, tokenizer_run
from tests.helpers.generator_steps import batch_of, config_of, facts
from vidlatent import config as configs
from vidlatent.convert.run import convert
from vidlatent.errors import VidlatentError
from vidlatent.latents.space import abstract_generator, generator_of
from vidlatent.models.load import abstract_params, model_of, open_checkpoints
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.multihost import to_global
from vidlatent.parallel.sharding import batch_sharding, shardings
from vidlatent.report.writers import read_metrics
from vidlatent.sample.load import load_generator
from vidlatent.train.adapters import BASE
from vidlatent.train.loop import INTERRUPTED, train
from vidlatent.train.tasks.generator import GeneratorTask
from vidlatent.weights.files import load_params
from vidlatent.weights.lora import Lora, merge_adapters

pytestmark = pytest.mark.usefixtures("one_device")
LORA = {"optim__lora__rank": 2, "optim__lora__alpha": 4.0, "optim__lora__targets": "decoder/"}


def config_with(**keys):
    """The config of a tokenizer of two convolutions, on rendered clips."""
    fixed = {
        "data.source": "synthetic",
        "data.synthetic.clips": "24",
        "data.synthetic.frames": "3",
        "data.synthetic.height": "16",
        "data.synthetic.width": "16",
        "data.buckets": "((3, 16, 16, 8),)",
        "data.num_workers": "0",
        "data.validation_clips": "8",
        "eval.every": "0",
        "eval.pictures": "1",
        "optim.lr": "0.01",
        "train.steps": "4",
        "train.log_every": "1",
        "train.tensorboard": "False",
        "checkpoint.every": "2",
        "checkpoint.keep_latest": "9",
    }
    own = {name.replace("__", "."): str(value) for name, value in keys.items()}
    return configs.load("tests/helpers/micro_config.py", fixed | own)


def adapted(base, **keys):
    return config_with(train__init_from=base, **(LORA | keys))


def losses(workdir):
    return dict(zip(*read_metrics(workdir / "metrics.jsonl")["train/loss"], strict=True))


def read_state(workdir, step):
    """Item -> arrays by path, as they lie in a step."""
    config = configs.read(workdir)
    with_adapters = open_checkpoints(config, workdir)
    try:
        manifest, meta = with_adapters._read_manifest(step)
        return manifest.arrays, meta
    finally:
        with_adapters.close()


def shards(workdir, step):
    return {name: record.shards for name, record in read_state(workdir, step)[0].items()}


@pytest.fixture(scope="module")
def runs(one_device, tmp_path_factory):
    """A base, all of its parameters trained on, and adapters of its decoder trained."""
    folder = tmp_path_factory.mktemp("adapters")
    train(config_with(train__steps=2), folder / "base")
    train(config_with(train__init_from=folder / "base", train__steps=1), folder / "full")
    train(adapted(folder / "base"), folder / "lora")
    return folder


def params_of(path):
    shapes = abstract_params(model_of(configs.read(path)))
    return jax.device_get(load_params(path, shapes, family="micro"))


def test_the_first_step_is_that_of_the_weights_themselves(runs):
    assert losses(runs / "lora")[1] == losses(runs / "full")[1]


def test_only_adapters_are_trained_and_saved(runs):
    arrays, meta = read_state(runs / "lora", 4)
    held = {name for name in arrays if not name.startswith("extra/")}
    assert held and all("decoder/conv_out/kernel/lora_" in n or "/count" in n for n in held), held
    for part in ("params", "ema"):
        kernel = f"{part}/decoder/conv_out/kernel"
        assert arrays[f"{kernel}/lora_a"].shape == (1, 3, 3, 4, 2)
        assert arrays[f"{kernel}/lora_b"].shape == (2, 3)
    assert Lora.of(meta["adapters"]["lora"]) == Lora(2, 4.0, "decoder/")
    assert meta["adapters"]["base"] == str(runs / "base") and meta["adapters"]["step"] == 2
    before, after = shards(runs / "lora", 2), shards(runs / "lora", 4)
    assert all(before[f"params/{n}"] != after[f"params/{n}"] for n in _factors())


def _factors():
    return [f"decoder/conv_out/kernel/lora_{letter}" for letter in "ab"]


def test_readers_get_merged_weights(runs):
    base, merged = params_of(runs / "base"), params_of(runs / "lora")
    np.testing.assert_array_equal(
        merged["encoder"]["conv_in"]["kernel"], base["encoder"]["conv_in"]["kernel"]
    )
    np.testing.assert_array_equal(
        merged["decoder"]["conv_out"]["bias"], base["decoder"]["conv_out"]["bias"]
    )
    shapes = {"conv_out": {"kernel": {"lora_a": (1, 3, 3, 4, 2), "lora_b": (2, 3)}}}
    tree = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, np.float32), shapes, is_leaf=lambda s: type(s) is tuple
    )
    checkpoints = open_checkpoints(configs.read(runs / "lora"), runs / "lora")
    ema = checkpoints.restore_params(base, adapted=lambda _: {"decoder": tree}).state
    checkpoints.close()
    pair = ema["decoder"]["conv_out"]["kernel"]
    assert np.abs(pair["lora_b"]).max() > 1e-3
    # Factor 4 / 2, in float64.
    delta = 2.0 * np.tensordot(*(np.asarray(pair[f"lora_{x}"], np.float64) for x in "ab"), 1)
    np.testing.assert_allclose(
        merged["decoder"]["conv_out"]["kernel"],
        base["decoder"]["conv_out"]["kernel"] + delta,
        atol=4e-6,
    )


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_run_that_was_cut_ends_in_the_same_bytes(runs, tmp_path, cut):
    config = adapted(runs / "base", train__stop_at=cut)
    assert train(config, tmp_path / "cut") == INTERRUPTED
    assert train(adapted(runs / "base"), tmp_path / "cut") == 0
    assert shards(tmp_path / "cut", 4) == shards(runs / "lora", 4)


def test_exported_weights_are_the_merged_ones(runs, tmp_path):
    """As a file, as a run, and as the start of training on."""
    want, options = params_of(runs / "lora"), {"from_table": "auto", "to_table": "auto"}
    options |= {"start": "", "verify": "", "step": -1, "from": str(runs / "lora")}
    config = configs.read(runs / "lora")
    assert convert(config, tmp_path, **options, to=str(tmp_path / "run")) == 0
    jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path / "run"), want)
    written = configs.read(tmp_path / "run")
    assert written.optim.lora.rank == 0 and written.train.init_from == ""
    # Without its base.
    assert "adapters" not in read_state(tmp_path / "run", 0)[1]
    train(
        config_with(train__init_from=runs / "lora", train__steps=1, optim__lr=0.0), tmp_path / "on"
    )
    jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path / "on"), want)


def test_adapters_of_adapted_weights(runs, tmp_path):
    train(adapted(runs / "lora", train__steps=2, optim__lr=0.0), tmp_path / "again")
    jax.tree.map(
        np.testing.assert_array_equal, params_of(tmp_path / "again"), params_of(runs / "lora")
    )


def test_weights_that_moved_are_found_beside_the_adapters(runs, tmp_path):
    shutil.copytree(runs / "lora", tmp_path / "lora")
    shutil.copytree(runs / "base", tmp_path / "base")
    want = params_of(runs / "lora")
    shutil.move(runs / "base", runs / "hidden")
    try:
        jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path / "lora"), want)
        shutil.move(tmp_path / "base", tmp_path / "lora" / "base")
        jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path / "lora"), want)
        shutil.rmtree(tmp_path / "lora" / "base")
        with pytest.raises(VidlatentError, match="adapters of .*base, which is not there: put"):
            params_of(tmp_path / "lora")
    finally:
        shutil.move(runs / "hidden", runs / "base")


def test_other_weights_are_refused(runs, tmp_path):
    shutil.copytree(runs / "lora", tmp_path / "lora")
    shutil.copytree(runs / "full", tmp_path / "lora" / "base")
    # The step that was adapted is asked for, whatever was trained since.
    with pytest.raises(VidlatentError, match="no step 2 in"):
        params_of(tmp_path / "lora")
    shutil.rmtree(tmp_path / "lora" / "base")
    train(config_with(train__steps=2, seed=1), tmp_path / "lora" / "base")
    with pytest.raises(VidlatentError, match="adapters of the weights .* are the weights .*: put"):
        params_of(tmp_path / "lora")
    with pytest.raises(VidlatentError, match="belong to the weights .* name the weights that were"):
        train(adapted(tmp_path / "lora" / "base", train__steps=6), tmp_path / "lora")


def test_misuse_is_one_sentence(runs, tmp_path):
    with pytest.raises(VidlatentError, match=r"optim.lora adapts weights .*train.init_from=\.\.\."):
        train(config_with(**LORA), tmp_path / "none")
    with pytest.raises(VidlatentError, match="'nothing/' matches no kernel of this model"):
        train(adapted(runs / "base", optim__lora__targets="nothing/"), tmp_path / "none")
    with pytest.raises(VidlatentError, match="init_kind is 'image': convert them first"):
        train(adapted(runs / "base", train__init_kind="image"), tmp_path / "none")
    with pytest.raises(VidlatentError, match="lora.rank"):
        adapted(runs / "base", optim__lora__rank=-1)
    assert not (tmp_path / "none").exists()
    shutil.copytree(runs / "lora", tmp_path / "lora")
    with pytest.raises(VidlatentError, match="trained with config.optim.lora .*'alpha': 4.0"):
        train(adapted(runs / "base", optim__lora__alpha=2.0, train__steps=6), tmp_path / "lora")


# Generators: layers in a stack, heads, and several devices.


def task_of(**keys):
    """A generator's task with adapters in float32, and the base that it adapts."""
    config = config_of("fsvideo_dit:demo,first=false", **keys)
    with config.unlocked():
        config.optim.lora.update({"rank": 3, "alpha": 6.0, "targets": "blocks/|patch_embedding"})
    task = GeneratorTask(config, generator_of(config), facts())
    full = jax.eval_shape(
        lambda: GeneratorTask(
            config_of("fsvideo_dit:demo,first=false", **keys), task.model, facts()
        ).init(jax.random.key(0))
    )["params"]
    rng = np.random.default_rng(3)
    base = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype) / 8, full)
    return task, base


def run_steps(sizes, steps=2):
    task, base = task_of(generator__stack="recomputed")
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), devices)
    placed = shardings(jax.eval_shape(task.init, jax.random.key(0)), mesh)
    batch = batch_of()
    with jax.set_mesh(mesh):
        frozen = {BASE: jax.device_put(base, shardings({BASE: base}, mesh)[BASE])}
        state = jax.jit(task.init, out_shardings=placed)(jax.random.key(0))
        arrays = to_global({n: batch[n] for n in task.arrays}, batch_sharding(mesh))
        step = jax.jit(task.train_step, out_shardings=(placed, None))
        reports = []
        for _ in range(steps):
            state, report = step(state, arrays, frozen)
            reports.append([float(report["loss"]), float(report["grad_norm"])])
        merged = task.adapters.merge_for_evaluation(state["ema"], frozen)
    return task, base, reports, jax.device_get(state), jax.device_get(merged)


@pytest.mark.slow
def test_eight_devices_train_the_adapters_that_one_does():
    _, _, one, state, merged = run_steps((1, 1, 1, 1))
    _, _, many, other, spread = run_steps((1, 2, 2, 2))
    np.testing.assert_allclose(many, one, rtol=1e-3)
    # Adam's first steps are signs of gradients: those of small ones depend on rounding.
    for got, want in zip(*map(jax.tree.leaves, (other["params"], state["params"])), strict=True):
        assert np.mean(np.abs(got - want) > 2e-3) < 0.01
    for got, want in zip(*map(jax.tree.leaves, (spread, merged)), strict=True):
        assert np.mean(np.abs(got - want) > 2e-3) < 0.01


@pytest.mark.slow
def test_a_generators_gradient_is_that_of_its_merged_kernels():
    """By hand: the gradient of all parameters, through ``W + scale A B``."""
    task, base = task_of()
    adapters = jax.device_get(task.init(jax.random.key(0))["params"])
    rng = np.random.default_rng(5)
    adapters = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 8, adapters
    )
    config = config_of("fsvideo_dit:demo,first=false")
    plain = GeneratorTask(config, task.model, facts())
    batch = {name: batch_of()[name] for name in task.arrays}
    merged = merge_adapters(base, adapters, Lora(3, 6.0, ""))
    differentiate = functools.partial(jax.value_and_grad, has_aux=True)
    (loss, _), gradient = jax.jit(differentiate(plain.compute_loss))(merged, batch, {}, 0, 0)
    (got_loss, _), got = jax.jit(differentiate(task.compute_loss))(
        adapters, batch, {BASE: base}, 0, 0
    )
    np.testing.assert_allclose(got_loss, loss, rtol=4e-6)
    g = gradient["blocks"]["ffn"]["fc1"]["kernel"]
    pair, found = (tree["blocks"]["ffn"]["fc1"]["kernel"] for tree in (adapters, got))
    scale = np.abs(found["lora_b"]).max()
    want = 2.0 * np.einsum("lir,lio->lro", pair["lora_a"], g)
    np.testing.assert_allclose(found["lora_b"] / scale, want / scale, atol=4e-6)
    want = 2.0 * np.einsum("lro,lio->lir", pair["lora_b"], g)
    np.testing.assert_allclose(found["lora_a"] / scale, want / scale, atol=4e-6)


@pytest.mark.slow
def test_a_generator_is_adapted_sampled_and_exported(tmp_path):
    """From a run to videos: adapters and the merged export give the same bytes."""
    tokenizer = tokenizer_run(tmp_path / "tokenizer")
    generator_run(tiny(tokenizer, "videos"), tmp_path / "base", ("a", "b"))
    lora = {"optim.lora.rank": "2", "optim.lora.targets": ".*attn/", "train.steps": "4"}
    lora |= {"train.init_from": str(tmp_path / "base"), "eval.every": "4"}
    config = tiny(tokenizer, "videos", **{k.replace(".", "__"): v for k, v in lora.items()})
    assert train(config, tmp_path / "lora") == 0
    assert list((tmp_path / "lora" / "samples").glob("*.png"))  # of the merged weights
    options = {"from_table": "auto", "to_table": "auto", "start": "", "verify": "", "step": -1}
    for target in ("run", "weights.safetensors"):
        options |= {"from": str(tmp_path / "lora"), "to": str(tmp_path / target)}
        assert convert(configs.read(tmp_path / "lora"), tmp_path, **options) == 0

    def draw(folder):
        drawn = load_generator(folder, steps=2)
        return next(drawn.latents(drawn.requests(["7"], seed=3)))[1]

    want = draw(tmp_path / "lora")
    np.testing.assert_array_equal(draw(tmp_path / "run"), want)
    assert np.abs(draw(tmp_path / "base") - want).max() > 1e-4
    # As a file, the merged weights are the start of another run.
    options = {"family": "wan", "table": "wan"}
    shapes = abstract_generator(generator_of(configs.read(tmp_path / "run")))
    found = load_params(tmp_path / "weights.safetensors", shapes, **options)
    merged = load_params(tmp_path / "lora", shapes, **options)
    jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(merged))
