"""Where the time of a run goes, over several starts."""

import json

import pytest

from vidlatent.train import goodput
from vidlatent.train.goodput import FILE, Goodput


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(goodput.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(goodput.time, "time", lambda: 1e9 + self.now)

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def run(clock, workdir, first, last, saved_every=5):
    """One start: 4 s to begin, 2 s of data, 10 s of computing and a save now and then."""
    began = clock.now
    clock.pass_(4)
    found = Goodput(workdir, first, began)
    for step in range(first + 1, last + 1):
        with found.part("data"):
            clock.pass_(2)
        clock.pass_(10)
        if step == first + 1:
            found.move("compilation", 6)
        if step % saved_every == 0:
            with found.part("saves"):
                clock.pass_(3)
        found.write(step)
    return found


def test_all_time_is_told_apart(clock, tmp_path):
    found = run(clock, tmp_path, 0, 10)
    assert found.seconds == {
        "start": 4,
        "data": 20,
        "compilation": 6,
        "steps": 94,
        "saves": 6,
        "evaluation": 0,
        "lost": 0,
        "down": 0,
    }
    assert found.share == pytest.approx(94 / 130)
    assert found.describe() == (
        "goodput 72%: steps 94 s, start 4 s, compilation 6 s, data 20 s, saves 6 s"
    )


def test_steps_done_again_are_lost_and_pauses_are_down(clock, tmp_path):
    run(clock, tmp_path, 0, 8)  # killed at step 8; step 5 is on disk
    first = json.loads((tmp_path / FILE).read_text())
    clock.pass_(60)
    found = run(clock, tmp_path, 5, 10)
    assert found.starts == 2
    assert found.seconds["down"] == 60
    # Three of eight steps, 74 s of computing in all.
    assert first["seconds"]["steps"] == 74
    assert found.seconds["lost"] == pytest.approx(3 / 8 * 74, abs=1e-3)
    total = sum(first["seconds"].values()) + 60 + 4 + 5 * 12 + 3
    assert sum(found.seconds.values()) == pytest.approx(total)
    assert "in 2 starts" in found.describe()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"seconds": 3}', "{"])
def test_a_damaged_file_is_begun_anew(clock, tmp_path, content):
    (tmp_path / FILE).write_text(content)
    assert run(clock, tmp_path, 0, 2).starts == 1
    assert json.loads((tmp_path / FILE).read_text())["step"] == 2
