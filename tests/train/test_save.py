"""Saving: non-finite weights are never saved, and suspicious steps only on request."""

import contextlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vidlatent.checkpoint.manager import Checkpointer
from vidlatent.errors import VidlatentError
from vidlatent.parallel.mesh import make_mesh
from vidlatent.train.hooks import Save
from vidlatent.train.state import init_player, init_state
from vidlatent.train.tasks.tokenizer import TokenizerTask


@pytest.fixture
def run(tmp_path):
    """A run with a small state sharded over eight devices that saves every second step."""
    mesh = make_mesh({"data": 2, "fsdp": 4, "context": 1, "tensor": 1})
    spread = NamedSharding(mesh, PartitionSpec("fsdp"))
    optimizer = optax.scale_by_adam()

    def init():
        params = {"conv": {"kernel": jnp.ones((8, 3)), "scale": jnp.ones(4, jnp.bfloat16)}}
        discriminator = init_player(
            {"kernel": jnp.ones(8)}, optimizer, stats={"level": jnp.zeros(())}
        )
        helpers = init_player({"scale": jnp.ones(())}, optimizer)
        return init_state(params, optimizer, discriminator=discriminator, helpers=helpers)

    places = jax.tree.map(
        lambda leaf: spread if leaf.ndim else NamedSharding(mesh, PartitionSpec()),
        jax.eval_shape(init),
    )
    said = []
    with contextlib.closing(Checkpointer(tmp_path / "checkpoints", every=2)) as checkpointer:
        yield SimpleNamespace(
            adapters=None,
            state=jax.jit(init, out_shardings=places)(),
            step=2,
            checkpointer=checkpointer,
            loader=SimpleNamespace(state=dict),
            progress=SimpleNamespace(say=said.append),
            said=said,
            evaluation=None,
            spec=None,
            hash="",
            aside=contextlib.nullcontext,
        )


def poisoned(leaf, value):
    """The same array with one non-finite number, on whichever device holds it."""
    bad = np.asarray(leaf).copy()
    bad.flat[-1] = value
    return jax.device_put(bad, leaf.sharding)


def test_weights_that_are_not_finite_are_not_saved(run):
    save = Save(TokenizerTask.players)
    save(run)
    run.step, sound = 4, run.state["params"]["conv"]
    for name, value in (("kernel", jnp.nan), ("scale", jnp.inf)):
        conv = sound | {name: poisoned(sound[name], value)}
        run.state = run.state | {"params": {"conv": conv}}
        for force in (False, True):
            with pytest.raises(VidlatentError, match="step 4: .* lower config.optim.lr; .* step 2"):
                save(run, force=force)
    discriminator = run.state["discriminator"]
    discriminator = discriminator | {
        "params": {"kernel": poisoned(discriminator["params"]["kernel"], -jnp.inf)}
    }
    run.state = run.state | {"params": {"conv": sound}, "discriminator": discriminator}
    with pytest.raises(VidlatentError, match="lower config.discriminator.optim.lr;"):
        save(run)
    helpers = run.state["helpers"]
    helpers = helpers | {"params": {"scale": poisoned(helpers["params"]["scale"], jnp.nan)}}
    run.state = run.state | {"helpers": helpers}
    with pytest.raises(
        VidlatentError, match="lower config.discriminator.optim.lr and config.optim.lr;"
    ):
        save(run)
    run.checkpointer.wait()
    assert run.checkpointer.all_steps() == [2] and not run.said


def test_the_first_save_says_that_the_run_begins_anew(run):
    conv = run.state["params"]["conv"]
    conv = conv | {"kernel": poisoned(conv["kernel"], jnp.nan)}
    run.state = run.state | {"params": {"conv": conv}}
    with pytest.raises(VidlatentError, match="the same command then begins anew"):
        Save(TokenizerTask.players)(run)


def test_while_steps_fail_only_what_is_asked_for_is_saved(run):
    save, streak = (
        Save(TokenizerTask.players),
        jax.device_put(jnp.int32(3), run.state["step"].sharding),
    )
    run.state = run.state | {"extra": run.state["extra"] | {"bad_streak": streak}}
    save(run)
    assert run.checkpointer.all_steps() == []
    save(run, force=True)
    run.checkpointer.wait()
    assert run.checkpointer.all_steps() == [2]
    assert run.said == [
        "step 2: not saved, as the last 3 steps were not finite",
        "step 2: saved although the last 3 steps were not finite",
    ]
