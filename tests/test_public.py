"""The names that users of the package start from."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import vidlatent

ROOT = Path(__file__).parent.parent
NAMES = {
    "Codec",
    "Coded",
    "Generator",
    "LatentSpec",
    "VidlatentError",
    "decompress",
    "load_codec",
    "load_generator",
    "write_video",
}


def test_public_names():
    assert {*vidlatent.__all__} == NAMES | {"__version__"}
    assert set(dir(vidlatent)) == {*vidlatent.__all__}
    for name in NAMES:
        assert getattr(vidlatent, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Codek'"):
        _ = vidlatent.Codek


def test_editors_see_what_is_imported():
    """The imports for type checkers are those that happen at run time."""
    tree = ast.parse((ROOT / "vidlatent" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    found = {alias.name: node.module for node in block.body for alias in node.names}
    assert set(found) == NAMES
    for name, module in found.items():
        assert getattr(importlib.import_module(module), name) is getattr(vidlatent, name)
    assert (ROOT / "vidlatent" / "py.typed").exists()


def test_importing_the_package_is_quick():
    program = "import sys, vidlatent; assert 'jax' not in sys.modules and 'flax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
