"""Plans: hardware, operations, memory, what is tried when a job does not fit."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.parallel.mesh import make_mesh
from vidlatent.parallel.sharding import replicated, with_shardings
from vidlatent.plan.build import build_program, choose_bucket
from vidlatent.plan.costs import compile_program, compute_roofline, read_costs, trace_program
from vidlatent.plan.flops import count_flops
from vidlatent.plan.generators import SamplingJob
from vidlatent.plan.hardware import GIB, HARDWARE, parse_topology
from vidlatent.plan.program import Program
from vidlatent.plan.report import answer, format_plan, write_page
from vidlatent.plan.run import make_plan
from vidlatent.plan.search import override_keys, propose_changes
from vidlatent.plan.topology import get_devices, has_devices

ROOT = Path(__file__).parent.parent.parent
TINY, MICRO = (str(ROOT / "tests" / name) for name in ("tiny.py", "helpers/micro_config.py"))

ONE = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}  # device

GENERATOR = str(ROOT / "tests" / "generator_tiny.py") + ":latents,first=true"


def planned(topology, config=MICRO, **keys):
    config = load(config, {key.replace("__", "."): str(value) for key, value in keys.items()})
    where = parse_topology(topology)
    return make_plan(config, where, get_devices(where))


def test_topologies():
    v5p = parse_topology("v5p:8x8x4")
    assert v5p.devices == 256 and v5p.hardware.platform == "tpu" and str(v5p) == "v5p:8x8x4"
    assert parse_topology("cpu:8").hardware.memory == math.inf
    for text, says in (
        ("v5f:2x2", "v5p"),
        ("v5p:8x8", "v5p:4x4x4"),
        ("v5e", "v5e:4x4"),
        ("cpu:0", "cpu:8"),
        ("v6e:2x-2", "v6e:4x4"),
    ):
        with pytest.raises(VidlatentError, match=says):
            parse_topology(text)


def test_every_accelerator_has_its_figures():
    for hardware in HARDWARE.values():
        if hardware.platform != "cpu":
            rates = (hardware.flops, hardware.bandwidth, hardware.link)
            assert all(rate > 1e11 for rate in rates) and hardware.memory > 15 * GIB


def flops(function, *arguments):
    return count_flops(jax.make_jaxpr(function)(*arguments))


def test_operations_are_those_of_products_that_meet_data():
    x, w = jnp.zeros((4, 6)), jnp.zeros((6, 6))
    assert flops(lambda x: x @ w, x) == 2 * 4 * 6 * 6
    assert flops(lambda x: jax.lax.scan(lambda c, _: (c @ w, None), x, None, 5)[0], x) == 5 * 288

    def convolve(x, kernel, **options):
        numbers = ("NHC", "HIO", "NHC")
        return jax.lax.conv_general_dilated(
            x, kernel, dimension_numbers=numbers, **{"window_strides": (1,), **options}
        )

    image, kernel = jnp.zeros((2, 8, 3)), jnp.zeros((3, 3, 5))
    # 8 places of 3 taps, of which the two at the ends fall on padding.
    assert flops(lambda x: convolve(x, kernel, padding=((1, 1),)), image) == 2 * 2 * 5 * 3 * 22
    strided = dict(padding=((1, 0),), window_strides=(2,))
    forward = flops(lambda x: convolve(x, kernel, **strided), image)
    both = flops(jax.grad(lambda x, k: convolve(x, k, **strided).sum(), (0, 1)), image, kernel)
    # The gradients of input and kernel cost as much each as the forward pass.
    assert both == pytest.approx(3 * forward, rel=0.01)


def test_recomputed_blocks_count_again():
    w = jnp.zeros((6, 6))

    def block(x):
        return jnp.tanh(jnp.tanh(x @ w) @ w)

    x = jnp.zeros((4, 6))
    plain = flops(jax.grad(lambda x: block(x).sum()), x)
    again = flops(jax.grad(lambda x: jax.checkpoint(block)(x).sum()), x)
    assert again > plain


def test_a_bound_by_each_resource():
    found = {
        "flops": {"program": 459e12, "compiler": 4e12},
        "bytes": {"program": 2765e9 / 2},
        "collectives": [{"sent": 600e9 / 4}],
    }
    line = compute_roofline(found, HARDWARE["v5p"], 459e12 / 2)
    assert (line["compute"], line["memory"], line["interconnect"]) == (1.0, 0.5, 0.25)
    assert line["bound"] == "compute" and line["mfu_at_most"] == 0.5
    assert compute_roofline(found, HARDWARE["cpu"], 1.0) is None


def test_figures_below_zero_are_unknown():
    mesh = make_mesh({"data": 1, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:1])
    leaf = with_shardings(jax.ShapeDtypeStruct((3, 3), jnp.float32), replicated(mesh))
    parts = {"parameters": leaf}
    program = Program("train", "a step", jax.jit(lambda x: x @ x), (leaf,), parts, {}, None, 1)
    traced, compiled, _ = compile_program(program, mesh)
    told = {"flops": -1.0, "bytes accessed": 7.0, "optimal_seconds": -3e9}
    stand_in = SimpleNamespace(
        memory_analysis=compiled.memory_analysis,
        as_text=compiled.as_text,
        cost_analysis=lambda: told,
    )
    found = read_costs(program, traced, stand_in, 1)
    assert found["flops"]["compiler"] is None and found["compiler_seconds"] is None
    assert found["bytes"]["compiler"] == 7.0 and found["parameters"] == 9


def test_changes_go_from_small_to_large():
    config = load(TINY)
    mesh = {"data": 1, "fsdp": 4, "context": 1, "tensor": 1}
    found = list(propose_changes(config, "train", mesh, (9, 64, 64, 16)))
    assert found[:3] == [
        {"model.remat": True},
        {"model.remat": True, "optim.accumulate": 2},
        {"model.remat": True, "optim.accumulate": 4},
    ]
    spread = {"mesh.data": 1, "mesh.fsdp": 2, "mesh.context": 2}
    assert found[3] == {"model.remat": True, **spread}
    assert found[4] == {"model.remat": True, **spread, "optim.accumulate": 8}
    # A batch of 2 cannot be spread over 4 devices: that comes first, and alone.
    assert next(propose_changes(config, "train", mesh, (9, 64, 64, 2))) == spread
    generator = load(GENERATOR.replace("latents", "videos"), {"generator.stack": "scanned"})
    again = {"generator.remat": True, "generator.stack": "recomputed"}
    others = list(propose_changes(generator, "train", mesh, (9, 64, 64, 4)))
    assert others[0] == again and {"mesh.tensor", "mesh.context"} <= {k for c in others for k in c}
    assert [set(c) for c in propose_changes(config, "decode", mesh, (9, 64, 64, 1))] == [
        set(spread)
    ] * 2
    assert override_keys(config, found[0]).model.remat and not config.model.remat


@pytest.fixture(scope="module")
def on_eight():
    return planned("cpu:8", mesh__context=4)


def test_a_step_on_eight_devices(on_eight):
    (row,) = on_eight["attempts"]
    assert row["fits"] and row["mesh"] == {"data": 1, "fsdp": 2, "context": 4, "tensor": 1}
    memory = row["memory"]
    kept = memory["parts"]
    assert kept["optimizer"] == 2 * kept["parameters"] + 4
    assert kept["averaged parameters"] == kept["parameters"]
    assert memory["outputs_in_place"] > 0.9 * memory["outputs"]  # the state is handed over
    assert memory["total"] > memory["arguments"] + memory["temporaries"]
    # Gradients are summed, and rows at the borders exchanged.
    assert {"all-reduce", "collective-permute"} <= {e["kind"] for e in row["collectives"]}
    flops = row["flops"]
    assert flops["program"] == flops["model"] == pytest.approx(flops["compiler"], rel=0.5)
    assert json.loads(json.dumps(on_eight)) == on_eight


def test_the_report_names_what_takes_memory(on_eight):
    text = format_plan(on_eight)
    for part in ("optimizer", "all-reduce", "GB to and from memory", "nothing was run"):
        assert part in text
    # The answer comes first. CPUs have no limit, and no peak rate to bound the time by.
    assert text.splitlines()[0] == answer(on_eight)
    assert re.fullmatch(r"fits: [\d.]+ [KM]iB", answer(on_eight))


def test_a_page_has_the_same_tables(on_eight, tmp_path):
    write_page(tmp_path / "plan.html", on_eight)
    page = (tmp_path / "plan.html").read_text()
    assert f"<h1>{answer(on_eight)}</h1>" in page
    for part in ("optimizer", "all-reduce", "GB to and from memory", "nothing was run"):
        assert part in page


def fitting(topology="v5p:4x4x4", **changes):
    """A result whose times and sizes are known."""
    attempt = {
        "overrides": {},
        "fits": True,
        "needed": 8.6 * GIB,
        "about": "8 evaluations for 4 clips 5x16x16",
        "roofline": {"at_least": 0.9},
    }
    return {
        "topology": topology,
        "devices": parse_topology(topology).devices,
        "limit": 95.74 * GIB,
        "steps": 200_000,
        "attempts": [{**attempt, **changes}],
    }


def test_the_answer_is_one_line():
    # 0.9 s x 200,000 = 50 hours; on 64 chips 3,200 chip hours.
    assert answer(fitting()) == (
        "fits: 8.6 of 95.7 GiB; at best 0.9 s a step; 2.1 days for 200,000 steps; about 3,200 "
        "chip hours"
    )
    assert answer(fitting("h200:8")).endswith("about 400 GPU hours")
    once = {**fitting(), "steps": None}
    assert answer(once) == (
        "fits: 8.6 of 95.7 GiB; at best 0.9 s for 8 evaluations for 4 clips 5x16x16"
    )


def test_does_not_fit_is_said_of_memory_only():
    short = fitting(fits=False, short_of="memory", needed=123.4 * GIB)
    assert answer(short) == "does not fit: 123.4 of 95.7 GiB"
    # The compiler does not always say how much it would have needed.
    unknown = fitting(fits=False, short_of="memory", needed=None)
    assert answer(unknown) == "does not fit: more than 95.74 GiB"
    other = fitting(fits=False, short_of="devices", needed=None, why="a batch of 4 is too small.")
    assert answer(other) == "cannot run: a batch of 4 is too small."
    mended = fitting(overrides={"mesh.context": 2})
    mended["attempts"].insert(0, other["attempts"][0])
    assert answer(mended).startswith("with --config.mesh.context=2 it fits: 8.6 of 95.7 GiB; ")


def test_what_does_not_fit_is_made_to_fit_by_the_smallest_change(monkeypatch):
    whole = planned("cpu:1")["attempts"][0]["memory"]
    # Half of the batch at a time would leave more than a device of this size has.
    room = whole["total"] - 0.6 * whole["temporaries"]
    small = dataclasses.replace(HARDWARE["cpu"], memory=room)
    monkeypatch.setitem(HARDWARE, "cpu", small)
    result = planned("cpu:1")
    first, *others, last = result["attempts"]
    assert not first["fits"] and first["overrides"] == {} and "more than" in first["why"]
    assert all(not row["fits"] for row in others)
    assert last["fits"] and last["needed"] <= room
    assert set(last["overrides"]) == {"optim.accumulate"}
    assert last["overrides"]["optim.accumulate"] > 2
    text = format_plan(result)
    assert "smallest change found: --config.optim.accumulate=" in text and "as it is" in text
    assert text.startswith("with --config.optim.accumulate=")


def test_a_batch_that_does_not_spread_gets_more_devices_to_a_clip():
    result = planned("cpu:8", plan__bucket=(3, 16, 16, 4))
    first, last = result["attempts"]
    assert "batch of 4 does not spread" in first["why"] and first["needed"] is None
    assert last["fits"] and last["mesh"]["fsdp"] == 4 and last["mesh"]["context"] == 2
    assert first["short_of"] == "devices" and "does not fit" not in format_plan(result)


def test_nothing_helps_a_device_without_memory():
    result = planned("cpu:1", plan__memory_gib=1e-6, plan__tries=0)
    assert [row["fits"] for row in result["attempts"]] == [False]
    assert format_plan(result).startswith("does not fit: ")
    assert "% taken" not in format_plan(result)  # no share above 100 %


def test_a_generator_is_planned_without_its_latents():
    keys = {"generator__stack": "recomputed"}
    (row,) = planned("cpu:1", GENERATOR, plan__tokenizer=MICRO, **keys)["attempts"]
    assert row["about"] == "step of a batch of 8 clips 3x8x8, latents 3x8x8x4"
    # Its backward pass computes layers again.
    assert row["flops"]["program"] > row["flops"]["model"] > 0
    assert row["memory"]["parts"]["optimizer"] == 2 * row["memory"]["parts"]["parameters"] + 4


def built(config, **keys):
    """The step's program on one device, traced: ``(program, operations)``."""
    config = load(config, {key.replace("__", "."): str(value) for key, value in keys.items()})
    mesh = make_mesh(ONE, jax.devices()[:1])
    program = build_program(config, "train", mesh, choose_bucket(config, ()))
    return program, count_flops(trace_program(program, mesh).jaxpr)


def second_half(name, **keys):
    """A tiny refiner's or upsampler's config, on the latents of the tiny tokenizer."""
    dit = {"depth": 2, "heads": 2, "hidden": 16, "freq_dim": 8, "patch": (1, 1, 1), "width": 16}
    fields = dit if name == "refiner" else {"width": 16, "groups": 2, "blocks": 1}
    return {
        "config": str(ROOT / "configs" / f"fsvideo_{name}.py"),
        "data__buckets": "((5,16,16,2),)",
        "sample__size": "(5,16,16)",
        "plan__tokenizer": TINY,
        **{f"generator__{field}": value for field, value in fields.items()},
        **keys,
    }


def test_the_second_half_is_planned_without_any_run():
    """A refiner beside a copy of itself as base model, and an upsampler that encodes videos."""
    refiner = second_half("refiner")
    program, work = built(**refiner, plan__upsampler="fsvideo_upsampler:demo")
    state, batch, frozen, _ = program.arguments
    high, low = (batch[name].shape for name in ("latent", "latent_low"))
    assert high == (*low[:2], 2 * low[2], 2 * low[3], low[4]) and {"mask", "label"} < set(batch)
    assert jax.tree.structure(frozen["base"]) == jax.tree.structure(state["params"])
    assert all(leaf.sharding for leaf in jax.tree.leaves(frozen))
    _, larger = built(**refiner, plan__upsampler="fsvideo_upsampler:paper")
    assert larger > 10 * work  # the upsampler runs in the step
    program, _ = built(**second_half("upsampler", data__source="folder"))
    _, batch, frozen, _ = program.arguments
    assert set(batch) == {"video", "mask"} and set(frozen) == {"tokenizer"}
    with pytest.raises(VidlatentError, match="the plan asks for clips at half their size"):
        built(**second_half("refiner", data__buckets="((5,20,16,2),)"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "parameters", "frozen"),
    [
        # The base model is a copy of the refiner.
        (
            "fsvideo_refiner:paper,stage=target",
            16_399_994_547,
            {"base": 16_399_994_547, "upsampler": 239_521_408},
        ),
        ("fsvideo_upsampler:paper,phase=256", 239_521_408, {}),
    ],
)
def test_published_steps_of_the_second_half_trace(config, parameters, frozen):
    keys = {"plan__tokenizer": "fsae:paper,stage=standard", "precision__compute": "bfloat16"}
    program, work = built(config, **keys)

    def count(tree):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    found = program.arguments[2]
    assert count(program.parts["parameters"]) == parameters
    assert {name: count(found[name]) for name in frozen} == frozen
    assert work > 1e16


def test_sampling_counts_its_loop():
    keys = {"plan__what": "sample", "plan__tokenizer": MICRO}
    four, eight = (
        planned("cpu:1", GENERATOR, sampler__steps=steps, **keys)["attempts"][0] for steps in (4, 8)
    )
    assert four["about"].startswith("8 evaluations for 3 clips 3x8x8")
    for cost in ("flops", "bytes"):
        ratio = eight[cost]["program"] / four[cost]["program"]
        assert ratio == pytest.approx(2, rel=0.1)
        assert eight[cost]["compiler"] == pytest.approx(four[cost]["compiler"], rel=0.1)


def test_a_refiner_is_planned_as_it_draws():
    """8 steps of one branch each, with mask and condition of every frame among its inputs."""
    (one,) = planned("cpu:1", **second_half("refiner", plan__what="nfe"))["attempts"]
    (all_,) = planned("cpu:1", **second_half("refiner", plan__what="sample"))["attempts"]
    assert one["about"].startswith("one evaluation for 4 clips 5x16x16")
    assert all_["about"].startswith("8 evaluations for 4 clips 5x16x16")
    assert all_["flops"]["program"] == pytest.approx(8 * one["flops"]["program"], rel=0.2)
    keys = second_half("refiner", plan__what="nfe")
    config = load(keys.pop("config"), {k.replace("__", "."): str(v) for k, v in keys.items()})
    job = SamplingJob(config, make_mesh(ONE, jax.devices()[:1]), (5, 16, 16, 2))
    given = job.conditions(3)["given"].shape
    assert given == (3, *job.sampler.shape[:3], 1 + job.sampler.shape[3])


def test_an_upsampler_is_planned_and_has_no_evaluations():
    (row,) = planned("cpu:1", **second_half("upsampler", plan__what="sample"))["attempts"]
    assert row["fits"] and row["about"] == "latents of 16 clips 5x16x16, 2x2x2x8 to 2x4x4x8"
    with pytest.raises(VidlatentError, match="'nfe' is not a program of fsvideo_upsampler.*train"):
        planned("cpu:1", **second_half("upsampler", plan__what="nfe"))


def test_mistakes_are_one_sentence():
    with pytest.raises(VidlatentError, match="choose one of train, sample"):
        planned("cpu:1", GENERATOR, plan__what="decode", plan__tokenizer=MICRO)
    with pytest.raises(VidlatentError, match="did you mean 'train'"):
        planned("cpu:1", plan__what="trian")
    with pytest.raises(VidlatentError, match="frames, height, width, global batch"):
        planned("cpu:1", plan__bucket=(5, 16, 16))
    with pytest.raises(VidlatentError, match="5 or 9"):
        planned("cpu:1", TINY, plan__bucket=(8, 16, 16, 2))
    assert not has_devices(parse_topology("cpu:9"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "topology", ["cpu:16", pytest.param("v5e:2x2", marks=pytest.mark.libtpu), "h200:4"]
)
def test_one_command_plans_for_devices_that_are_not_here(topology, tmp_path):
    if topology.startswith("h200") and not find_spec("jax_cuda12_plugin"):
        pytest.skip("compiling for a GPU needs jax-cuda12-plugin and jax-cuda12-pjrt")
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    command = f"--mode=plan --config={TINY} --topology={topology} --output={tmp_path / 'p.json'}"
    keys = "--config.mesh.fsdp=2 --config.mesh.context=-1 --config.plan.effort=-1"
    done = subprocess.run(
        [sys.executable, "-m", "vidlatent.main", *command.split(), *keys.split()],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("fits: ")
    result = json.loads((tmp_path / "p.json").read_text())
    (row,) = result["attempts"]
    assert result["devices"] == parse_topology(topology).devices
    assert (row["roofline"] is None) == topology.startswith("cpu")
