"""``s3://`` on a server of moto: small files, videos, latent sets, growing files.

moto and s3fs pin libraries that others pin as well, so a slow test runs the others in an
environment of its own; where both are installed they run by themselves.
"""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import fsspec
import numpy as np
import pytest
from etils.epath import backend

from tests.data.test_latent_set import SPEC, arrays_of, window_of, write_set
from vidlatent import files, paths
from vidlatent.data.latent_set import read_header
from vidlatent.data.sources import folder
from vidlatent.data.sources.latents import LatentSource
from vidlatent.media.write import write_video
from vidlatent.report.writers import make_writers, read_metrics

ROOT = Path(__file__).parents[1]
BUCKET = "s3://vidlatent-test"


@pytest.fixture(scope="module")
def address():
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    pytest.importorskip("s3fs")
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(address, monkeypatch, tmp_path):
    names = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    backend.fsspec_backend._get_filesystem.cache_clear()
    fsspec.filesystem("s3").clear_instance_cache()
    system = fsspec.filesystem("s3")
    if not system.exists(BUCKET):
        system.mkdir(BUCKET)
    yield BUCKET
    backend.fsspec_backend._get_filesystem.cache_clear()


def test_small_files_and_downloads(bucket):
    files.write_json(f"{bucket}/a/scores.json", {"psnr": 30.5})
    assert files.read_json(f"{bucket}/a/scores.json", "") == {"psnr": 30.5}
    with files.replace_file(f"{bucket}/a/x.npz") as file:
        np.savez(file, x=np.arange(3))
    assert files.read_npz(f"{bucket}/a/x.npz", "")["x"].tolist() == [0, 1, 2]
    paths.as_path(f"{bucket}/a.bin").write_bytes(b"one")
    with open(paths.local_copy(f"{bucket}/a.bin"), "rb") as file:
        assert file.read() == b"one"


def test_curves_go_on(bucket):
    for step in (1, 2):
        writers = make_writers(f"{bucket}/run", tensorboard=True)
        writers.write_scalars(step, {"loss": 1.0 / step})
        writers.close()
    assert read_metrics(f"{bucket}/run/metrics.jsonl") == {"loss": ([1, 2], [1.0, 0.5])}
    assert paths.list_files(f"{bucket}/run/tensorboard")


def test_videos_are_data(bucket):
    for name in ("b.mp4", "x/a.mp4"):
        write_video(f"{bucket}/clips/{name}", np.full((5, 16, 16, 3), 99, np.uint8), 8)
    source = folder.make(types.SimpleNamespace(path=f"{bucket}/clips", labels=""), 0)
    assert [entry.name for entry in source.entries()] == ["b.mp4", "x/a.mp4"]
    assert all(entry.stamp for entry in source.entries())
    with open(source.media("x/a.mp4"), "rb") as file:
        assert file.read(12)[4:8] == b"ftyp"


def test_a_latent_set_is_read_where_it_lies(bucket, tmp_path):
    local = write_set(tmp_path / "set")
    for file in local.iterdir():
        paths.as_path(f"{bucket}/set/{file.name}").write_bytes(file.read_bytes())
    assert read_header(f"{bucket}/set").spec == SPEC
    source = LatentSource(f"{bucket}/set")
    assert len(source.entries()) == 14
    window = window_of(3)
    (found,) = [w for w in source.windows if (w.clip, w.size) == (window.clip, window.size)]
    arrays = source.read_arrays(found.name)
    np.testing.assert_array_equal(arrays["latent"], arrays_of(window)["latent"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("moto") is not None, reason="runs by itself")
def test_all_of_it_in_an_environment_of_its_own(tmp_path):
    uv, python = Path(sys.executable).with_name("uv"), tmp_path / "env" / "bin" / "python"
    install = [uv, "pip", "install", "--quiet", "--python", python]
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "env"],
        [*install, f"{ROOT}[s3]", "moto[server]>=5,<6", "pytest>=8,<10"],
        [uv, "pip", "uninstall", "--quiet", "--python", python, "vidlatent"],
    ):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-2000:]
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_s3.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout[-3000:]
