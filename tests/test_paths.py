"""Paths in object stores: a bucket that lives in memory stands for one of a cloud."""

import functools
import os
import sys
import time
from types import SimpleNamespace

import fsspec.registry  # noqa: F401 (below, by its name)
import numpy as np
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from vidlatent import files, paths
from vidlatent.checkpoint.manager import Checkpointer
from vidlatent.data.sources import folder
from vidlatent.errors import VidlatentError
from vidlatent.media.write import write_video
from vidlatent.report.writers import make_writers, read_metrics

_options = functools.partial(SimpleNamespace, labels="")


class Bucket(MemoryFileSystem):
    """gs:// in memory."""

    protocol = ("gs", "gcs")
    store: dict = {}
    pseudo_dirs: list = [""]

    @classmethod
    def _strip_protocol(cls, path):
        path = str(path).removeprefix("gs://").removeprefix("gcs://").strip("/")
        return f"/{path}" if path else ""

    def unstrip_protocol(self, name):
        return "gs://" + name.strip("/")


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    known = sys.modules["fsspec.registry"]._registry
    for name in Bucket.protocol:
        monkeypatch.setitem(known, name, Bucket)
    backend.fsspec_backend._get_filesystem.cache_clear()
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield "gs://bucket"
    backend.fsspec_backend._get_filesystem.cache_clear()


def test_local_paths_are_pathlibs(tmp_path):
    path = paths.as_path(tmp_path, "a", "b.txt")
    assert path == tmp_path / "a" / "b.txt"
    assert paths.local_copy(path) == str(path)
    assert not paths.is_remote(path)


def test_paths_of_a_bucket_keep_their_address(bucket):
    path = paths.as_path(bucket, "runs") / "a" / "config.json"
    assert os.fspath(path) == str(path) == "gs://bucket/runs/a/config.json"
    assert paths.absolute("gs://bucket/runs/") == "gs://bucket/runs"
    assert paths.same_place("gs://bucket/a/", "gs://bucket/a")
    assert not paths.same_place("gs://bucket/a", "a")


def test_unknown_schemes_and_missing_libraries_are_said(monkeypatch):
    with pytest.raises(VidlatentError, match=r"ftp://.* cannot be read or written.*gs://, s3://"):
        paths.as_path("ftp://host/a")
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
    with pytest.raises(VidlatentError, match=r"pip install 'vidlatent\[s3\]'"):
        paths.as_path("s3://bucket/a")


def test_small_files_are_written_and_read(bucket):
    name = f"{bucket}/a/scores.json"
    files.write_json(name, {"psnr": 30.5})
    assert files.read_json(name, "") == {"psnr": 30.5}
    with files.replace_file(f"{bucket}/a/x.npz") as file:
        np.savez(file, x=np.arange(3))
    assert files.read_npz(f"{bucket}/a/x.npz", "")["x"].tolist() == [0, 1, 2]
    with pytest.raises(VidlatentError, match="there is no file gs://bucket/a/y.npz: fetch it"):
        files.read_npz(f"{bucket}/a/y.npz", "fetch it")


def test_a_failed_write_leaves_the_object(bucket):
    name = f"{bucket}/a.txt"
    files.write_text(name, "whole")
    with pytest.raises(RuntimeError), files.replace_file(name) as file:
        file.write(b"ha")
        raise RuntimeError
    assert paths.as_path(name).read_text() == "whole"


def test_downloads_are_kept_until_the_object_changes(bucket):
    name = f"{bucket}/a.bin"
    paths.as_path(name).write_bytes(b"one")
    first = paths.local_copy(name)
    assert paths.local_copy(name) == first
    time.sleep(0.01)
    paths.as_path(name).write_bytes(b"two")
    with open(paths.local_copy(name), "rb") as file:
        assert file.read() == b"two"
    with pytest.raises(OSError, match="b.bin"):
        paths.local_copy(f"{bucket}/b.bin")


def test_downloads_make_room_by_age(bucket, monkeypatch):
    monkeypatch.setenv("VIDLATENT_DOWNLOADS_GIB", str(250 / 2**30))
    kept = []
    for number in range(3):
        paths.as_path(f"{bucket}/{number}").write_bytes(bytes(100))
        kept.append(paths.local_copy(f"{bucket}/{number}"))
        os.utime(kept[-1], (number, number))
    assert [os.path.exists(name) for name in kept] == [False, True, True]


def test_a_growing_file_goes_on_where_it_was(bucket):
    name = f"{bucket}/log.txt"
    for line in ("one\n", "two\n"):
        mirror = paths.Mirror(name)
        with mirror.local.open("a") as file:
            file.write(line)
        mirror.close()
    assert paths.as_path(name).read_text() == "one\ntwo\n"


def test_a_failed_upload_is_tried_again(bucket, monkeypatch):
    mirror = paths.Mirror(f"{bucket}/log.txt")
    mirror.local.write_text("line\n")
    with monkeypatch.context() as broken:
        broken.setattr(paths, "_upload", lambda *_: (_ for _ in ()).throw(OSError("gone")))
        mirror.sync()
    assert not mirror.path.exists()
    mirror.close()
    assert mirror.path.read_text() == "line\n"


def test_metrics_and_event_files(bucket):
    for step in (1, 2):
        writers = make_writers(f"{bucket}/run", tensorboard=True)
        writers.write_scalars(step, {"loss": 1.0 / step})
        writers.close()
    assert read_metrics(f"{bucket}/run/metrics.jsonl") == {"loss": ([1, 2], [1.0, 0.5])}
    events = paths.list_files(f"{bucket}/run/tensorboard")
    assert events and all(size > 0 for size, _ in events.values())


def test_videos_of_a_bucket_are_data(bucket):
    for name in ("b.mp4", "x/a.mp4", ".hidden.mp4"):
        write_video(f"{bucket}/clips/{name}", np.full((5, 16, 16, 3), 99, np.uint8), 8)
    files.write_text(f"{bucket}/clips/b.txt", "a grey square")
    source = folder.make(_options(path=f"{bucket}/clips"), 0)
    assert [entry.name for entry in source.entries()] == ["b.mp4", "x/a.mp4"]
    assert source.describe("b.mp4") == ("", "a grey square")
    assert source.describe("x/a.mp4") == ("", "")
    assert open(source.media("x/a.mp4"), "rb").read(12)[4:8] == b"ftyp"
    files.write_text(f"{bucket}/clips/list.txt", "b.mp4\nmissing.mp4\n")
    listed = folder.make(_options(path=f"{bucket}/clips/list.txt"), 0)
    assert [entry.name for entry in listed.entries()] == ["b.mp4", "missing.mp4"]


def test_a_failed_video_leaves_nothing(bucket):
    def frames():
        yield np.zeros((16, 16, 3), np.uint8)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_video(f"{bucket}/a.mp4", frames(), 8)
    assert not paths.as_path(f"{bucket}/a.mp4").exists()


def test_checkpoints_are_not_written_to_s3():
    with pytest.raises(VidlatentError, match=r"s3://bucket/run: Orbax .*not to s3://"):
        Checkpointer("s3://bucket/run", every=1)
