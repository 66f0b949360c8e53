"""The bench mode on a tokenizer that runs for milliseconds."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from vidlatent.config import load
from vidlatent.dist.mesh import make_mesh
from vidlatent.tools.bench import bench, measure, measure_loop
from vidlatent.tools.bench_device import Times, device_peaks, peak_memory, timed
from vidlatent.typing import VidlatentError

HERE = Path(__file__).parent
EIGHT = {"data.buckets": "((5, 16, 16, 8),)"}  # a batch for eight devices


def test_times_leave_out_the_warmup():
    seen = []
    times = timed(lambda number: seen.append(number) or jnp.zeros(()), warmup=2, repeats=3)
    assert seen == [0, 1, 2, 3, 4] and len(times.seconds) == 3
    numbers = Times([1.0, 2.0, 3.0, 4.0, 100.0]).to_json()
    assert numbers["median_s"] == 3.0 and numbers["least_s"] == 1.0 and numbers["most_s"] == 100.0
    assert numbers["spread"] == pytest.approx(2 / 3)


def test_this_device_can_multiply_and_copy():
    peaks = device_peaks(jnp.float32, repeats=2)
    assert 1e8 < peaks["flops"] < 1e16 and 1e7 < peaks["bandwidth"] < 1e14
    memory, of = peak_memory()
    assert memory > 2**20 and of in ("device", "process")


def benched(config, folder, **keys):
    keys = {f"bench.{name}": str(value) for name, value in keys.items()}
    keys = {"bench.repeats": "2", "bench.warmup": "1", **keys}
    target = folder / "bench.json"
    assert bench(load(config, keys), folder, str(target)) == 0
    result = json.loads(target.read_text())
    for found in result["programs"].values():
        assert 0 < found["least_s"] <= found["median_s"] <= found["most_s"]
        assert found["tflop_of_a_device"] > 0 and 0 < found["share_of_matmul"] < 1.5
        assert found["compile"]["cold_s"] > found["compile"]["cached_s"] > 0
    return result


def test_bench_writes_what_it_prints(tmp_path, capsys):
    folder = jax.config.jax_compilation_cache_dir
    result = benched(str(HERE / "micro.py"), tmp_path, what=("train",))
    assert result["bucket"] == [3, 16, 16, 8] and set(result["programs"]) == {"train"}
    text = capsys.readouterr().out
    assert "step of a batch of 8 clips 3x16x16" in text and "from cache" in text
    assert jax.config.jax_compilation_cache_dir == folder


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
