"""What a training step holds, by shapes: against the arrays themselves, and what is changed."""

import json
from pathlib import Path

import jax
import pytest

from tests.plan.test_distill import DIT, TINY
from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.plan.hardware import GIB, parse_topology
from vidlatent.plan.run import plan
from vidlatent.plan.state import count_state, find_change

BUCKET = (5, 16, 16, 8)


def config_of(name="fsvideo_dit:demo", **keys):
    keys = {**{f"generator__{name}": value for name, value in DIT.items()}, **keys}
    keys |= {"data__buckets": f"({BUCKET},)", "plan__tokenizer": TINY, "plan__what": "state"}
    keys |= {"plan__upsampler": "fsvideo_upsampler:demo", "precision__compute": "bfloat16"}
    return load(name, {key.replace("__", "."): str(value) for key, value in keys.items()})


def test_one_device_holds_every_array():
    row = count_state(config_of(), parse_topology("h100:1"), BUCKET)
    parts = row["parts"]
    assert parts["averaged parameters"] == parts["parameters"] == parts["gradients"]
    # Two moments and a count.
    assert parts["optimizer"] == 2 * parts["parameters"] + 4
    assert row["total"] == sum(parts.values()) and row["fits"]


def test_several_devices_hold_a_share_and_share_a_clip_where_they_must():
    one, many, most = (
        count_state(config_of(), parse_topology(f"h100:{n}"), BUCKET) for n in (1, 4, 16)
    )
    assert many["mesh"]["fsdp"] == 4
    assert one["parts"]["optimizer"] / 4 < many["parts"]["optimizer"] < one["parts"]["optimizer"]
    # A batch of 8 does not spread over 16.
    assert (most["mesh"]["fsdp"], most["mesh"]["context"]) == (8, 2)
    with pytest.raises(VidlatentError, match="topology=h100:3: a batch of 8 does not spread"):
        count_state(config_of(), parse_topology("h100:3"), BUCKET)


def test_where_it_does_not_fit_adapters_come_first_and_then_more_devices():
    config, where = config_of(), parse_topology("h100:2")
    as_it_is = count_state(config, where, BUCKET)
    adapted = count_state(config, where, BUCKET, {"optim.lora.rank": 128})
    # Of rank 16, since the model is 16 wide: no smaller, and a frozen copy besides.
    assert "frozen networks" in adapted["parts"] and "frozen networks" not in as_it_is["parts"]
    larger = count_state(config, parse_topology("h100:4"), BUCKET)["total"]
    limit = 1.001 * larger / GIB
    assert larger < 0.9 * as_it_is["total"]
    rows = find_change(config_of(plan__memory_gib=limit), where, BUCKET)
    assert [row["fits"] for row in rows] == [False, True]
    assert rows[0]["changes"] == {"optim.lora.rank": 128}
    assert rows[1]["changes"] == {"topology": "h100:4"} and rows[1]["total"] == larger


def test_more_devices_are_tried_while_the_batch_spreads():
    rows = find_change(config_of(plan__memory_gib=1e-6), parse_topology("h100:16"), BUCKET)
    tried = [row["changes"].get("topology") for row in rows]
    assert tried == [None, "h100:32", "h100:64", "h100:128"]  # 16 devices to a clip at most
    assert not any(row["fits"] for row in rows)


def test_the_mode_writes_a_table_of_all_machines(tmp_path, capsys):
    whole = count_state(config_of(), parse_topology("h100:1"), BUCKET)["total"]
    config = config_of(plan__memory_gib=0.9 * whole / GIB)
    assert plan(config, tmp_path, "h100:1,v5p:1x1x1", "") == 3
    text = capsys.readouterr().out
    assert "nothing was compiled or run, and activations are not counted" in text
    assert "--config.optim.lora.rank=128" in text and "--topology=v5p:1x1x2" in text
    rows = json.loads((tmp_path / "plan" / "state.json").read_text())["rows"]
    assert {row["topology"] for row in rows if not row["changes"]} == {"h100:1", "v5p:1x1x1"}
    assert plan(config_of(), tmp_path, "h100:1", str(tmp_path / "mine.json")) == 0
    assert Path(tmp_path / "mine.json").is_file()


def test_networks_beside_the_model_are_counted():
    """The teacher of halved steps is part of the state, at rest; it has no gradients."""
    config = config_of("fsvideo_dit:demo,stage=progressive")
    parts = count_state(config, parse_topology("h100:1"), BUCKET)["parts"]
    assert 0 < parts["networks beside it"] < parts["parameters"]
    assert parts["gradients"] == parts["parameters"]
    assert jax.device_count() == 8  # and none of them was asked
