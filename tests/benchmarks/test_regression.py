"""Small programs need what they needed: see ``benchmarks/regression.py`` to accept a change."""

import os
import warnings

import pytest

from benchmarks import regression
from benchmarks.regression import PROGRAMS, explain_other_jax, list_differences, main, read_stored

COMMAND = "python -m benchmarks.regression --write"
QUICK = [name for name in PROGRAMS if "train" not in name or name == "fsae train"]


def test_every_program_has_its_figures():
    found = read_stored()["programs"]
    assert set(found) == set(PROGRAMS), f"run {COMMAND}"
    names = {"flops", "bytes", "temporaries", "total"}
    assert all(set(figures) == names for figures in found.values()), f"run {COMMAND}"


def test_the_figures_are_of_this_jax():
    """Else nothing is held: a failure where changes are judged, a warning on a user's machine."""
    told = explain_other_jax()
    if told and "CI" in os.environ:
        pytest.fail(told)
    if told:
        warnings.warn(told, stacklevel=1)


def test_another_jax_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setattr(regression, "read_stored", lambda: {"jax": "0.9.9"})
    told = explain_other_jax()
    assert told.startswith("regression.json is of jax 0.9.9 and this is ") and "--write" in told


def held(name):
    if told := explain_other_jax():
        pytest.skip(told)
    rows = list_differences([name])
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
    grown = read_stored()
    grown["programs"][name]["bytes"] *= 0.9
    monkeypatch.setattr("benchmarks.regression.read_stored", lambda: grown)
    monkeypatch.setattr("benchmarks.regression.PROGRAMS", {name: PROGRAMS[name]})
    assert main([]) == 1
    text = capsys.readouterr().out
    assert "+11.1%" in text and "bytes" in text and "flops" not in text
