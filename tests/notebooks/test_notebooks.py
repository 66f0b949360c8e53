"""The notebooks are those of their sources, hold one picture each, and run from top to bottom."""

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("jupytext", reason="the notebooks are made by jupytext, of the extra 'test'")
from notebooks import build

ROOT = Path(__file__).resolve().parents[2]
_SMALL_SECONDS = 1800  # on a busy machine; on two idle cores each takes at most two minutes


@pytest.fixture(params=build.NAMES)
def stored(request):
    """A notebook as it lies in the folder, and its name."""
    path = build.FOLDER / f"{request.param}.ipynb"
    assert path.stat().st_size < 1_000_000
    return request.param, json.loads(path.read_text())


def test_every_source_is_a_notebook():
    sources = {p.stem for p in build.FOLDER.glob("*.py") if "\n# %%" in p.read_text()}
    assert sources == {*build.NAMES} == {p.stem for p in build.FOLDER.glob("*.ipynb")}


def test_a_notebook_is_that_of_its_source(stored):
    name, found = stored
    made = json.loads(build.to_text(build.build(name)))
    assert made == found, "run make notebooks"


def test_one_picture_is_kept_and_no_other_output(stored):
    _, notebook = stored
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert len(outputs) == 1 and "image/png" in outputs[0]["data"]
    assert {cell["execution_count"] for cell in cells} == {None}


def test_it_can_be_opened_elsewhere(stored):
    """A badge that leads to the notebook, and a first cell that needs nothing of vidlatent."""
    name, notebook = stored
    first, install = ("".join(cell["source"]) for cell in notebook["cells"][:2])
    assert f"/blob/main/notebooks/{name}.ipynb)" in first and "colab.research.google.com" in first
    assert "| minutes |" in first or "Minutes:" in first
    imported = [
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(install))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names
    text = json.dumps(notebook["cells"])
    assert "os.kill" not in text and "HF_TOKEN" not in text  # neither restarts nor tokens


def test_the_first_cell_installs_and_keeps_what_is_there(tmp_path):
    """In an empty folder: it clones, and pip is told to keep JAX and what is imported already."""
    program = f"""
import json, subprocess, sys
from importlib import metadata
calls, real = [], metadata.version
def run(command, **options):
    calls.append(command)
    if command[0] == "git":
        import os
        os.makedirs(command[-1] + "/vidlatent/models")
    return subprocess.CompletedProcess(command, 0)
def version(name):
    if name == "vidlatent":
        raise metadata.PackageNotFoundError(name)
    return real(name)
subprocess.run, metadata.version = run, version
import numpy
exec({build.read_install_cell("demo,plan")!r})
print(json.dumps([calls, real("jax"), open("keep.txt").read().split()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (clone, pip), jax, kept = json.loads(done.stdout.splitlines()[-1])
    assert clone[:2] == ["git", "clone"] and pip[-1] == ".[demo,plan]"
    names = {line.split("==")[0].lower() for line in kept}
    assert f"jax=={jax}" in kept and {"jaxlib", "numpy"} <= names
    assert "flax" not in names  # not imported: pip may choose


@pytest.mark.slow
@pytest.mark.parametrize("name", build.NAMES)
def test_it_runs(name, tmp_path, monkeypatch):
    """In a kernel of its own, at the small size, on the CPU."""
    for module in ("nbclient", "ipykernel"):
        pytest.importorskip(module, reason="notebooks run by the packages of the extra 'notebooks'")
    monkeypatch.setenv("VIDLATENT_NOTEBOOK_SMALL", "1")
    monkeypatch.setenv("VIDLATENT_NOTEBOOK_RUNS", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    began = time.monotonic()
    notebook = build.execute(build.build(name), seconds=_SMALL_SECONDS)
    print(f"{name}: {time.monotonic() - began:.0f} s")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert max(len(json.dumps(cell.outputs)) for cell in code) < 1_000_000
    (tagged,) = (cell for cell in code if "picture" in cell.metadata.get("tags", []))
    assert any(build.is_picture(output) for output in tagged.outputs)
    assert [*tmp_path.rglob("*")], "what it makes does not lie in the folder that was named"
