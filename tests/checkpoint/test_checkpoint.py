"""Saving, keeping and restoring sound checkpoints."""

import logging
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.helpers.checkpoint_cases import (
    SPEC,
    abstract,
    make_state,
    open_run,
    same,
    save,
    start_helper,
)
from vidlatent.errors import VidlatentError


def sharded(shape, names, spec):
    count = int(np.prod(shape))
    if jax.device_count() < count:
        pytest.skip(f"needs {count} devices")
    mesh = Mesh(np.array(jax.devices()[:count]).reshape(shape), names)
    return NamedSharding(mesh, PartitionSpec(*spec))


def test_round_trip_keeps_everything(tmp_path):
    run = open_run(tmp_path / "run")
    state = make_state(7)
    assert run.restore(abstract(state)) is None  # Nothing there yet, and nothing made by looking.
    assert not (tmp_path / "run").exists()
    assert save(run, 7, state, metrics={"psnr": 31.5}, iterator={"step": 7, "workers": 2})
    run.close()
    restored = open_run(tmp_path / "run").restore(abstract(state))
    assert same(restored.state, state)
    assert restored.step == 7 and restored.spec == SPEC and restored.config_hash == "c0ffee"
    assert restored.iterator == {"step": 7, "workers": 2} and restored.metrics == {"psnr": 31.5}
    assert restored.versions["jax"] == jax.__version__


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    run = open_run(tmp_path)
    state = make_state(3, size=4096)
    expected = jax.tree.map(np.array, state)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 3 + 1, tree), donate_argnums=0)
    save(run, 3, state)
    for _ in range(10):
        state = step(state)
    run.wait()
    assert same(run.restore(abstract(state)).state, jax.tree.map(jnp.asarray, expected))


@pytest.mark.parametrize(
    "shape,names,spec",
    [
        ((4, 2), ("fsdp", "tensor"), ("fsdp", "tensor")),
        ((2, 2), ("a", "b"), ("b",)),
        ((8,), ("x",), (None, "x")),
        ((1,), ("x",), ()),
    ],
)
def test_restores_onto_another_mesh(tmp_path, shape, names, spec):
    saved_on = sharded((8,), ("x",), ("x",))
    wanted_on = sharded(shape, names, spec)
    state = {"step": jnp.int32(1), "params": {"w": make_state(1)["params"]["encoder"]["kernel"]}}
    state["params"]["w"] = jax.device_put(state["params"]["w"], saved_on)
    run = open_run(tmp_path, verify="full")
    save(run, 1, state)
    target = {
        "step": jax.ShapeDtypeStruct((), jnp.int32),
        "params": {"w": jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=wanted_on)},
    }
    restored = run.restore(target).state
    assert restored["params"]["w"].sharding == wanted_on
    assert same(restored, state)


def test_only_the_asked_for_parameters_are_read(tmp_path):
    run = open_run(tmp_path)
    state = make_state(2)
    save(run, 2, state)
    run.wait()
    for name in ("opt", "params", "extra"):  # What is gone cannot have been read.
        (tmp_path / "2" / name).rename(tmp_path / f"gone-{name}")
    restored = run.restore_params(abstract(state["ema"]))
    assert same(restored.state, state["ema"]) and restored.step == 2 and restored.spec == SPEC
    wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), state["ema"])
    as_float32 = jax.tree.map(lambda x: x.astype(jnp.float32), state["ema"])
    assert same(run.restore_params(wide).state, as_float32)
    with pytest.raises(VidlatentError, match="None of the steps"):
        run.restore_params(abstract(state["params"]), which="params")


def test_parameters_of_a_run_without_average(tmp_path):
    run = open_run(tmp_path)
    state = make_state(2)
    del state["ema"]
    save(run, 2, state)
    run.wait()
    assert same(run.restore_params(abstract(state["params"])).state, state["params"])
    with pytest.raises(VidlatentError, match="'ema' or 'params'"):
        run.restore_params(abstract(state["params"]), which="best")


def test_keeps_latest_periodic_and_best(tmp_path):
    run = open_run(tmp_path, every=2, keep_latest=2, keep_every=8, best_metric="psnr")
    scores = {2: 20.0, 4: 31.0, 6: 25.0, 8: 24.0, 10: float("nan"), 12: 23.0, 14: 22.0}
    for step in range(15):
        metrics = {"psnr": scores[step]} if step in scores else None
        assert save(run, step, metrics=metrics, force=False) == (step in scores)
    run.close()
    again = open_run(tmp_path, best_metric="psnr")
    assert again.all_steps() == [4, 8, 12, 14]
    assert again.latest() == 14 and again.best() == 4
    assert open_run(tmp_path, best_metric="psnr", best_mode="min").best() == 14
    assert open_run(tmp_path).best() is None


def test_when_to_save(tmp_path):
    run = open_run(tmp_path, every=5)
    assert [s for s in range(12) if run.should_save(s)] == [5, 10]
    assert save(run, 5) and not run.should_save(5)
    assert not save(run, 5), "a step that exists is left alone, even by force"
    assert not open_run(tmp_path / "other", every=0).should_save(5)


def test_going_on_from_an_earlier_step_keeps_the_new_saves(tmp_path):
    run = open_run(tmp_path, keep_latest=1, keep_best=0)
    save(run, 100)
    run.wait()
    save(run, 40)
    run.wait()
    assert run.all_steps() == [40, 100]


def test_another_structure_is_refused_with_a_list(tmp_path):
    run = open_run(tmp_path)
    state = make_state(1)
    save(run, 1, state)
    other = make_state(1)
    other["params"]["decoder"] = other["params"]["encoder"].pop("bias")
    other["params"]["scale"] = jnp.zeros((4,))
    other["extra"]["skipped"] = jnp.float32(0)
    with pytest.raises(VidlatentError) as caught:
        run.restore(abstract(other))
    message = str(caught.value)
    assert "Missing from the checkpoint: params/decoder." in message
    assert "In the checkpoint only: params/encoder/bias." in message
    assert "params/scale saved [] wanted [4]" in message
    assert "extra/extra/skipped saved int32 wanted float32" in message
    with pytest.raises(VidlatentError, match="ema.*Missing"):
        run.restore_params(abstract(other["params"]))
    assert run.all_steps() == [1], "a wrong model is no reason to distrust the step"


def test_wrong_arguments(tmp_path):
    for bad in ({"verify": "maybe"}, {"best_mode": "lowest"}, {"keep_latest": 0}):
        with pytest.raises(VidlatentError):
            open_run(tmp_path, **bad)
    run = open_run(tmp_path)
    with pytest.raises(VidlatentError, match="no checkpoint"):
        run.restore_params(abstract(make_state(1)["params"]))
    save(run, 1)
    with pytest.raises(VidlatentError, match=r"no step 3 .* only \[1\]"):
        run.restore(abstract(make_state(1)), step=3)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VidlatentError, match="Failed preparing to save in .*file/run"):
        save(open_run(tmp_path / "file" / "run"), 1)


def test_changed_conditions_are_named(tmp_path, monkeypatch, caplog):
    save_run = open_run(tmp_path)
    save(save_run, 1)
    save_run.wait()
    monkeypatch.setenv("XLA_FLAGS", "--xla_something=true")
    with caplog.at_level(logging.WARNING, logger="absl"):
        open_run(tmp_path).restore(abstract(make_state(1)))
    assert "--xla_something=true" in caplog.text and "bitwise" in caplog.text


def test_a_failing_save_is_one_clear_error_and_costs_nothing_older(tmp_path):
    """Files larger than a limit cannot be written, as on a full disk."""
    helper = start_helper("full_disk.py", tmp_path)
    output, _ = helper.communicate(timeout=120)
    assert helper.returncode == 0, output
    assert "Failed saving step 2" in output and "free space" in output
    assert "sound: 1" in output and "then saved: 3" in output


def test_two_processes_save_and_one_restores(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    helpers = [start_helper("two_process_run.py", address, i, tmp_path / "run") for i in (0, 1)]
    try:
        outputs = [helper.communicate(timeout=90)[0] for helper in helpers]
    finally:
        for helper in helpers:
            helper.kill()
    assert [helper.returncode for helper in helpers] == [0, 0], outputs
    for output in outputs:  # Gloo writes to the standard output as well.
        lines = [line for line in output.splitlines() if line.startswith("restored")]
        assert lines == ["restored 4", "restored 2", "restored 4"], output
    target = {"params": {"w": jax.ShapeDtypeStruct((8, 16), jnp.float32)}, "step": jnp.int32(0)}
    restored = open_run(tmp_path / "run", verify="full").restore(target)
    expected = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    np.testing.assert_array_equal(restored.state["params"]["w"], expected)
