"""Plans of distillation: all networks of the step, with adapters and without, and no run read."""

from pathlib import Path

import jax
import pytest

from vidlatent.config import load
from vidlatent.parallel.mesh import make_mesh
from vidlatent.plan.build import build_program, choose_bucket
from vidlatent.plan.costs import trace_program

ROOT = Path(__file__).parent.parent.parent
TINY = str(ROOT / "tests" / "tiny.py")
DIT = {"depth": 2, "heads": 2, "hidden": 16, "freq_dim": 8, "patch": (1, 1, 1), "width": 16}
FROZEN = {"base", "upsampler"}


def built(config, **keys):
    keys = {**{f"generator__{name}": value for name, value in DIT.items()}, **keys}
    keys |= {"data__buckets": "((5,16,16,2),)", "plan__tokenizer": TINY}
    keys |= {"plan__upsampler": "fsvideo_upsampler:demo"}
    loaded = load(config, {key.replace("__", "."): str(value) for key, value in keys.items()})
    axes = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
    mesh = make_mesh(axes, jax.devices()[:1])
    program = build_program(loaded, "train", mesh, choose_bucket(loaded, ()))
    trace_program(program, mesh)
    return program


def sizes(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)


@pytest.mark.parametrize(
    ("stage", "frozen", "players"),
    [
        ("cfg", {*FROZEN, "teacher"}, ()),
        ("progressive", FROZEN, ("teacher",)),
        ("sida", {*FROZEN, "teacher"}, ("fake",)),
    ],
)
def test_a_refiners_distillation_has_all_of_its_networks(stage, frozen, players):
    refiner = str(ROOT / "configs" / "fsvideo_refiner.py")
    state, batch, held, _ = built(f"{refiner}:demo,stage={stage}").arguments
    assert set(held) == frozen and {"latent", "latent_low", "mask"} <= set(batch)
    assert set(state) == {"step", "params", "opt", "ema", "extra", *players}
    for network in (*(state[name]["params"] for name in players), *map(held.get, frozen)):
        if network is not held["upsampler"]:
            assert sizes(network) == sizes(state["params"])


def test_adapters_take_the_place_of_all_states_but_one():
    base = str(ROOT / "configs" / "fsvideo_dit.py")
    keys = {"optim__lora__rank": 2, "optim__lora__targets": "blocks/"}
    program = built(f"{base}:demo,stage=cfg", **keys)
    state, _, held, _ = program.arguments
    assert set(held) == {"teacher"}  # whose weights are those that are adapted
    assert set(state["params"]) == {"blocks"} == set(state["ema"])
    last = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(state["params"])}
    assert last == {"lora_a", "lora_b"}
    assert program.parts["parameters"] is state["params"]


def test_student_and_fake_score_are_adapted_by_themselves():
    base = str(ROOT / "configs" / "fsvideo_dit.py")
    keys = {"optim__lora__rank": 2, "distill__optim__lora__rank": 3}
    state, _, held, _ = built(f"{base}:demo,stage=sida", **keys).arguments
    assert set(held) == {"teacher"} and set(state) > {"fake"}
    student, fake = (
        tree["blocks"]["ffn"]["fc1"]["kernel"]["lora_a"].shape[-1]
        for tree in (state["params"], state["fake"]["params"])
    )
    assert (student, fake) == (2, 3)


def test_a_student_that_starts_elsewhere_shares_nothing():
    base = str(ROOT / "configs" / "fsvideo_dit.py")
    keys = {"optim__lora__rank": 2, "optim__lora__targets": "blocks/"}
    keys |= {"distill__teacher": "runs/a", "train__init_from": "runs/b"}
    held = built(f"{base}:demo,stage=cfg", **keys).arguments[2]
    assert set(held) == {"adapted", "teacher"}
    assert sizes(held["adapted"]) == sizes(held["teacher"])
