"""``benchmarks.h200``: predictions, flags, totals, and every row at toy size on this machine."""

import json

import jax.numpy as jnp
import pytest

from benchmarks import h200, h200_report
from benchmarks.h200_rows import Case, Row, case, normal, products

PEAKS = {"flops": 1e9, "bandwidth": 1e9}


@pytest.fixture
def toys(monkeypatch):
    """Two sections of rows that take milliseconds; the device's ceilings are not measured."""

    def numbers(scale):
        pair = (normal(4, 4), normal(4, 4, seed=1))
        yield Row("dot", lambda: case(jnp.dot, *pair), flops=128.0, part=("decode", "whole", 3.0))
        yield Row("twice", lambda: case(lambda x, y: x + y, *pair), bytes=96.0, looped=True)

    def troubles(scale):
        yield Row("wrong", lambda: Case(jnp.dot, (jnp.ones((2, 3)), jnp.ones((2, 3)))), flops=1.0)
        parts = {"seconds": 0.5, "spread": 0.1, "flops": 5e8, "memory": 2e9, "compile": 3.0}
        yield Row("told", bench=lambda repeats: parts, part=("base blocks", "", 40.0))

    monkeypatch.setattr(h200, "SECTIONS", {"numbers": (numbers, 1.0), "troubles": (troubles, 1.0)})
    monkeypatch.setattr(h200, "measure_peaks", lambda dtype: PEAKS)


def run(folder, *arguments):
    target = folder / "h200.json"
    h200.main(["--size=small", "--repeats=2", "--output", str(target), *arguments])
    return json.loads(target.read_text())


def by_name(result):
    return {line["row"]: line for line in result["rows"]}


def test_what_cannot_run_is_told_and_the_rest_is_measured(toys, tmp_path, capsys):
    result = run(tmp_path)
    rows = by_name(result)
    assert list(rows) == ["dot", "twice", "wrong", "told"]
    assert rows["dot"]["ms"] > 0 and rows["dot"]["predicted ms"] == 128e-6
    assert rows["dot"]["error"] < 0.01 and rows["twice"]["error"] < 0.01
    assert rows["wrong"]["note"].startswith("failed: TypeError") and "ms" not in rows["wrong"]
    told = rows["told"]
    assert (told["ms"], told["predicted ms"], told["by"], told["GB"]) == (500, 500, "bound", 2)
    sums = {line["row"]: line for line in result["totals"]}
    assert sums["40 blocks of the base by themselves"]["ms"] == 40 * 500
    decoding = sums["total of decoding 121x768x1280, FSAE-Lite (whole)"]
    assert decoding["ms"] == pytest.approx(3 * rows["dot"]["ms"], rel=1e-3)
    assert sums["total of 60 + 8 evaluations, 8 bits"]["note"] == "not measured"
    assert set(result["sections"]) == {"numbers", "troubles"}
    page = (tmp_path / "h200.md").read_text()
    assert page.rstrip().endswith("Not measured: wrong.") and page in capsys.readouterr().out


@pytest.mark.slow
def test_out_of_time_and_gone_on_with(toys, tmp_path, capsys):
    late = by_name(run(tmp_path, "--minutes=0", "--only=troubles,numbers"))
    assert len(late) == 4 and all("out of time" in line["note"] for line in late.values())
    first = by_name(run(tmp_path, "--resume", "--only=numbers"))
    assert first["dot"]["ms"] > 0 and "ms" not in first["told"]
    again = by_name(run(tmp_path, "--resume"))
    assert again["dot"] == first["dot"] and again["told"]["ms"] == 500
    with pytest.raises(SystemExit):
        h200.main(["--size=full", "--resume", "--output", str(tmp_path / "h200.json")])
    assert "is of size small, not full" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tmp_path, "--only=number")


def test_predictions_say_by_what():
    predict_ms = h200_report.predict_ms
    assert predict_ms(790e12, 0, 1200, True, PEAKS) == (1200, "kernel study")
    assert predict_ms(790e12, 8.6e12, 0, True, PEAKS) == (2000, "bound")
    assert predict_ms(1e9, 1e8, 1200, False, PEAKS) == (1000, "bound")
    assert predict_ms(0, 0, 0, True, PEAKS) == (None, None)
    whole = {row.name: row for row in products(1)}
    assert len(whole) == 5 * 4 * 2 * 2  # tokens, sizes, types, with Triton and without
    # Three waves of tiles for 300 of them: a share of 0.68 of the ceiling.
    assert whole["product 1860 x 5120 x 5120, bfloat16"].study == pytest.approx(0.1810, rel=1e-3)
    assert whole["product 7440 x 5120 x 5120, bfloat16"].study == pytest.approx(0.5524, rel=1e-3)


def test_what_is_off_is_to_be_explained():
    judge_ms = h200_report.judge_ms
    assert judge_ms(1.2, 1.0, "kernel study", True) is None
    assert judge_ms(1.3, 1.0, "kernel study", True) == "explain: 1.3 times the prediction"
    assert judge_ms(0.7, 1.0, "kernel study", True) == "explain: faster than predicted"
    assert judge_ms(1.9, 1.0, "bound", True) is None
    assert judge_ms(2.5, 1.0, "bound", True) == "explain: 2.5 times the bound"
    assert judge_ms(0.9, 1.0, "bound", True) == "explain: faster than predicted"
    assert judge_ms(9.0, 1.0, "bound", False) is None


def test_totals_are_of_the_fastest_whole_form():
    def line(ms, *part):
        return {"row": "", "ms": ms, "predicted ms": 100.0, "by": "kernel study", "part": part}

    lines = [line(200.0, "bfloat16", "", 30.0), line(300.0, "bfloat16", "", 8.0)]
    lines += [line(150.0, "8 bits", "", 30.0), line(200.0, "8 bits", "", 8.0)]
    lines += [line(100.0, "8 bits", "without Triton", 30.0)]
    half, eighth, decode, *_ = h200_report.sum_totals(lines, True)
    assert half == {
        "row": "total of 60 + 8 evaluations, bfloat16",
        **{"predicted ms": 8600.0, "by": "goal", "ms": 8400.0, "times": 0.9767, "remark": "met"},
    }
    assert (eighth["ms"], eighth["remark"]) == (6100.0, "missed: explain")
    assert decode == {
        "row": "total of decoding 121x768x1280, FSAE-Lite",
        **{"predicted ms": 1500.0, "by": "goal", "note": "not measured"},
    }
    lines.append(line(150.0, "8 bits", "without Triton", 8.0))
    eighth = h200_report.sum_totals(lines, True)[1]
    assert (eighth["ms"], eighth["remark"]) == (4200.0, "met")
    assert eighth["row"].endswith("(without Triton)")
    assert h200_report.sum_totals(lines, False)[0]["predicted ms"] == 3800.0


@pytest.mark.slow
def test_every_row_runs_at_toy_size(tmp_path, monkeypatch):
    monkeypatch.setattr(h200, "measure_peaks", lambda dtype: PEAKS)
    check_all(run(tmp_path, "--minutes=60"))


def check_all(result):
    rows = result["rows"]
    assert {line["section"] for line in rows} == set(h200.SECTIONS)
    for line in rows:
        assert line["ms"] > 0 and line["predicted ms"] > 0 and line["by"] == "bound", line
        assert line["note"] is None and line["spread"] >= 0 and line["GB"] > 0, line
    errors = {line["row"]: line["error"] for line in rows if line["error"] is not None}
    evaluations = [name for name in errors if name.startswith("evaluation")]
    # In 8 bits and layer by layer, held against the scanned one in bfloat16.
    assert len(evaluations) == 9 and sum("8 bits" in name for name in evaluations) == 7
    for name, error in errors.items():
        # Bfloat16 has 8 bits of a number; of 8 bits it has 4.
        assert 0 < error < (0.2 if "8 bits" in name else 0.02), (name, error)
    for line in result["totals"]:
        assert line["ms"] > 0 and line["predicted ms"] > 0, line
    titles = [line["row"] for line in result["totals"]]
    assert any("bfloat16" in title for title in titles)
    assert any("8 bits" in title for title in titles)
    assert any("FSAE-Lite" in title for title in titles)


@pytest.mark.slow
def test_the_cascade_is_timed_end_to_end(tmp_path, monkeypatch):
    """The parts of the chain add up to the whole."""
    monkeypatch.setattr(h200, "measure_peaks", lambda dtype: PEAKS)
    rows = by_name(run(tmp_path, "--minutes=60", "--only=cascade"))
    whole, *parts = rows.values()
    names = ["encode", "base", "upsampler", "refiner", "decode"]
    assert [line["row"].rpartition(": ")[2] for line in parts] == names
    assert all(line["note"] is None and line["ms"] > 0 for line in rows.values())
    assert sum(line["ms"] for line in parts) == pytest.approx(whole["ms"], rel=0.2)
