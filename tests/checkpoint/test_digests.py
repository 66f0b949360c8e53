"""Digests of arrays: what is listed, what is compared, what is noticed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vidlatent.checkpoint import digests


def trees():
    rng = np.random.default_rng(0)
    params = {f"layer{i}": {"kernel": jnp.asarray(rng.normal(size=(8, 16)))} for i in range(6)}
    params["half"] = jnp.asarray(rng.normal(size=(3,)), jnp.bfloat16)
    return {"params": params, "extra": {"step": jnp.int32(3)}}


def flat(items):
    return digests.leaf_paths(items)


def changed(items, name, index=0):
    """The same arrays but for the lowest bit of one number."""
    arrays = flat(items)
    raw = np.array(arrays[name])
    raw.reshape(-1).view(np.uint8)[index] ^= 1
    return {**arrays, name: raw}


def test_known_value():
    manifest = digests.make_manifest(1, {"x": {"y": jnp.zeros((), jnp.int32)}}, meta={})
    assert manifest.arrays["x/y"].shards == {"": 0x2144DF1C}  # CRC-32 of four zero bytes.


def test_every_change_is_noticed_and_named():
    items = trees()
    records = digests.make_manifest(1, items, {}).arrays
    assert digests.find_mismatched_arrays(flat(items), records) == []
    for name, record in records.items():
        for index in {0, record.nbytes - 1}:
            assert digests.find_mismatched_arrays(changed(items, name, index), records) == [name]


def test_groups_give_the_same_answer(monkeypatch):
    monkeypatch.setattr(digests, "_GROUP_BYTES", 1000)
    items = trees()
    records = digests.make_manifest(1, items, {}).arrays
    assert digests.find_mismatched_arrays(changed(items, "params/half"), records) == ["params/half"]


def test_a_sample_is_of_the_asked_size_and_changes_with_the_seed():
    items = trees()
    records = digests.make_manifest(1, items, {}).arrays
    hurt = {}
    for name in records:
        hurt[name] = changed(items, name)[name]
    found = [
        digests.find_mismatched_arrays(hurt, records, sample_bytes=1024, seed=s) for s in range(30)
    ]
    assert all(2 <= len(names) <= 4 for names in found)
    assert set().union(*found) == set(records)


@pytest.mark.parametrize("spec", [("x",), (None, "x"), ()])
def test_shards_are_listed_once_and_any_layout_can_be_checked(spec):
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices")
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    plain = {"p": {"w": jnp.asarray(np.random.default_rng(0).normal(size=(8, 12)))}}
    placed = jax.device_put(plain, NamedSharding(mesh, PartitionSpec(*spec)))
    records = digests.make_manifest(1, placed, {}).arrays
    assert len(records["p/w"].shards) == (4 if spec else 1)
    for form in (plain, placed, jax.tree.map(np.asarray, plain)):
        assert digests.find_mismatched_arrays(flat(form), records) == []
    assert digests.find_mismatched_arrays(changed(plain, "p/w", 300), records) == ["p/w"]


def test_lists_are_written_and_read_back(tmp_path):
    folder = epath.Path(tmp_path)
    manifest = digests.make_manifest(5, trees(), {"step": 5})
    digests.write_manifest(folder, manifest)
    assert digests.read_manifest(folder) == manifest
    assert set(manifest.item("extra")) == {"step"}


@pytest.mark.parametrize("fault", ["missing", "empty", "edited", "format", "uncovered", "part"])
def test_faulty_lists_are_refused(tmp_path, fault):
    folder = epath.Path(tmp_path)
    manifest = digests.make_manifest(5, trees(), {})
    if fault == "uncovered":
        manifest.arrays["params/half"] = dataclasses.replace(
            manifest.arrays["params/half"], shards={}
        )
    digests.write_manifest(folder, manifest)
    path = folder / "process_0-of-1.json"
    if fault == "missing":
        path.unlink()
    if fault == "empty":
        path.write_text("")
    if fault == "edited":
        path.write_text(path.read_text().replace('"step": 5', '"step": 6'))
    if fault == "format":
        body = {**json.loads(path.read_text())["body"], "format": 99}
        path.write_text(json.dumps({"crc": digests.json_crc(body), "body": body}))
    if fault == "part":
        path.rename(folder / "process_0-of-2.json")
    with pytest.raises((ValueError, KeyError)):
        digests.read_manifest(folder)
