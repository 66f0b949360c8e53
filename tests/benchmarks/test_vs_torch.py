"""The comparison with PyTorch, whose side is played by a script without it."""

import json
import sys

import pytest

from benchmarks import vs_torch

WIDTHS = {"dim": 24, "ffn_dim": 16, "num_heads": 2}
# Gives back zeros, and says what it was told.
STAND_IN = """
import json, sys
import numpy as np
print(json.dumps({"torch": " ".join(sys.argv[1:])}), flush=True)
for line in sys.stdin:
    files = json.loads(line)["files"]
    if files:
        inputs = np.load(files[0])
        assert list(inputs) == ["states", "text", "time", "grid"], list(inputs)
        np.save(files[1], np.full_like(inputs["states"], 2.0))
    print(json.dumps([0.5, 2.0]), flush=True)
"""


@pytest.fixture
def small(monkeypatch, tmp_path):
    entry = vs_torch.MODELS["wan-block"]
    table = (lambda: vs_torch.Block(**WIDTHS), entry.table, WIDTHS, ("3x2x2",))
    monkeypatch.setattr(vs_torch, "MODELS", {"wan-block": vs_torch.Entry(*table)})
    monkeypatch.setattr(vs_torch, "TEXT", 5)
    (tmp_path / "side.py").write_text(STAND_IN)
    monkeypatch.setattr(vs_torch, "TORCH_SIDE", tmp_path / "side.py")


def test_both_sides_take_turns_and_make_a_row(small, tmp_path, capsys):
    target = tmp_path / "rows.json"
    vs_torch.main(["--torch-python", sys.executable, "--json", str(target)])
    (row,) = json.loads(target.read_text())["rows"]
    assert row["size"] == "3x2x2" and row["torch forward wall s"] == 0.5
    assert row["forward ratio of cpu s"] == row["forward cpu s"] / 2.0
    assert row["forward difference"] > 0.1  # from the stand-in's result
    assert row["torch"].startswith("wan-block ") and json.dumps(WIDTHS) in row["torch"]
    assert "forward ratio of cpu s" in capsys.readouterr().out


def test_weights_are_exported_under_the_published_names():
    block = vs_torch.Block(**WIDTHS)
    params = vs_torch.random_params(block.shapes())
    table = vs_torch.MODELS["wan-block"].table
    tensors = vs_torch.export_params(block.published(params), table)
    assert tensors["blocks.0.attn1.to_q.weight"].shape == (24, 24)
    assert {name.split(".")[2] for name in tensors} == {
        "attn1",
        "attn2",
        "ffn",
        "norm2",
        "scale_shift_table",
    }
