"""Which networks are in memory when, by networks that only count."""

import jax
import jax.numpy as jnp
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.parallel.mesh import make_mesh
from vidlatent.sample import residency
from vidlatent.sample.residency import Loadable, Residency, choose_plan, count_device_bytes

SIZES = {"text": 11, "image": 2, "generator": 33, "tokenizer": 4}


class Loads:
    """Networks that write down when they are loaded, and what is in memory then."""

    def __init__(self, plan):
        self.log, self.most = [], 0
        networks = {
            name: Loadable(lambda n=name: self.load(n), lambda n=name: SIZES[n]) for name in SIZES
        }
        self.networks = Residency(networks, plan)

    def load(self, name):
        held = sum(SIZES[other] for other in self.networks.held)
        self.log.append(name)
        self.most = max(self.most, held + SIZES[name])
        return name.upper()

    def sample(self):
        """The stages of a job: encode, then draw and decode two batches."""
        for encoder in ("text", "image", "tokenizer"):
            self.networks.enter(encoder)
            assert self.networks[encoder] == encoder.upper()
        self.networks.enter("generator", "tokenizer")
        for _ in range(2):
            assert self.networks["generator"] == "GENERATOR"
            assert self.networks["tokenizer"] == "TOKENIZER"


def test_encoders_are_released_before_the_generator_is_loaded():
    job = Loads("swap")
    job.sample()
    # Each once: a stage releases nothing that it uses itself.
    assert job.log == ["text", "image", "tokenizer", "generator"]
    assert job.most == 37 and job.networks.peak == {"tokenizer": 4, "generator": 33}
    assert job.networks.held == ("tokenizer", "generator")
    job.sample()
    assert job.log[4:] == ["text", "image", "tokenizer", "generator"] and job.most == 37


def test_networks_that_fit_stay():
    job = Loads("keep")
    job.sample()
    job.sample()
    assert job.log == ["text", "image", "tokenizer", "generator"]
    assert job.most == 50 and sum(job.networks.peak.values()) == 50
    job.networks.release("generator")
    assert job.networks["generator"] == "GENERATOR" and job.log[-1] == "generator"


def test_a_network_of_another_stage_begins_its_own():
    job = Loads("swap")
    job.networks.enter("generator", "tokenizer")
    assert job.networks["generator"] and job.networks["text"] == "TEXT"
    assert job.networks.held == ("text",)
    with pytest.raises(ValueError, match="no network 'refiner' among text, image"):
        job.networks.enter("refiner")
    with pytest.raises(VidlatentError, match="residency 'swop' is unknown: did you mean 'swap'"):
        Residency({}, "swop")


def test_the_plan_follows_the_free_memory(monkeypatch):
    monkeypatch.setattr(residency, "find_free_memory", lambda: (100.0, ""))
    assert choose_plan("auto", [30, 30]) == "keep" and choose_plan("auto", [30, 31]) == "swap"
    assert choose_plan("swap", [1]) == "swap" and choose_plan("keep", [1000]) == "keep"
    monkeypatch.setattr(residency, "find_free_memory", lambda: (None, ""))
    assert choose_plan("auto", [1]) == "swap"


def test_bytes_are_those_of_one_device():
    mesh = make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 1}, jax.devices()[:4])
    shared = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    tree = {
        "a": jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=shared),
        "b": jax.ShapeDtypeStruct((8,), jnp.bfloat16),
    }
    assert count_device_bytes(tree) == 2 * 3 * 4 + 8 * 2
