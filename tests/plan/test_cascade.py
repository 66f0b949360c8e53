"""Plans of a cascade: memory and time of each way to hold its networks, on named machines."""

import json

import jax
import pytest

from vidlatent.codec.memory import count_tree_bytes
from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.plan.cascade import STAGES, Part, describe_parts, estimate_plans
from vidlatent.plan.hardware import HARDWARE, parse_topology
from vidlatent.plan.run import plan

KEYS = {
    "plan.what": "cascade",
    "plan.base": "fsvideo_dit:demo,first=true",
    "plan.upsampler": "fsvideo_upsampler:demo",
    "plan.tokenizer": "fsae:demo",
    "sample.size": "(9,60,64)",
}


def config_of(**keys):
    merged = {**KEYS, **{key.replace("__", "."): value for key, value in keys.items()}}
    return load("fsvideo_refiner:demo", {key: str(value) for key, value in merged.items()})


def shape_of(*shape):
    return jax.ShapeDtypeStruct(shape, "float32")


@pytest.fixture
def described():
    """Stages and networks of made-up sizes; the refiner has no text."""
    parts = {
        "encode": Part(1e12, 3e3, 2),
        "base": Part(4e12, 1e3, 2, 2, 8, 4),
        "upsampler": Part(1e12, 2e3, 2),
        "refiner": Part(2e12, 5e3, 2, 1, 8, 2),
        "decode": Part(1e12, 4e3, 1),
    }
    sizes = {"base": 6, "refiner": 6, "upsampler": 2, "tokenizer": 3}
    return parts, {name: {"kernel": shape_of(1000, size)} for name, size in sizes.items()}


def test_peaks_are_those_of_the_stages(described):
    """keep: all networks and the largest working memory; swap: the largest stage."""
    parts, params = described
    held = {name: count_tree_bytes(tree) for name, tree in params.items()}
    keep, swap = sorted(
        estimate_plans(config_of(), parse_topology("h100:1"), parts, params),
        key=lambda row: row["plan"],
    )
    assert keep["parameters"] == held
    working = {name: part.working for name, part in parts.items()}
    assert keep["peak"] == sum(held.values()) + max(working.values())
    ahead = {"base": held["refiner"], "upsampler": held["refiner"]}
    stages = [
        sum(held[name] for name in STAGES[stage]) + working[stage] + ahead.get(stage, 0)
        for stage in parts
    ]
    assert swap["peak"] == max(stages) < keep["peak"]
    # The tokenizer encodes pictures, is released, and comes again with the refiner.
    assert swap["copied"] == sum(held.values()) + held["tokenizer"] and keep["copied"] == 0
    # The refiner's copy passes while the base model draws.
    host = HARDWARE["h100"].host
    seen = (swap["copied"] - held["refiner"]) / host
    assert swap["refiner_ahead"] and not keep["refiner_ahead"]
    assert swap["copy_seconds"] == pytest.approx(seen)
    assert swap["at_least"] - keep["at_least"] == pytest.approx(seen)
    assert keep["seconds"]["base"] >= parts["base"].flops / HARDWARE["h100"].flops


def test_a_refiner_that_does_not_fit_beside_the_base_comes_after_it(described):
    parts, params = described
    found = {}
    for gib in (80.0, 45_000 / 2**30):
        config = config_of(plan__memory_gib=gib)
        rows = estimate_plans(config, parse_topology("h100:1"), parts, params)
        found[gib] = next(row for row in rows if row["plan"] == "swap")
    roomy, tight = found.values()
    assert roomy["refiner_ahead"] and not tight["refiner_ahead"] and tight["fits"]
    # Base, refiner (24 kB each) and working memory; refiner, tokenizer (12 kB) and working memory.
    assert (roomy["peak"], tight["peak"]) == (49_000, 41_000)
    host = HARDWARE["h100"].host
    assert tight["copy_seconds"] - roomy["copy_seconds"] == pytest.approx(24_000 / host)


def test_branches_of_guidance_on_two_devices():
    """Whole weights on either device, and half of the base's time; the refiner has one branch."""
    parts = {"base": Part(1e12, 100.0, 2, 2, 8, 4), "refiner": Part(1e12, 100.0, 2, 1, 8, 2)}
    one = {"kernel": shape_of(8, 6)}
    params = {"base": one, "refiner": one, "tokenizer": one}

    def found(topology, **mesh):
        keys = {f"mesh__{axis}": size for axis, size in mesh.items()}
        return estimate_plans(config_of(**keys), parse_topology(topology), parts, params)[0]

    alone, split = found("h100:1"), found("h100:2", data=2, fsdp=1)
    assert split["parameters"] == alone["parameters"]
    assert split["seconds"]["base"] == pytest.approx(alone["seconds"]["base"] / 2)
    assert split["seconds"]["refiner"] == alone["seconds"]["refiner"]
    shared = found("v6e:1x2")
    assert shared["parameters"]["base"] == alone["parameters"]["base"] / 2
    assert shared["parameters"]["tokenizer"] == alone["parameters"]["tokenizer"]
    rows = found("h100:2", context=2, fsdp=1)
    assert rows["seconds"]["refiner"] == pytest.approx(alone["seconds"]["refiner"] / 2)


def test_the_answer_comes_first(described, tmp_path, capsys, monkeypatch):
    parts, params = described
    monkeypatch.setattr("vidlatent.plan.cascade.describe_parts", lambda config: described)
    rows = estimate_plans(config_of(), parse_topology("h100:1"), parts, params)
    peaks = {row["plan"]: row["peak"] for row in rows}
    between = (peaks["swap"] + peaks["keep"]) / 2 / 2**30
    target = tmp_path / "plan.json"
    config = config_of(plan__memory_gib=between)
    assert plan(config, tmp_path, "h100:1,v6e:1x1", str(target)) == 0
    first = capsys.readouterr().out.splitlines()[:2]
    assert [line.split(" with")[0] for line in first] == [
        "h100:1: swap fits",
        "v6e:1x1: swap fits",
    ]
    stored = json.loads(target.read_text())
    assert stored["estimate"] and [row["fits"] for row in stored["plans"]].count(True) == 2
    # No rate from the host is published for it.
    assert {row["copy_seconds"] for row in stored["plans"] if row["topology"] == "v6e:1x1"} >= {
        None
    }
    config = config_of(plan__memory_gib=peaks["swap"] / 2**31)
    assert plan(config, tmp_path, "h100:1", str(target)) == 3
    assert "no plan fits; the least is" in capsys.readouterr().out


@pytest.mark.slow
def test_the_published_cascade():
    """Both transformers and UMT5 do not fit 80 GB together; one after another they do."""
    keys = {"plan.what": "cascade", "plan.tokenizer": "fsae:lite"}
    config = load("fsvideo_refiner:paper,stage=target", keys)
    parts, params = describe_parts(config)
    assert (parts["base"].evaluations, parts["refiner"].evaluations) == (60, 8)
    # Section I.3 of the specification: 2.91 and 1.82 PFLOP.
    assert parts["base"].flops == pytest.approx(2.91e15, rel=0.03)
    assert parts["refiner"].flops == pytest.approx(1.82e15, rel=0.03)
    sizes = {name: count_tree_bytes(tree) / 1e9 for name, tree in params.items()}
    assert sizes["base"] == sizes["refiner"] == pytest.approx(32.8, rel=0.03)
    assert sizes["text"] == pytest.approx(11.4, rel=0.03)
    fits = {
        (name, row["plan"]): row["fits"]
        for name in ("h100:1", "h200:1")
        for row in estimate_plans(config, parse_topology(name), parts, params)
    }
    assert fits == {
        ("h100:1", "keep"): False,
        ("h100:1", "swap"): True,
        ("h200:1", "keep"): True,
        ("h200:1", "swap"): True,
    }


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(VidlatentError, match="config.plan.tokenizer is empty.*fsae:lite"):
        plan(config_of(plan__tokenizer=""), tmp_path, "h100:1", "")


def test_only_refiners_have_cascades(tmp_path):
    config = load("fsvideo_dit:demo", {"plan.what": "cascade"})
    with pytest.raises(VidlatentError, match="of the task 'generator'.*fsvideo_refiner"):
        plan(config, tmp_path, "h100:1", "")
