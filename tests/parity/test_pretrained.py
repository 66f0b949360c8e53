"""Frozen networks at their published sizes and names against PyTorch's own layers.

Needs an interpreter with torch: this one, or the one that ``VIDLATENT_TORCH_PYTHON`` names.
"""

import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from vidlatent.models.pretrained import NETWORKS
from vidlatent.models.pretrained.load import load_network
from vidlatent.models.pretrained.video.videomae import GIANT_SSV2, VideoMae

SCRIPT = Path(__file__).parent / "torch_pretrained.py"


@pytest.fixture
def made(tmp_path):
    """``network -> (path of its weights, arrays)`` by PyTorch."""
    assert SCRIPT.is_file()  # also where it cannot be run
    python = os.environ.get("VIDLATENT_TORCH_PYTHON", "")
    if not python and importlib.util.find_spec("torch"):
        python = sys.executable
    if not python:
        pytest.skip("no torch here; VIDLATENT_TORCH_PYTHON names an interpreter that has it")

    def make(network):
        weights, arrays = tmp_path / "weights.npz", tmp_path / "io.npz"
        subprocess.run([python, SCRIPT, network, weights, arrays], check=True, timeout=900)
        return weights, dict(np.load(arrays))

    return make


NAMES = (
    *("lpips_vgg", "lpips_alex", "i3d_kinetics400", "c3d_ucf101", "dinov2_vits14"),
    *("videomae_g_of_3", "videomae_tiny"),
)


@pytest.mark.slow
@pytest.mark.parametrize("network", NAMES)
def test_against_torch(network, made, monkeypatch):
    short = dataclasses.replace(GIANT_SSV2, module=functools.partial(VideoMae, depth=3))
    monkeypatch.setattr(NETWORKS, "_entries", {**NETWORKS._entries, "videomae_g_of_3": short})
    path, arrays = made(network)
    loaded = load_network(network, path)
    path.unlink()  # up to 300 MB, which pytest would keep
    pixels = [np.moveaxis(arrays[name], 1, -1) for name in ("x", "y") if name in arrays]
    found = jax.jit(loaded.apply)(loaded.params, *pixels)
    found = {**found, "out": found["logits"]} if isinstance(found, dict) else {"out": found}
    for name in arrays.keys() - {"x", "y"}:
        ours, theirs = np.asarray(found[name]), arrays[name]
        assert ours.shape == theirs.shape
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        print(f"{network} {name}: {error:.1e} of the largest value")
        assert error <= 2e-5
