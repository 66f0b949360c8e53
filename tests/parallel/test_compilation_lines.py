"""Compiling is announced where it takes long, with its duration, and not where it does not."""

import logging as std_logging
import threading

import jax
import pytest

from vidlatent.parallel import compilation

EVENT = "/jax/core/compile/backend_compile_duration"


class Clock:
    """Stands in for ``threading.Timer``: nothing happens before ``ring`` is called."""

    made: list = []

    def __init__(self, seconds, function, arguments):
        self.seconds, self._call, self.cancelled = seconds, (function, arguments), False
        Clock.made.append(self)

    def start(self):
        pass

    def cancel(self):
        self.cancelled = True

    def ring(self):
        function, arguments = self._call
        function(*arguments)


@pytest.fixture
def announcer(monkeypatch):
    monkeypatch.setattr(threading, "Timer", Clock)
    monkeypatch.setattr(Clock, "made", [])
    return compilation._Announcer()


def test_long_compilations_are_told_with_their_duration(announcer, caplog):
    with caplog.at_level(std_logging.INFO, logger="absl"):
        announcer.begin(EVENT, 1.0, fun_name="jit(train_step)")
        Clock.made[0].ring()
        announcer.end(EVENT, 45.67, fun_name="jit(train_step)")
        announcer.end("/jax/core/compile/jaxpr_trace_duration", 9.0, fun_name="other")
    told = [record.getMessage() for record in caplog.records]
    assert told == ["compiling train_step ...", "compiled train_step in 45.7 s"]


def test_quick_ones_are_not_told(announcer, caplog):
    with caplog.at_level(std_logging.INFO, logger="absl"):
        announcer.begin(EVENT, 1.0, fun_name="jit_add")
        announcer.end(EVENT, 0.1, fun_name="jit_add")
        (timer,) = Clock.made
        assert timer.cancelled
        timer.ring()  # too late to be cancelled
    assert not caplog.records


def test_jax_reports_both_ends():
    """The events are JAX's own; another release may rename them, and then nothing is announced."""
    heard = []

    def begin(event, value, **about):
        heard.append(("begin", event, about.get("fun_name")))

    def end(event, seconds, **about):
        heard.append(("end", event, about.get("fun_name")))

    jax.monitoring.register_scalar_listener(begin)
    jax.monitoring.register_event_duration_secs_listener(end)
    try:

        def only_here(x):
            return x * 3.0 + 1.25

        jax.jit(only_here)(2.0)
    finally:
        jax.monitoring.unregister_scalar_listener(begin)
        jax.monitoring.unregister_event_duration_listener(end)
    names = [(which, name) for which, event, name in heard if event == EVENT]
    assert [which for which, _ in names] == ["begin", "end"]
    assert {compilation._name({"fun_name": name}) for _, name in names} == {"only_here"}
