"""``--mode=convert`` on files: nothing is replaced unasked, and a failure leaves nothing behind."""

import errno
import os

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from vidlatent import config as configs
from vidlatent.checkpoint import digests
from vidlatent.convert.run import convert
from vidlatent.errors import VidlatentError
from vidlatent.models.load import abstract_params, model_of
from vidlatent.weights.files import save_params

NAMES = ("from", "to", "start", "verify")
OPTIONS = {**dict.fromkeys(NAMES, ""), "from_table": "auto", "to_table": "auto", "step": -1}


@pytest.fixture(scope="module")
def config():
    return configs.load("tests/tiny.py")


@pytest.fixture
def source(config, tmp_path):
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_params(model_of(config)))
    save_params(tmp_path / "source.safetensors", zeros, family=config.model.name)
    return tmp_path / "source.safetensors"


def run(config, source, target, **options):
    options = {"from": str(source), "to": str(target), **options}
    return convert(config, source.parent / "nowhere", **{**OPTIONS, **options})


def test_a_file_is_replaced_only_if_that_is_asked_for(config, source, tmp_path):
    target = tmp_path / "target.safetensors"
    target.write_bytes(b"precious")
    with pytest.raises(VidlatentError, match="exists already: .*--overwrite"):
        run(config, source, target, overwrite=False)
    assert target.read_bytes() == b"precious"
    assert run(config, source, target, overwrite=True) == 0
    assert target.stat().st_size > 1000


def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(config, source, tmp_path, monkeypatch):
    target = tmp_path / "target.safetensors"
    target.write_bytes(b"precious")

    def fail(arrays, path, metadata):
        with open(path, "wb") as file:
            file.write(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(VidlatentError, match=r"cannot be written \(.*No space left"):
        run(config, source, target, overwrite=True)
    assert target.read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["source.safetensors", "target.safetensors"]


def test_a_workdir_appears_whole_or_not_at_all(config, source, tmp_path, monkeypatch):
    def fail(folder, manifest):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(digests, "write_manifest", fail)
        with pytest.raises(VidlatentError, match="No space left"):
            run(config, source, tmp_path / "run")
    assert os.listdir(tmp_path) == ["source.safetensors"]
    assert run(config, source, tmp_path / "run") == 0
    assert sorted(os.listdir(tmp_path)) == ["run", "source.safetensors"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("precious")
    with pytest.raises(VidlatentError, match="is not empty"):
        run(config, source, tmp_path / "other")
    with pytest.raises(VidlatentError, match="holds a run already"):
        run(config, source, tmp_path / "run", overwrite=True)
