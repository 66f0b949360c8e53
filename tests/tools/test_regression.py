"""Small programs need what they needed: see ``benchmarks/regression.py`` to accept a change."""

import jax
import pytest

from benchmarks.regression import PROGRAMS, differences, main, stored

COMMAND = "python -m benchmarks.regression --write"
QUICK = [name for name in PROGRAMS if "train" not in name or name == "fsae train"]


def test_every_program_has_its_figures():
    assert set(stored()["programs"]) == set(PROGRAMS), f"run {COMMAND}"


def held(name):
    if jax.__version__ != stored()["jax"]:
        pytest.skip(f"the figures are of jax {stored()['jax']}")
    rows = differences([name])
    assert not rows, f"{rows}; if that is meant to be: {COMMAND}"


@pytest.mark.parametrize("name", QUICK)
def test_a_program_needs_what_it_needed(name):
    held(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in QUICK])
def test_a_step_needs_what_it_needed(name):
    held(name)


def test_a_change_is_told(monkeypatch, capsys):
    name = "dcae encode"
    grown = stored()
    grown["programs"][name]["bytes"] *= 0.9
    monkeypatch.setattr("benchmarks.regression.stored", lambda: grown)
    monkeypatch.setattr("benchmarks.regression.PROGRAMS", {name: PROGRAMS[name]})
    assert main([]) == 1
    text = capsys.readouterr().out
    assert "+11.1%" in text and "bytes" in text and "flops" not in text
