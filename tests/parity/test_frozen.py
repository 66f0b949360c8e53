"""Frozen networks at their published sizes and names against PyTorch's own layers.

Needs an interpreter with torch: this one, or the one that ``VIDLATENT_TORCH_PYTHON`` names.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from vidlatent.io.networks import load_network

SCRIPT = Path(__file__).parent / "torch_frozen.py"


@pytest.fixture
def made(tmp_path):
    """``network -> (path of its weights, arrays)`` by PyTorch."""
    python = os.environ.get("VIDLATENT_TORCH_PYTHON", "")
    if not python and importlib.util.find_spec("torch"):
        python = sys.executable
    if not python:
        pytest.skip("no torch here; VIDLATENT_TORCH_PYTHON names an interpreter that has it")

    def make(network):
        weights, arrays = tmp_path / "weights.npz", tmp_path / "io.npz"
        subprocess.run([python, SCRIPT, network, weights, arrays], check=True, timeout=300)
        return weights, dict(np.load(arrays))

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", ["lpips_vgg", "lpips_alex", "i3d_kinetics400", "c3d_ucf101", "dinov2_vits14"]
)
def test_against_torch(network, made):
    path, arrays = made(network)
    loaded = load_network(network, path)
    path.unlink()  # up to 300 MB, which pytest would keep
    pixels = [np.moveaxis(arrays[name], 1, -1) for name in ("x", "y") if name in arrays]
    found = jax.jit(loaded.apply)(loaded.params, *pixels)
    found = np.asarray(found["logits"] if isinstance(found, dict) else found)
    assert found.shape == arrays["out"].shape
    assert np.abs(found - arrays["out"]).max() <= 2e-5 * np.abs(arrays["out"]).max()
