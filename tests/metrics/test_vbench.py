"""VBench's totals against figures that a paper prints with its scores by dimension."""

import json

import pytest

from vidlatent.errors import VidlatentError
from vidlatent.evaluate.vbench import main
from vidlatent.metrics.vbench import DIMENSIONS, compute_vbench_totals

# Reducio-DiT (supplement), in per cent and in the order of DIMENSIONS.
REDUCIO = (98.05, 99.13, 98.45, 98.77, 27.78, 64.02, 67.67)
REDUCIO += (91.49, 69.91, 92.60, 89.06, 52.85, 54.90, 25.16, 26.40, 28.87)
SCORES = {name: score / 100 for name, score in zip(DIMENSIONS, REDUCIO, strict=True)}


def test_totals_as_printed():
    found = compute_vbench_totals(SCORES)
    assert found["quality"] == pytest.approx(0.8224, abs=1e-4)
    # Printed 78.00 and 81.39: seven hundredths from what the printed scores give.
    assert found["semantic"] == pytest.approx(0.7800, abs=1e-3)
    assert found["total"] == pytest.approx(0.8139, abs=5e-4)
    best = {name: rule.greatest for name, rule in DIMENSIONS.items()}
    assert compute_vbench_totals(best) == {kind: pytest.approx(1.0) for kind in found}
    least = {name: rule.least for name, rule in DIMENSIONS.items()}
    assert compute_vbench_totals(least) == {kind: pytest.approx(0.0) for kind in found}
    still = compute_vbench_totals(SCORES | {"dynamic_degree": 0.0})["quality"]
    assert found["quality"] - still == pytest.approx(0.5 * 0.2778 / 6.5)


def test_from_the_files_that_vbench_writes(tmp_path, capsys):
    files = []
    for number, part in enumerate((dict(list(SCORES.items())[:9]), dict(list(SCORES.items())[9:]))):
        file = tmp_path / f"{number}_eval_results.json"
        listed = {name: [score, [{"video": "a-0.mp4"}]] for name, score in part.items()}
        file.write_text(json.dumps(listed if number else part))
        files.append(str(file))
    assert main(files) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 19 and lines[-3].split() == ["quality", "82.24"]
    assert main(files[:1]) == 1 and "overall_consistency lack" in capsys.readouterr().err
    (tmp_path / "odd.json").write_text("[1]")
    assert main([str(tmp_path / "odd.json")]) == 1
    assert "holds no VBench results" in capsys.readouterr().err
    assert main(["nowhere.json"]) == 1 and "no file nowhere.json" in capsys.readouterr().err


def test_mistakes_are_named():
    with pytest.raises(VidlatentError, match="no dimension 'colour': did you mean 'color'"):
        compute_vbench_totals({"colour": 0.5})
    with pytest.raises(VidlatentError, match="color = 89.0 is outside"):
        compute_vbench_totals(SCORES | {"color": 89.0})
