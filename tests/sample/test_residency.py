"""Which networks are in memory when, by networks that only count."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.errors import VidlatentError
from vidlatent.parallel.mesh import make_mesh
from vidlatent.sample import residency
from vidlatent.sample.residency import (
    Loadable,
    Residency,
    choose_plan,
    count_device_bytes,
    hold_on_host,
)

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


class Staged:
    """The networks of a cascade on an accelerator, whose large ones come by way of the host.

    Events stand in ``log``. Reading the refiner waits for ``read``.
    """

    SIZES = {"text": 11, "base": 33, "upsampler": 1, "refiner": 33, "tokenizer": 4}

    def __init__(self, monkeypatch, free, plan="swap"):
        monkeypatch.setattr(residency, "_has_host_room", lambda size: True)
        monkeypatch.setattr(residency, "find_free_memory", lambda: (free, ""))
        self.log, self.read, self.fail = [], threading.Event(), False
        self.networks = Residency({name: self.describe(name) for name in self.SIZES}, plan)

    def describe(self, name):
        def note(event, result):
            self.log.append(f"{event} {name}")
            return result

        def read():
            if name == "refiner":
                assert self.read.wait(10)
                if self.fail:
                    raise VidlatentError("step 3 is damaged")
            return note("read", name)

        staged = name in ("base", "refiner")  # the base is of no later stage
        return Loadable(
            lambda: note("load", name.upper()),
            lambda: self.SIZES[name],
            read if staged else None,
            (lambda held: note("copy", held.upper())) if staged else None,
        )

    def wait(self):
        self.read.set()
        self.networks._hosted["refiner"].exception(10)

    def draw_base(self):
        self.networks.enter("text")
        assert self.networks["text"] == "TEXT"
        self.networks.enter("base", then=("refiner",))
        assert self.networks["base"] == "BASE"


def test_a_later_network_is_copied_once_while_a_stage_runs(monkeypatch):
    job = Staged(monkeypatch, free=40)
    job.draw_base()
    # The encoder is gone, and the base model does not wait for the refiner's file.
    assert job.networks.held == ("base",) and job.log == ["load text", "load base"]
    assert not job.networks.copy_ahead("refiner")
    job.wait()
    assert not job.networks.copy_ahead("refiner", reserve=6)  # 33 + 6 of 40: too tight
    assert job.networks.copy_ahead("refiner", reserve=4)
    assert job.networks.copy_ahead("refiner", reserve=4)
    assert job.networks.held == ("base", "refiner") and sum(job.networks.peak.values()) == 66
    job.networks.enter("upsampler", then=("refiner",))
    assert job.networks["upsampler"] == "UPSAMPLER"
    assert job.networks.held == ("refiner", "upsampler")
    job.networks.enter("refiner", "tokenizer")
    assert job.networks["refiner"] == "REFINER" and job.networks.held == ("refiner",)
    assert job.log[2:] == ["read refiner", "copy refiner", "load upsampler"]
    # The next job copies from the host what was read for this one.
    job.log.clear()
    job.draw_base()
    assert job.networks.held == ("base",) and job.networks.copy_ahead("refiner")
    assert job.log == ["load text", "load base", "copy refiner"]


def test_what_does_not_fit_ahead_is_copied_by_its_own_stage(monkeypatch):
    job = Staged(monkeypatch, free=20)
    job.draw_base()
    job.wait()
    assert not job.networks.copy_ahead("refiner")
    job.networks.enter("refiner")
    assert job.networks["refiner"] == "REFINER" and job.networks.held == ("refiner",)
    assert sum(job.networks.peak.values()) == 33


def test_a_file_that_cannot_be_read_is_tried_anew(monkeypatch):
    job = Staged(monkeypatch, free=100)
    job.fail = True
    job.draw_base()
    job.wait()
    with pytest.raises(VidlatentError, match="step 3 is damaged"):
        job.networks.copy_ahead("refiner")
    job.fail = False
    job.networks.enter("refiner")
    assert job.networks["refiner"] == "REFINER"


def test_networks_that_stay_are_loaded_directly(monkeypatch):
    job = Staged(monkeypatch, free=100, plan="keep")
    job.draw_base()
    assert not job.networks.copy_ahead("refiner") and job.log == ["load text", "load base"]


def test_arrays_on_the_host_keep_their_values():
    mesh = make_mesh({"data": 1, "fsdp": 4, "context": 1, "tensor": 1}, jax.devices()[:4])
    where = {"a": jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))}
    tree = {"a": np.arange(8, dtype=np.float32).astype(jnp.bfloat16)}
    held = hold_on_host(tree, where)
    np.testing.assert_array_equal(jax.device_put(held, where)["a"], tree["a"])
    # Where a device computes in the host's memory, a second copy there would gain nothing.
    assert not residency._has_host_room(1)


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
