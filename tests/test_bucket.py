"""A whole chain in a bucket: train, go on, evaluate, encode, train on latents, sample."""

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from tests.helpers.buckets import BUCKET, serve_bucket

ROOT = Path(__file__).parents[1]
DATA = (
    "--config.data.source=synthetic",
    "--config.data.synthetic.kind=shapes",
    "--config.data.synthetic.clips=16",
    "--config.data.flip=false",
)
SIZE = "--config.data.buckets=((5,32,32,2),)"
OFTEN = ("--config.eval.every=0", "--config.checkpoint.every=1")


@pytest.fixture(scope="module")
def environment():
    with serve_bucket() as found:
        yield {**os.environ, **found, "PYTHONPATH": str(ROOT)}


def run(environment, cwd, *flags, status=0):
    done = subprocess.run(
        [sys.executable, "-m", "vidlatent.main", *flags],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr[-3000:]
    return done.stderr


def names(environment, monkeypatch):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    system = fsspec.filesystem("gcs", skip_instance_cache=True)
    return {name.partition("/")[2] for name in system.find(BUCKET)}


@pytest.mark.slow
def test_a_chain_in_a_bucket(environment, tmp_path, monkeypatch):
    tokenizer, generator, latents = (f"{BUCKET}/{name}" for name in ("tok", "gen", "set"))
    train = (f"--config={ROOT}/configs/fsae.py", f"--workdir={tokenizer}", *DATA, SIZE, *OFTEN)
    run(environment, tmp_path, *train, "--config.train.steps=1")
    said = run(environment, tmp_path, *train, "--config.train.steps=2")
    assert "step 1" in said  # from which it went on
    run(environment, tmp_path, "--mode=eval", f"--workdir={tokenizer}")
    run(environment, tmp_path, "--mode=encode", f"--workdir={tokenizer}", f"--output={latents}")
    keys = ("generator.depth=2", "generator.width=32", "train.steps=2", "sampler.steps=2")
    run(
        environment,
        tmp_path,
        f"--config={ROOT}/configs/latte.py",
        f"--workdir={generator}",
        f"--config.data.path={latents}",
        f"--config.tokenizer.path={tokenizer}",
        SIZE,
        *OFTEN,
        *(f"--config.{key}" for key in keys),
    )
    run(environment, tmp_path, "--mode=sample", f"--workdir={generator}", "--prompt=0")
    assert not list(tmp_path.iterdir())  # no folder that is called gs:
    found = names(environment, monkeypatch)
    for name in (
        "tok/config.json",
        "tok/log.txt",
        "tok/metrics.jsonl",
        "tok/checkpoints/2/scores.json",
        "tok/eval/step_2/report.html",
        "set/header.json",
        "gen/samples/step_2.png",
    ):
        assert name in found
    assert any(name.startswith("tok/tensorboard/") for name in found)
    assert any(name.startswith("gen/samples/step_2/0001") and ".mp4" in name for name in found)
    assert not [name for name in found if name.endswith(".partial")]
