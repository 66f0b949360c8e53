"""Killed savers and damaged files: the newest sound step is used, and the reason is logged."""

import gc
import json
import logging
import os
import random
import shutil
import signal
import time

import pytest

from tests.checkpoint.kill_saver import SIZE
from tests.helpers.checkpoint_cases import abstract, make_state, open_run, same, save, start_helper
from vidlatent.errors import VidlatentError

OLD, NEW = 2, 4

# Orbax drops the futures of the other arrays when one cannot be read.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected():
    """Have those futures complain here, where it is expected, and not in a later test."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def sound_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound")
    run = open_run(path)
    for step in (OLD, NEW):
        save(run, step, metrics={"psnr": float(step)})
    run.close()
    return path


@pytest.fixture
def damaged_run(sound_run, tmp_path):
    """A copy of the sound run that a test may damage."""
    shutil.copytree(sound_run, tmp_path / "run")
    return tmp_path / "run"


def data_files(path):
    """Files of the newest step, relative to it; the names are random from run to run."""
    found = (
        os.path.join(base, name) for base, _, names in os.walk(path / str(NEW)) for name in names
    )
    return sorted(found)


def restored_step(path, **kwargs):
    """Step restored from a damaged run, after checking that every bit of it is right."""
    restored = open_run(path, verify="full").restore(abstract(make_state(NEW)), **kwargs)
    assert same(restored.state, make_state(restored.step))
    assert restored.iterator == {"step": restored.step}
    return restored.step


def truncate(path):
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)


def zero_block(path):
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.seek(size // 3)
        file.write(b"\0" * min(4096, size - size // 3))


def flip(path, place):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << random.Random(place).randrange(8))]))


@pytest.mark.parametrize("hurt", [truncate, zero_block, os.remove])
def test_every_file_damaged_in_turn(damaged_run, sound_run, hurt):
    passed_over = 0
    for path in data_files(damaged_run):
        backup = os.path.join(sound_run, os.path.relpath(path, damaged_run))
        hurt(path)
        passed_over += restored_step(damaged_run) == OLD
        shutil.copy(backup, path)
    assert passed_over >= 10  # The rest are files that restoring does not need.
    assert restored_step(damaged_run) == NEW


def test_a_flipped_byte_anywhere_never_reaches_the_state(damaged_run):
    rng = random.Random(0)
    passed_over = 0
    for path in data_files(damaged_run):
        size = os.path.getsize(path)
        big = size > 2000
        for place in sorted(rng.sample(range(size), min(size, 8 if big else 2))):
            flip(path, place)
            passed_over += restored_step(damaged_run) == OLD
            flip(path, place)
    assert passed_over >= 40


def test_digests_catch_what_the_storage_layer_lets_through(damaged_run):
    """Some flipped bytes are restored without a word unless the digests are looked at."""
    silent = 0
    arrays = [p for p in data_files(damaged_run) if "/params/" in p and os.path.getsize(p) > 2000]
    for path in arrays:
        for place in range(100, os.path.getsize(path), os.path.getsize(path) // 16):
            flip(path, place)
            try:
                read = open_run(damaged_run, verify="off").restore(
                    abstract(make_state(NEW)), step=NEW
                )
                silent += not same(read.state, make_state(NEW))
            except VidlatentError:
                pass
            flip(path, place)
    assert silent > 0


def test_the_reason_is_logged_and_the_metrics_survive(damaged_run, caplog):
    os.remove(damaged_run / str(NEW) / "params" / "manifest.ocdbt")
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert restored_step(damaged_run) == OLD
    assert f"Step {NEW} is damaged, trying the one before: its arrays" in caplog.text
    with pytest.raises(VidlatentError, match=f"Step {NEW} in .* is damaged"):
        restored_step(damaged_run, step=NEW)
    os.remove(damaged_run / str(NEW) / "meta" / "metadata")
    assert open_run(damaged_run, best_metric="psnr").best() == OLD


def test_an_altered_array_is_named(damaged_run):
    """A digest list that tells of other bytes, its own checksum being right."""
    from vidlatent.checkpoint import digests

    path = damaged_run / str(NEW) / "digests" / "process_0-of-1.json"
    body = json.loads(path.read_text())["body"]
    (key,) = body["arrays"]["params/scale"]["shards"]
    body["arrays"]["params/scale"]["shards"][key] ^= 1
    path.write_text(json.dumps({"crc": digests.json_crc(body), "body": body}))
    with pytest.raises(VidlatentError, match="differ from what was saved: params/scale"):
        restored_step(damaged_run, step=NEW)


@pytest.mark.parametrize("item", ["params", "opt", "ema", "extra", "meta", "digests"])
def test_a_removed_item(damaged_run, item):
    shutil.rmtree(damaged_run / str(NEW) / item)
    assert restored_step(damaged_run) == OLD


def test_an_emptied_step_folder(damaged_run):
    shutil.rmtree(damaged_run / str(NEW))
    (damaged_run / str(NEW)).mkdir()
    assert restored_step(damaged_run) == OLD


def test_all_steps_damaged_is_an_error_and_not_a_fresh_start(damaged_run):
    for step in (OLD, NEW):
        shutil.rmtree(damaged_run / str(step) / "opt")
    with pytest.raises(VidlatentError, match="None of the steps .* is sound .*step 2.*step 4"):
        restored_step(damaged_run)


def test_damaged_steps_are_kept_aside_and_their_numbers_are_free_again(damaged_run):
    for round_number in range(3):
        for path in data_files(damaged_run):
            if "/ema/" in path:
                truncate(path)
        run = open_run(damaged_run)
        restored = run.restore(abstract(make_state(NEW)))
        assert restored.step == OLD and run.all_steps() == [OLD]
        assert (damaged_run / str(NEW)).exists(), "reading moves nothing"
        assert run.should_save(NEW) and save(run, NEW, force=False)
        run.close()
        assert restored_step(damaged_run) == NEW, round_number
    aside = [p.name for p in damaged_run.iterdir() if p.name.endswith(".damaged")]
    assert aside == [f"{NEW}.damaged"]


def test_few_damaged_steps_are_kept(tmp_path):
    run = open_run(tmp_path, keep_latest=6)
    for step in range(1, 6):
        save(run, step)
    run.close()
    for step in range(2, 6):
        shutil.rmtree(tmp_path / str(step) / "opt")
    run = open_run(tmp_path)
    assert run.restore(abstract(make_state(1))).step == 1
    save(run, 2)
    run.close()
    aside = sorted(p.name for p in tmp_path.iterdir() if p.name.endswith(".damaged"))
    assert len(aside) == 2 and "5.damaged" in aside
    assert open_run(tmp_path).all_steps() == [1, 2]


def test_an_unfinished_save_is_ignored_and_cleared(damaged_run):
    unfinished = damaged_run / f"{NEW}.orbax-checkpoint-tmp"
    (damaged_run / str(NEW)).rename(unfinished)
    assert restored_step(damaged_run) == OLD
    assert unfinished.exists()
    run = open_run(damaged_run)
    save(run, NEW)
    run.close()
    assert not unfinished.exists() and restored_step(damaged_run) == NEW


def test_killed_while_saving(tmp_path):
    """Four savers in a row on one folder, each killed at another moment of a save."""
    rng = random.Random(1)
    last, interrupted = 0, 0
    for _ in range(4):
        saver = start_helper("kill_saver.py", tmp_path)
        started = [int(saver.stdout.readline()) for _ in range(2)]
        time.sleep(rng.uniform(0.0, 0.15))
        os.kill(saver.pid, signal.SIGKILL)
        started += [int(line) for line in saver.stdout]
        saver.wait(timeout=30)
        interrupted += any("orbax-checkpoint-tmp" in p.name for p in tmp_path.iterdir())
        restored = open_run(tmp_path).restore(abstract(make_state(1, size=SIZE)))
        # A save begins after the one before it is complete, so at most the last one is missing.
        assert started[-1] - 1 <= restored.step <= started[-1] + 1 and restored.step > last
        assert same(restored.state, make_state(restored.step, size=SIZE))
        last = restored.step
    assert interrupted > 0, "no kill came during a save: the test has lost its point"
