"""``benchmarks.estimates``: its table, its file, and that every program of it can be traced."""

import importlib.metadata

import jax
import pytest

from benchmarks import estimates
from benchmarks.estimates_programs import Row, rows
from vidlatent.errors import VidlatentError
from vidlatent.kernels.dispatch import prefer


def figures(ms, traffic=2.0):
    return {"ms": ms, "GB": traffic, "temporaries GB": 0.5}


def test_forms_are_compared_with_the_first():
    wanted = [
        Row("layer", "plain", None),
        Row("layer", "own", None, earlier={"v5p": 0.95}, attention="forward"),
        Row("blocks", "plain", None),
        Row("blocks", "own", None),
    ]
    found = {"plain": figures(10.0), "own": figures(9.0, 1.0)}
    found = {f"v5p: {row.what}: {row.form}": found[row.form] for row in wanted[:3]}
    text = estimates.format_table(
        wanted, found, ["v5p"], lambda chip, row: 10.0 if row.attention else 0
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert lines[0][2:] == [
        f"v5p {name}" for name in ("ms", "GB", "temporaries GB", "change", "earlier")
    ]
    assert lines[2] == ["layer", "plain", "10.00", "2.00", "0.50", "", ""]
    assert lines[3] == ["", "own", "9.00", "1.00", "0.50", "−10.0 % (+90.0 %)", "−5.0 %"]
    assert lines[5] == ["", "own", "", "", "", "", ""]  # not compiled yet


def test_instructions_without_a_time_are_counted_apart():
    """The compiler adds -1 s for each."""
    assert estimates.split_unknown(9.5) == (9.5, 0)
    assert estimates.split_unknown(-1992.951) == (pytest.approx(7.049), 2)
    rows_ = [Row("layer", "plain", None), Row("layer", "own", None)]
    found = {"v6e: layer: plain": figures(10.0), "v6e: layer: own": figures(-992.0)}
    last = estimates.format_table(rows_, found, ["v6e"], lambda chip, row: 0).splitlines()[-1]
    cells = [cell.strip() for cell in last.split("|")[3:-1]]
    assert cells == ["8.00 + 1?", "2.00", "0.50", "−20.0 %", ""]


def test_attention_is_counted_at_the_peak():
    once = estimates.attention_ms("v5p", "forward", 7440, 5120)
    assert once == pytest.approx(2.725, rel=1e-3)
    assert estimates.attention_ms("v5p", "both", 7440, 5120) == pytest.approx(3.5 * once)
    assert estimates.attention_ms("v5p", "", 7440, 5120) == 0


def test_rows_join_those_that_another_process_wrote(tmp_path, monkeypatch):
    path = tmp_path / "new" / "rows.json"
    monkeypatch.setattr(estimates, "versions", lambda: {"jax": "0.2", "libtpu": "0.0.1"})
    assert estimates.read_rows(path) == {}
    estimates.add_row(path, "a", figures(1.0))
    estimates.add_row(path, "b", figures(2.0))
    assert estimates.read_rows(path) == {"a": figures(1.0), "b": figures(2.0)}
    monkeypatch.setattr(estimates, "versions", lambda: {"jax": "0.1"})
    assert estimates.read_rows(path) == {}


@pytest.mark.libtpu
def test_rows_are_of_one_jax_and_one_compiler():
    assert list(estimates.versions()) == ["jax", "libtpu"]


def test_a_missing_compiler_is_named(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(VidlatentError, match="need the package jax: make install-plan"):
        estimates.versions()


@pytest.mark.slow
def test_every_program_is_traced():
    names = set()
    for row in rows(256, 256):
        names.add((row.what, row.form))
        with prefer(**row.preferred), row.around():
            function, arguments = row.program()
            assert jax.tree.leaves(jax.eval_shape(function, *arguments))
    assert len(names) == len(list(rows(256, 256)))
