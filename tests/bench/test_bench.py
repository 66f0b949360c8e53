"""The bench mode on a tokenizer that runs for milliseconds."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from vidlatent.bench.device import Times, measure_peaks, read_peak_memory, time_runs
from vidlatent.bench.run import _format_row, bench, measure, measure_loop
from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.parallel.mesh import make_mesh
from vidlatent.parallel.paths import path_name
from vidlatent.plan.build import build_program, list_programs
from vidlatent.plan.costs import trace_program
from vidlatent.plan.flops import count_flops

HERE = Path(__file__).parent
MICRO, GENERATOR = (
    str(HERE.parent / "helpers" / "micro_config.py"),
    str(HERE.parent / "generator_tiny.py") + ":latents",
)
EIGHT = {"data.buckets": "((5, 16, 16, 8),)"}  # a batch for eight devices


def test_times_leave_out_the_warmup():
    seen = []
    times = time_runs(lambda number: seen.append(number) or jnp.zeros(()), warmup=2, repeats=3)
    assert seen == [0, 1, 2, 3, 4] and len(times.seconds) == 3
    numbers = Times([1.0, 2.0, 3.0, 4.0, 100.0]).to_json()
    assert numbers["median_s"] == 3.0 and numbers["least_s"] == 1.0 and numbers["most_s"] == 100.0
    assert numbers["spread"] == pytest.approx(2 / 3)


def test_this_device_can_multiply_and_copy():
    peaks = measure_peaks(jnp.float32, repeats=2)
    assert 1e8 < peaks["flops"] < 1e16 and 1e7 < peaks["bandwidth"] < 1e14
    memory, of = read_peak_memory()
    assert memory > 2**20 and of in ("device", "process")


def dtypes(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf.dtype for path, leaf in leaves}


def test_no_share_of_a_best_is_above_all():
    found = {"about": "x", "median_s": 1.0, "spread": 0.1, "frames_per_second": 1.0}
    found |= {"tflop_per_second": 1.0, "share_of_matmul": 1.04, "share_of_copy": 2.28}
    found |= {"program_memory": 1, "peak_memory": 1, "peak_memory_of": "process"}
    found |= {"compile": {"cold_s": 1.0, "cached_s": 0.1}}
    row = _format_row("train", found)
    assert (row["of matmul"], row["of copy"]) == ("all", "more: in caches")


@pytest.fixture
def cache_hits():
    """Grows with every program that JAX reads from its cache."""
    hits = []

    def note(event, **_):
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    jax.monitoring.register_event_listener(note)
    yield hits
    jax.monitoring.unregister_event_listener(note)


def benched(config, folder, **keys):
    keys = {"bench.repeats": "2", "bench.warmup": "1", **keys}
    target = folder / "bench.json"
    assert bench(load(config, keys), folder, str(target)) == 0
    result = json.loads(target.read_text())
    for found in result["programs"].values():
        assert 0 < found["least_s"] <= found["median_s"] <= found["most_s"]
        assert found["tflop_of_a_device"] > 0 and 0 < found["share_of_matmul"] < 1.5
        assert 2**10 < found["program_memory"] < found["peak_memory"]
        assert min(found["compile"]["cold_s"], found["compile"]["cached_s"]) > 0
    return result


def test_bench_writes_what_it_prints(tmp_path, capsys, cache_hits):
    """The second compilation reads the cache; how much faster that is, no test can promise."""
    folder = jax.config.jax_compilation_cache_dir
    result = benched(MICRO, tmp_path, **{"bench.what": "('train',)"})
    assert result["bucket"] == [3, 16, 16, 8] and set(result["programs"]) == {"train"}
    text = capsys.readouterr().out
    assert "step of a batch of 8 clips 3x16x16" in text and "from cache" in text
    assert "GiB of the program" in text and "so far" in text
    page = (tmp_path / "bench.html").read_text()
    assert "step of a batch of 8 clips 3x16x16" in page and "TFLOP/s in a matrix product" in page
    assert jax.config.jax_compilation_cache_dir == folder
    assert cache_hits


@pytest.mark.slow
def test_a_generator_is_measured_by_the_loop_and_by_the_evaluation(tmp_path, capsys):
    """Its tokenizer need not be there; guidance doubles the batch of an evaluation.

    Parameters are as sampling holds them: large kernels in the type of products, or in 8 bits.
    """
    keys = {"plan.tokenizer": MICRO, "sampler.fp8": "true", "precision.compute": "bfloat16"}
    assert list_programs(load(GENERATOR)) == ("train", "sample", "nfe")
    found = benched(GENERATOR, tmp_path, **keys, **{"bench.what": "('nfe',)"})["programs"]["nfe"]
    assert found["about"].startswith(
        "one evaluation for 3 clips 3x8x8, latents 3x8x8x4, 2 branches"
    )
    # The loop has four such steps, and makes keys and values of the condition besides.
    mesh = make_mesh({"data": 1, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:1])
    assert "8 bits" in found["about"]
    loop = build_program(load(GENERATOR, keys), "sample", mesh, (3, 8, 8, 3))
    assert loop.about.startswith("8 evaluations for 3 clips 3x8x8")
    held = dtypes(loop.arguments[0])
    assert held == dtypes(jax.eval_shape(loop.initial[0]))
    assert held["blocks/ffn/fc1/kernel"] == jnp.float8_e4m3fn
    keys["sampler.fp8"] = "false"
    plain = dtypes(build_program(load(GENERATOR, keys), "nfe", mesh, (3, 8, 8, 3)).arguments[0])
    assert plain["blocks/ffn/fc1/kernel"] == jnp.bfloat16
    islands = ("blocks/modulation", "time_projection/kernel", "router_2/kernel", "head/kernel")
    assert {plain[name] for name in islands} == {jnp.dtype(jnp.float32)}
    once = found["tflop_of_a_device"] * jax.device_count() * 1e12
    steps = count_flops(trace_program(loop, mesh).jaxpr) / once
    assert 4 < steps < 4.4
    lines = capsys.readouterr().out.splitlines()
    assert any("of matmul" in line and "TFLOP/s" in line for line in lines)
    assert sum("nfe: one evaluation" in line for line in lines) == 1


@pytest.mark.slow
def test_the_loop_is_measured_with_its_data():
    found = measure_loop(load("tests/tiny.py", {"bench.loop_steps": "15", **EIGHT}))
    assert found["steps_per_second"]["median"] > 0
    assert 0 <= found["data_wait_share"]["median"] <= 1
    with pytest.raises(VidlatentError, match="at least 15"):
        measure_loop(load("tests/tiny.py", {"bench.loop_steps": "10", **EIGHT}))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["encode", "decode"])
def test_the_codec_goes_on_from_its_own_caches(what):
    config = load(str(HERE.parent / "tiny.py"), {"bench.repeats": "3"})
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    found = measure(config, what, mesh, (13, 16, 16, 1), {"flops": 1e12, "bandwidth": 1e12})
    assert found["about"] == "a later piece of a clip, 8x16x16" and found["runs"] == 3
