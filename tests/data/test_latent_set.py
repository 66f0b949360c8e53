"""The source ``latents``: records, headers, and the loader's stream of them."""

import dataclasses
import json
import os
import pickle
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors

from vidlatent.data import make_index, make_loader
from vidlatent.data.latent_set import Header, Shard, Window, pack, read_header, unpack
from vidlatent.data.sources.latents import LatentSource
from vidlatent.encode.shards import ShardWriter, merge_shards
from vidlatent.errors import VidlatentError
from vidlatent.spec import FrameRule, LatentSpec

SPEC = LatentSpec("toy", 3, 4, 8, 8, FrameRule(1, 4))
LABELS = ("cat", "dog")
BUCKETS = ((5, 16, 24, 4), (1, 16, 16, 2))


def window_of(number, size=(5, 16, 24), **changes):
    label = LABELS[number % 2] if number % 5 else ""
    fields = dict(clip=f"c{number:02d}.mp4", first=2 * number, start=number / 5, fps=10.0)
    fields |= dict(zip(("frames", "height", "width"), size, strict=True))
    fields |= dict(label=label, caption=f"clip {number}", group=f"c{number:02d}", part="")
    return Window(**fields | changes)


def arrays_of(window, text=True):
    rng = np.random.default_rng([window.first, window.frames])
    shape = SPEC.latent_shape(window.size)
    arrays = {"latent": rng.normal(2, 3, shape).astype(np.float16)}
    arrays["content"] = rng.integers(0, 255, (1, *window.size[1:], 3), dtype=np.uint8)
    if text:
        arrays["text"] = rng.normal(size=(window.first % 4, 6)).astype(ml_dtypes.bfloat16)
    return arrays


def write_set(folder, shards=3, windows=14):
    os.makedirs(folder)
    rows = [window_of(i) for i in range(windows - 4)]
    rows += [window_of(i, (1, 16, 16), fps=0.0) for i in range(4)]
    files, done = [f"part-{k:05d}-of-{shards:05d}.array_record" for k in range(shards)], []
    for number, file in enumerate(files):
        with ShardWriter(folder / file, SPEC) as writer:
            for window in rows[number::shards]:
                arrays = arrays_of(window)
                writer.add(window, arrays, arrays["latent"].astype(np.float32))
            done.append(writer.publish())
    about = dict(dtype="float16", label_names=LABELS, tokenizer="t", step=7, weights="w", source={})
    merge_shards(folder, files, done, SPEC, [("x.mp4", "empty", "0 bytes")], 8, **about)
    return folder


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("sets") / "set")


def options_of(tools, latents, **changes):
    return tools.options(source="latents", path=str(latents), buckets=BUCKETS, **changes)


def read(tools, options, steps, **arguments):
    arguments = dict(split="train", rule=tools.rule, seed=5, spec=SPEC) | arguments
    with make_loader(options, **arguments) as loader:
        return [next(loader) for _ in range(steps)]


def assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        assert set(one) == set(other) and one["caption"] == other["caption"]
        for key in set(one) - {"caption", "skipped"}:
            np.testing.assert_array_equal(one[key], other[key])


def test_records_are_safetensors_and_come_back():
    window = window_of(3, draw=2)
    arrays = arrays_of(window) | {
        "numbers": np.arange(3, dtype=np.int32),
        "none": np.zeros((0, 4), "f4"),
    }
    record = pack(arrays, window)
    assert record == pack(arrays, window)
    back, row = unpack(record)
    assert row == window
    others = dict(safetensors.deserialize(record))
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype and back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)
        assert others[name]["shape"] == list(array.shape)
        assert bytes(others[name]["data"]) == array.tobytes()
    for damaged in (b"", record[:40], b"\x08" + bytes(7) + b"{}      "):
        with pytest.raises(ValueError):
            unpack(damaged)


def test_the_header_says_what_is_in_the_set(latents):
    header = read_header(latents)
    assert header.spec == SPEC and header.label_names == LABELS and header.fps == 10.0
    assert (header.windows, header.clips, header.step) == (14, 10, 7)
    assert [tuple(row) for row in header.bad] == [("x.mp4", "empty", "0 bytes")]
    everything = np.concatenate(
        [
            arrays_of(window)["latent"].astype(np.float64).reshape(-1, 3)
            for window in LatentSource(str(latents)).windows
        ]
    )
    assert header.n == len(everything)
    np.testing.assert_allclose(header.mean, everything.mean(0), rtol=1e-12)
    np.testing.assert_allclose(header.std, everything.std(0), rtol=1e-12)
    sizes = {(row["frames"], row["height"], row["width"]): row for row in header.sizes}
    assert sizes[5, 16, 24]["windows"] == 10
    assert sizes[5, 16, 24]["arrays"]["latent"] == {"dtype": "float16", "shape": [2, 2, 3, 3]}
    assert sizes[1, 16, 16]["arrays"]["text"] == {"dtype": "bfloat16", "shape": [8, 6]}
    again = Header.from_json(json.loads(json.dumps(header.to_json())), "here")
    assert again.to_json() == header.to_json()


def test_batches_are_as_described(tools, latents):
    source = LatentSource(str(latents))
    options = options_of(tools, latents, validation_share=0.0)
    with make_loader(options, split="train", rule=tools.rule, seed=5, spec=SPEC) as loader:
        assert loader.labels == LABELS
        for _ in range(6):
            batch = next(loader)
            count = len(batch["mask"])
            shape = batch["latent"].shape
            assert shape in ((4, 2, 2, 3, 3), (2, 1, 2, 2, 3)) and "video" not in batch
            assert batch["latent"].dtype == batch["text"].dtype == np.float32
            assert batch["text"].shape == (count, 8, 6) and batch["content"].dtype == np.uint8
            assert batch["text_length"].dtype == batch["label"].dtype == np.int32
            for i, row in enumerate(batch["clip"]):
                window = source.window(loader.index[row].path)
                wanted = arrays_of(window)
                np.testing.assert_array_equal(batch["latent"][i], wanted["latent"])
                np.testing.assert_array_equal(batch["content"][i], wanted["content"])
                length = len(wanted["text"])
                assert batch["text_length"][i] == length
                np.testing.assert_array_equal(batch["text"][i, :length], wanted["text"])
                assert not batch["text"][i, length:].any()
                assert batch["start"][i] == np.float32(window.start)
                assert batch["caption"][i] == window.caption
                number = batch["label"][i]
                assert (LABELS[number] if number >= 0 else "") == window.label


def test_the_stream_is_that_of_its_step(tools, latents):
    options = options_of(tools, latents)
    straight = read(tools, options, 9)
    for change in ({"num_workers": 1}, {"read_threads": 0, "prefetch": 1}, {"flip": False}):
        assert_same(straight, read(tools, options_of(tools, latents, **change), 9))
    assert_same(straight[6:], read(tools, options, 3, start_step=6))
    far = 1_000_001
    assert_same(read(tools, options, 1, start_step=far), read(tools, options, 1, start_step=far))
    parts = [read(tools, options, 4, process_index=p, process_count=2) for p in range(2)]
    for step, batch in enumerate(straight[:4]):
        together = {row.tobytes() for part in parts for row in part[step]["latent"]}
        assert together == {row.tobytes() for row in batch["latent"]}


def test_validation_is_every_window_once_and_of_other_clips(tools, latents):
    options = options_of(tools, latents, validation_share=0.4)
    names = {}
    for split in ("train", "validation", "whole"):
        with make_loader(options, split=split, rule=tools.rule, seed=5) as loader:
            names[split] = [clip.path for clip in loader.index]
            if split == "train":
                continue
            batches = list(loader)
            seen = [loader.index[row].path for b in batches for row in b["clip"] if row >= 0]
            assert sorted(seen) == sorted(names[split])
            for batch in batches:
                assert not batch["latent"][batch["mask"] == 0].any()
                assert (batch["label"][batch["mask"] == 0] == -1).all()
    assert len(names["whole"]) == 14
    # A clip's video and its image are on the same side of the split.
    clips = [{name.partition(":")[0] for name in names[split]} for split in ("train", "validation")]
    assert clips[0] and clips[1] and not clips[0] & clips[1]


def test_foreign_and_stale_sets_are_refused(tools, latents, tmp_path):
    options = options_of(tools, latents)
    foreign = dataclasses.replace(SPEC, scale=2.0)
    with pytest.raises(VidlatentError, match="made by toy .* not by toy .*scale 2"):
        read(tools, options, 1, spec=foreign)
    read_header(latents).check(SPEC)
    stored = json.loads((latents / "header.json").read_text())
    stored["spec"]["channels"] = 4
    for content, message in (
        (json.dumps(stored), "is stale"),
        (json.dumps({**stored, "format": 9}), "is stale"),
        (json.dumps({"format": 1}), "no header of a latent data set"),
        ("[1", "damaged"),
        ("[1]", "damaged"),
    ):
        (tmp_path / "header.json").write_text(content)
        with pytest.raises(VidlatentError, match=message):
            read_header(tmp_path)
    os.remove(tmp_path / "header.json")
    with pytest.raises(VidlatentError, match="no latent data set"):
        read_header(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(VidlatentError, match="not finished"):
        read_header(tmp_path)


def test_sizes_that_are_not_stored(tools, latents):
    options = options_of(tools, latents) | {"buckets": ((5, 16, 16, 4),)}
    with pytest.raises(VidlatentError, match="5x16x16, but .* has 1x16x16, 5x16x24 "):
        read(tools, options, 1)
    with pytest.raises(VidlatentError, match="data.path is empty"):
        make_index(options | {"path": ""})


def test_damage_is_named(tools, tmp_path):
    folder = write_set(tmp_path / "set")
    shard = folder / "part-00001-of-00003.array_record"
    content = shard.read_bytes()
    rows = Shard.load(str(shard)).windows
    # Half of a shard is overwritten, so its records are skipped one by one.
    middle = len(content) // 2
    shard.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    index = make_index(options_of(tools, folder, verify="decode"))
    assert index.bad and {bad.reason for bad in index.bad} == {"corrupt"}
    assert {bad.path for bad in index.bad} <= {row.name for row in rows}
    # The same damage, found while reading, counts as bad clips.
    options = options_of(tools, folder, verify="header", validation_share=0.0)
    with make_loader(options, split="train", rule=tools.rule, seed=0) as loader:
        batches = [next(loader) for _ in range(8)]
        assert loader.report.counts == {"corrupt": len(index.bad)}
    assert all(batch["mask"].all() for batch in batches)
    shard.write_bytes(content[:middle])
    with pytest.raises(VidlatentError, match="was cut off"):
        LatentSource(str(folder))
    shard.write_bytes(content)
    shard.with_suffix(".json").write_text("{}")
    with pytest.raises(VidlatentError, match="rows beside"):
        LatentSource(str(folder))


def test_fingerprints_tell_sets_apart(tools, latents, tmp_path):
    other = write_set(tmp_path / "set")
    header = json.loads((other / "header.json").read_text())
    prints = []
    for weights in ("w", "another training"):
        (other / "header.json").write_text(json.dumps(header | {"weights": weights}))
        with make_loader(
            options_of(tools, other), split="train", rule=tools.rule, seed=5
        ) as loader:
            prints.append(loader.fingerprint)
    with make_loader(options_of(tools, latents), split="train", rule=tools.rule, seed=5) as loader:
        assert prints[0] == loader.fingerprint != prints[1]


def test_the_source_travels_to_other_processes(latents):
    source = LatentSource(str(latents))
    name = source.windows[5].name
    before = source.read_arrays(name)
    after = pickle.loads(pickle.dumps(source)).read_arrays(name)
    for key, array in before.items():
        np.testing.assert_array_equal(array, after[key])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence(tmp_path):
    path = tmp_path / "part.array_record"
    with pytest.raises(VidlatentError, match="could not be written.*free some space"):
        with ShardWriter(path, SPEC) as writer:
            os.remove(writer._part)
            os.symlink("/dev/full", writer._part)
            writer._writer = type(writer._writer)(str(writer._part), "group_size:1")
            for number in range(3):
                arrays = arrays_of(window_of(number))
                writer.add(window_of(number), arrays, arrays["latent"])
            writer.publish()
    assert not list(tmp_path.iterdir())


def test_buckets_of_the_encoding_are_those_of_the_training(tools, latents, tmp_path, caplog):
    """A bucket that no clip was nearest to is left out; one that was not encoded is refused."""
    options = options_of(tools, latents) | {"buckets": ((5, 16, 32, 4), *BUCKETS)}
    with pytest.raises(VidlatentError, match="asks for 5x16x32, but the latent data set"):
        read(tools, options, 1)
    folder = tmp_path / "set"
    shutil.copytree(latents, folder)
    header = json.loads((folder / "header.json").read_text())
    header["source"]["buckets"] = [[5, 16, 24], [5, 16, 32], [1, 16, 16]]
    (folder / "header.json").write_text(json.dumps(header))
    batches = read(tools, options | {"path": str(folder)}, 4)
    assert {batch["latent"].shape[:1] for batch in batches} == {(4,), (2,)}
    assert "bucket 5x16x32: it is left out" in caplog.text
    with pytest.raises(VidlatentError, match="asks for 5x32x32, but the latent data set"):
        read(tools, options | {"path": str(folder), "buckets": ((5, 32, 32, 4), *BUCKETS)}, 1)


def test_few_shapes_leave_out_windows_of_the_others(tools, latents, caplog):
    options = options_of(tools, latents, max_shapes=1)
    with pytest.raises(VidlatentError, match="less than the 2 numbers of frames"):
        read(tools, options, 1)
    options["buckets"] = BUCKETS[1:]
    assert {batch["latent"].shape[0] for batch in read(tools, options, 2)} == {2}
