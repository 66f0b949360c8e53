"""Makes the notebooks, ``NAME.ipynb``, from their sources, ``NAME.py``.

    python -m notebooks.build                    all of them (make notebooks)
    python -m notebooks.build --execute          and run them, for the one picture that each keeps
    python -m notebooks.build --execute --only plan_a_cluster_run

A source is Python with cells after ``# %%``, as jupytext reads it. Here it gets the badge, the cell
that installs, and the picture that was there before: the cell tagged ``picture`` keeps its picture,
and no other output is stored.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from docs.links import find_repository

__all__ = [
    "FOLDER",
    "NAMES",
    "build",
    "execute",
    "is_picture",
    "main",
    "read_install_cell",
    "strip",
    "to_text",
]

FOLDER = Path(__file__).parent
NAMES = (
    "compress_your_video",
    "train_a_tokenizer",
    "encode_and_train_a_generator",
    "image_to_video",
    "bring_weights",
    "plan_a_cluster_run",
)
_LINE = "# ------"  # what is below it in install_cell.py is the cell
_SMALL = (
    "(The one picture that is stored here is of a test, at a small size and after a few steps, if "
    "anything is trained. Run the notebook for a real one.)"
)
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def build(name: str) -> Any:
    """A notebook without outputs but for the picture of the file that is there."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": _KERNEL, "language_info": {"name": "python"}, "colab": {"provenance": []}}
    )
    address = find_repository()
    title, _, text = notebook.cells[0].source.partition("\n")
    badge = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    place = address.removeprefix("https://github.com/")
    badge += f"(https://colab.research.google.com/github/{place}/blob/main/notebooks/{name}.ipynb)"
    notebook.cells[0].source = f"{title}\n\n{badge}\n{text}"
    kept = _kept_picture(name)
    if kept and kept.metadata.get("size") == "small":
        notebook.cells[0].source += f"\n\n{_SMALL}"
    for number, cell in enumerate(notebook.cells):
        # Those that nbformat makes differ from time to time.
        cell["id"] = f"{name}-{number}"
        tags = cell.metadata.get("tags", [])
        if "install" in tags:
            cell.source = read_install_cell(cell.source.split('"')[1])
        if "picture" in tags and kept:
            cell.outputs = [kept]
    return notebook


def read_install_cell(extras: str) -> str:
    """The common first cell, which installs vidlatent with these extras: ``"demo,plan"``."""
    text = (FOLDER / "install_cell.py").read_text()
    cell = text[text.index(_LINE) :].partition("\n")[2]
    cell = cell.replace('REPOSITORY = ""', f'REPOSITORY = "{find_repository()}"')
    return cell.replace('EXTRAS = "demo"', f'EXTRAS = "{extras}"').strip()


def to_text(notebook: Any) -> str:
    """A notebook as the text of its file."""
    return nbformat.writes(notebook) + "\n"


def _kept_picture(name: str) -> Any:
    path = FOLDER / f"{name}.ipynb"
    if not path.is_file():
        return None
    cells = nbformat.read(path, as_version=4).cells
    pictures = [o for cell in cells for o in cell.get("outputs", []) if is_picture(o)]
    return pictures[0] if pictures else None


def is_picture(output: Any) -> bool:
    """Whether a cell's output is a picture."""
    return "image/png" in output.get("data", {})


def execute(notebook: Any, seconds: float) -> Any:
    """Run all cells in the repository's folder; ``seconds`` bounds each cell.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed; the message has its traceback.
    """
    from nbclient import NotebookClient  # of the extra 'notebooks'

    resources = {"metadata": {"path": str(FOLDER.parent)}}
    # A kernel on a busy machine needs more than the usual minute to start.
    client = NotebookClient(notebook, timeout=seconds, startup_timeout=600, resources=resources)
    return client.execute()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--execute", action="store_true", help="run them, and keep a picture each")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    args = parser.parse_args(argv)
    for name in args.only:
        notebook = build(name)
        if args.execute:
            size = "small" if os.environ.get("VIDLATENT_NOTEBOOK_SMALL") == "1" else "whole"
            _keep(name, strip(execute(notebook, seconds=7200), size))
            notebook = build(name)
        _keep(name, notebook)
        print(f"wrote notebooks/{name}.ipynb")
    return 0


def _keep(name: str, notebook: Any) -> None:
    (FOLDER / f"{name}.ipynb").write_text(to_text(notebook))


def strip(notebook: Any, size: str) -> Any:
    """Leave out all outputs but the picture of the cell tagged ``picture``, of a run at ``size``."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tagged = "picture" in cell.metadata.get("tags", [])
            kept = [output for output in cell.outputs if tagged and is_picture(output)][:1]
            for output in kept:
                output.metadata = nbformat.from_dict({"size": size})
                output.pop("execution_count", None)
            cell.outputs, cell.execution_count = kept, None
            cell.metadata.pop("execution", None)
    return notebook


if __name__ == "__main__":
    sys.exit(main())
