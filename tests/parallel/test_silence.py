"""A process that gives no sign of life is found and named, and the others go on."""

import time
from types import SimpleNamespace

import pytest

from vidlatent.parallel import together


class Store:
    """The key-value store of JAX's coordination service, in memory."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        self.values[key] = value

    def key_value_dir_get(self, prefix):
        return [(k, v) for k, v in self.values.items() if k.startswith(prefix)]


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(together, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def watch(clock):
    """What process 0 of three knows, without its thread."""
    watch = object.__new__(together._Watch)
    watch.client, watch.silence, watch.me, watch.count = Store(), 45.0, 0, 3
    watch.failure, watch.agreement, watch._next_beat = None, None, 0.0
    watch._heard = {k: ("", clock.now) for k in range(3)}
    return watch


def live(watch, clock, seconds, speaking):
    for _ in range(int(seconds)):
        clock.now += 1.0
        for process in speaking:
            watch.client.values[f"{together._ALIVE}{process}"] = str(time.monotonic())
        watch._look_once()
        if watch.failure:
            return


def test_who_is_silent_is_named(watch, clock):
    live(watch, clock, 20, [1, 2])
    assert watch.failure is None
    live(watch, clock, 60, [1])
    assert watch.failure.process == 2 and watch.failure.status == together.LOST
    assert "no sign of life for 45 s" in watch.failure.sentence
    assert 20 + 45 <= clock.now - 100 <= 20 + 45 + 2 * together._BEAT_SECONDS


def test_all_that_speak_go_on(watch, clock):
    live(watch, clock, 300, [1, 2])
    assert watch.failure is None


def test_who_has_not_begun_is_not_silent(watch, clock):
    # Compiling and reading an index come first; ``compare`` has a limit of its own for them.
    live(watch, clock, 300, [1])
    assert watch.failure is None
