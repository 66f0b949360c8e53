"""Policy updates of a refiner: base model and upsampler make what it is given, once a prompt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.test_refiner_runs import digest, places, refiner_config  # noqa: F401
from vidlatent.models.frozen import load_frozen
from vidlatent.parallel.mesh import make_mesh
from vidlatent.report.writers import read_metrics
from vidlatent.sample.sampler import LatentSampler
from vidlatent.train.loop import INTERRUPTED, train
from vidlatent.train.tasks.base import make_task

pytestmark = [pytest.mark.usefixtures("one_device"), pytest.mark.slow]

KEYS = {
    "task": "grpo",
    "rewards.use": "('motion', 'sharpness')",
    "rl.group": 4,
    "rl.parts": 2,
    "rl.window.stay": 3,
    "sampler.name": "euler",
    "sampler.steps": 4,
    "data.buckets": "((5,16,16,2),)",
    "train.log_every": 1,
    "train.steps": 4,
    "sample.fps": 8.0,
}


def test_a_run_goes_on_bitwise_within_a_window(places):  # noqa: F811
    assert train(refiner_config(places, **KEYS), places / "grpo") == 0
    curves = read_metrics(places / "grpo" / "metrics.jsonl")
    assert curves["train/first_ratio_error/must_be_zero"][1] == [0.0] * 4
    assert np.isfinite(curves["train/reward/sharpness"][1]).all()
    assert (places / "grpo" / "samples" / "step_4.png").stat().st_size > 500
    cut = places / "grpo_cut"
    assert train(refiner_config(places, **KEYS, **{"train.stop_at": 2}), cut) == INTERRUPTED
    assert train(refiner_config(places, **KEYS), cut) == 0
    assert digest(cut, 4) == digest(places / "grpo", 4)


def test_it_is_given_the_base_models_sample(places):  # noqa: F811
    """Not the error at one noise level that training imitates; and pictures are enough."""
    task = make_task(refiner_config(places, **KEYS))
    mesh = make_mesh({"data": 1, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:1])
    rng = np.random.default_rng(0)
    batch = {
        "latent": jnp.asarray(rng.normal(size=(2, 3, 8, 8, 4)), jnp.float32),
        "latent_low": jnp.asarray(rng.normal(size=(2, 3, 4, 4, 4)), jnp.float32),
        "mask": jnp.ones(2),
        "label": jnp.asarray([1, 2]),
    }
    with jax.set_mesh(mesh):
        frozen = load_frozen(task.frozen, mesh)
        key = jax.random.key(3)
        high, conditions, given = task.inputs.give(batch, frozen, key)
        base = task.inputs._parts.base
        sampler = LatentSampler(task.inputs._base, base, (3, 4, 4, 4))
        seeds = jax.random.bits(jax.random.split(key, 3)[2], (2,), jnp.uint32)
        low = task.latents.standardise(batch["latent_low"])
        own = {"label": batch["label"], "first": low[:, :1]}
        drawn = sampler.run(frozen["base"], seeds, own)
        upsampled = task.inputs._upsample(frozen)(drawn)
        np.testing.assert_allclose(given.condition[:, 1:], upsampled[:, 1:], atol=1e-5)
        np.testing.assert_allclose(given.condition[:, :1], high[:, :1], atol=1e-6)
        # Only first frames of the clips are seen.
        other = {**batch, "latent_low": batch["latent_low"].at[:, 1:].set(7.0)}
        again = task.inputs.give(other, frozen, key)[2]
        np.testing.assert_array_equal(again.condition, given.condition)
        # A set of pictures, and the length of the videos in the config.
        pictures = {n: v[:, :1] if n.startswith("latent") else v for n, v in batch.items()}
        assert task.inputs.give(pictures, frozen, key)[2] is None
        with task.config.unlocked():
            task.config.rl.frames = 5
        long = task.inputs.give(pictures, frozen, key)[2]
        np.testing.assert_allclose(long.condition, given.condition, atol=1e-5)
        assert task.find_shape(pictures["latent"]) == (3, 8, 8, 4)
