"""Faults injected into a run: what was computed is on disk, and one sentence says why."""

import errno
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from vidlatent.checkpoint import digests
from vidlatent.config import load, read
from vidlatent.data.loader import Loader
from vidlatent.errors import VidlatentError
from vidlatent.models.load import open_checkpoints
from vidlatent.train import hooks
from vidlatent.train.hooks import Evaluate
from vidlatent.train.loop import INTERRUPTED, train

TINY = Path(__file__).parent.parent / "tiny.py"

pytestmark = pytest.mark.usefixtures("one_device")


def tiny(**overrides):
    values = {
        "train.steps": "8",
        "train.log_every": "1",
        "eval.every": "0",
        "checkpoint.every": "4",
        "data.buckets": "((5, 16, 16, 2),)",
    }
    return load(str(TINY), values | {k.replace("__", "."): v for k, v in overrides.items()})


def saved(workdir):
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def fail_saves(monkeypatch, steps):
    """Saves of these steps fail in the background, as on a full disk."""
    write = digests.write_manifest

    def write_or_fail(folder, manifest):
        if manifest.step in steps:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(folder, manifest)

    monkeypatch.setattr(digests, "write_manifest", write_or_fail)


def test_a_save_that_failed_is_made_up_for_at_the_next_log_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(hooks, "_RETRY_SECONDS", 0.0)
    fail_saves(monkeypatch, {4})
    with caplog.at_level("INFO", logger="absl"):
        assert train(tiny(train__steps="12"), tmp_path) == 0
    assert caplog.text.count("It is tried again.") == 1
    assert re.search(r"Failed saving step 4 in .*No space left", caplog.text)
    assert saved(tmp_path)[-1] == 12
    assert open_checkpoints(read(tmp_path), tmp_path).latest() == 12


def test_a_second_failure_in_a_row_stops_the_run_and_names_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks, "_RETRY_SECONDS", 0.0)
    fail_saves(monkeypatch, set(range(5, 100)))
    with pytest.raises(VidlatentError, match="Failed saving step .* check free space"):
        train(tiny(train__steps="60"), tmp_path)
    assert saved(tmp_path) == [4]


def test_the_last_save_is_tried_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(hooks, "_RETRY_SECONDS", 0.0)
    write, failed = digests.write_manifest, []

    def fail_once(folder, manifest):
        if not failed:
            failed.append(manifest.step)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(folder, manifest)

    monkeypatch.setattr(digests, "write_manifest", fail_once)
    with caplog.at_level("INFO", logger="absl"):
        assert train(tiny(train__stop_at="3"), tmp_path) == INTERRUPTED
    assert failed == [3] and saved(tmp_path) == [3]
    assert "config.train.stop_at: saved step 3" in caplog.text


def test_a_step_is_on_disk_before_it_is_evaluated(tmp_path, monkeypatch):
    def fail(self, run):
        raise MemoryError

    monkeypatch.setattr(Evaluate, "evaluate", fail)
    with pytest.raises(MemoryError):
        train(tiny(eval__every="4"), tmp_path)
    assert saved(tmp_path) == [4]
    with pytest.raises(MemoryError):
        train(tiny(train__steps="6"), tmp_path)
    assert saved(tmp_path)[-1] == 6  # no multiple of the interval: saved because it is the last


def test_scores_join_the_step_that_was_saved_before(tmp_path):
    assert train(tiny(eval__every="4"), tmp_path) == 0
    checkpointer = open_checkpoints(read(tmp_path), tmp_path)
    assert [sorted(checkpointer._step_metrics(s))[0] for s in (4, 8)] == ["clips", "clips"]
    (tmp_path / "checkpoints" / "8" / "scores.json").write_bytes(b"\0" * 90)
    checkpointer = open_checkpoints(read(tmp_path), tmp_path)
    assert checkpointer._step_metrics(8) == {} and checkpointer.latest() == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_last_evaluation_finds_everything_saved(
    tmp_path, monkeypatch, caplog, number
):
    evaluate = Evaluate.evaluate

    def interrupted(self, run):
        os.kill(os.getpid(), number)
        return evaluate(self, run)

    monkeypatch.setattr(Evaluate, "evaluate", interrupted)
    with caplog.at_level("INFO", logger="absl"):
        assert train(tiny(train__steps="3"), tmp_path) == INTERRUPTED
    assert saved(tmp_path) == [3] and f"{number.name}: saved step 3" in caplog.text


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RuntimeError("Worker process was terminated unexpectedly with exit code -9"),
            "no memory left, so set config.data.num_workers below 2",
        ),
        (VidlatentError("16 of 16 clips are bad."), "^16 of 16 clips are bad. Step 5 is saved"),
        (OSError(errno.EIO, "Input/output error"), "OSError: .* Step 5 is saved"),
    ],
)
def test_an_error_of_the_data_loses_no_step(tmp_path, monkeypatch, error, sentence):
    read_next = Loader.__next__

    def fail(self):
        if self.state()["step"] == 5:
            raise error
        return read_next(self)

    monkeypatch.setattr(Loader, "__next__", fail)
    config = tiny()
    with config.unlocked():
        config.data.num_workers = 2 if isinstance(error, RuntimeError) else 0
    with pytest.raises(VidlatentError, match=sentence):
        train(config, tmp_path)
    assert saved(tmp_path) == [4, 5]


def test_checkpoints_that_vanished_are_missed(tmp_path):
    assert train(tiny(train__stop_at="4"), tmp_path) == INTERRUPTED
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(VidlatentError, match="but step 4 was saved there: mount or restore"):
        train(tiny(), tmp_path)
    (tmp_path / "last_saved.json").unlink()
    assert train(tiny(train__stop_at="4"), tmp_path) == INTERRUPTED


def test_a_step_of_another_run_is_never_called_saved(tmp_path):
    config = tiny(train__stop_at="3")
    assert train(config, tmp_path / "other") == INTERRUPTED

    def plant(run, *_args, **_kwargs):
        folder = tmp_path / "mine" / "checkpoints"
        if run.step == 3 and not folder.exists():
            shutil.copytree(tmp_path / "other" / "checkpoints", folder)
            run.checkpointer._manager.reload()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooks.Profile, "__call__", lambda self, run: plant(run))
        with pytest.raises(VidlatentError, match="Step 3 is not saved: .* another run wrote"):
            train(config, tmp_path / "mine")
