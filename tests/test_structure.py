"""The house rules that a parser can hold: who imports whom, and how long things may grow."""

import ast
import functools
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vidlatent"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# A room imports itself and the rooms before it.
ROOMS = [
    "errors",
    "paths",
    "files",
    "spec",
    "registry",
    "nested",
    "config",
    "parallel",
    "media",
    "data",
    "checkpoint",
    "weights",
    "kernels",
    "layers",
    "models",
    "diffusion",
    "losses",
    "metrics",
    "rewards",
    "report",
    "latents",
    "codec",
    "encode",
    "sample",
    "evaluate",
    "train",
    "convert",
    "plan",
    "bench",
    "preflight",
    "doctor",
    "app",
    "selftest",
    "main",
]
# Linen stays inside; everything else sees parameters as nested dicts.
LINEN_ROOMS = ("layers", "models")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            if node.module == "vidlatent":
                yield from (f"vidlatent.{alias.name}" for alias in node.names)


@functools.cache
def text_of(path: Path) -> str:
    return path.read_text()


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path), str(path))


def check_every_source(faults_of):
    """All faults of all files at once, in one pass: a test for each takes ten times as long."""
    found = [f"{path.relative_to(ROOT)}: {fault}" for path in SOURCES for fault in faults_of(path)]
    assert not found, "\n".join(found)


def import_faults(path: Path):
    if path == PACKAGE / "__init__.py":
        return
    here = room(path)
    if here not in ROOMS:
        yield f"{here} is not a room of the house"
        return
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"relative import at line {node.lineno}"
    for module in imported_modules(tree_of(path)):
        parts = module.split(".")
        if parts[0] == "vidlatent" and len(parts) > 1 and parts[1] in ROOMS:
            if ROOMS.index(parts[1]) > ROOMS.index(here):
                yield f"{here} imports {module}"
        if parts[0] == "flax" and here not in LINEN_ROOMS:
            yield f"{module} imported outside {LINEN_ROOMS}"
        if parts[0] in ("torch", "tensorflow"):
            yield f"{module} imported at run time"
        if parts[0] == "launch":
            yield f"{module} imported, which is not in the package"


def test_imports_go_down():
    check_every_source(import_faults)


def size_and_manner_faults(path: Path):
    if (lines := text_of(path).count("\n")) > 600:
        yield f"has {lines} lines"
    if not ast.get_docstring(tree_of(path)):
        yield "module without a docstring"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            if length > 60:
                yield f"{node.name} has {length} lines"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"bare except at line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names_config = any(isinstance(a, ast.Name) and a.id == "config" for a in node.args[:1])
            if node.func.id == "getattr" and names_config:
                yield f"getattr(config, ...) at line {node.lineno}"


def test_size_and_manners():
    check_every_source(size_and_manner_faults)


def test_launchers_keep_the_rules_of_the_package():
    for path in sorted((ROOT / "launch").rglob("*.py")):
        assert not [*size_and_manner_faults(path), *logger_faults(path)], path


@pytest.mark.parametrize(
    ("room_of_file", "text", "fault"),
    [
        ("kernels", "import vidlatent.train.loop", "kernels imports vidlatent.train.loop"),
        ("kernels", "from vidlatent import train", "kernels imports vidlatent.train"),
        ("train", "from . import loop", "relative import at line 1"),
        ("train", "import flax.linen", "flax.linen imported outside"),
        ("train", "def f():\n    import torch", "torch imported at run time"),
        ("train", "import launch.gke", "launch.gke imported, which is not in the package"),
        ("train", "import logging", "import logging at line 1"),
        ("cellar", "", "cellar is not a room"),
        ("train", "x = 1\n" * 601, "has 601 lines"),
        ("train", "x = 1", "module without a docstring"),
        ("train", "def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
        ("train", "try:\n    x\nexcept:\n    y", "bare except at line 3"),
        ("train", "getattr(config, 'x')", "getattr(config, ...) at line 1"),
    ],
)
def test_a_fault_is_found(tmp_path, monkeypatch, room_of_file, text, fault):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    path = tmp_path / room_of_file / "file.py"
    path.parent.mkdir()
    path.write_text(text)
    checks = (import_faults, size_and_manner_faults, logger_faults)
    faults = [fault for check in checks for fault in check(path)]
    assert any(found.startswith(fault) for found in faults), faults


def logger_faults(path: Path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            if ("logging", None) in [(alias.name, alias.asname) for alias in node.names]:
                yield f"import logging at line {node.lineno}; use: from absl import logging"


def test_library_code_logs_through_absl():
    """One logger: ``from absl import logging``. What a mode prints as its result is ``print``ed.

    The standard library's module is imported as ``std_logging``, to quieten other packages.
    """
    check_every_source(logger_faults)


def classes_of(folder: Path) -> set[str]:
    """Names of the classes that the packages in ``folder`` define."""
    files = [path for path in folder.rglob("*.py") if path.parent != folder]
    trees = [tree_of(path) for path in files]
    return {n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}


def asked(node: ast.AST) -> str:
    """The name of what ``isinstance`` or ``hasattr`` is asked of: of ``self.model``, ``model``."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


# Where a path is this machine's own: its system, the package itself, what was made local before.
OWN_PATHS = {
    "bench/run.py",
    "checkpoint/lock.py",
    "codec/memory.py",
    "config/load.py",
    "config/meanings.py",
    "doctor/checks.py",
    "parallel/compilation.py",
    "paths.py",
    "plan/topology.py",
    "report/log_file.py",
    "report/page.py",
    "train/identity.py",
    "weights/files.py",
}


def test_paths_of_users_may_lie_in_buckets():
    """``pathlib.Path("gs://a")`` is the folder ``gs:/a``: ``vidlatent.paths.as_path`` is not."""
    own = re.compile(r"(?<![\w.])(?:pathlib\.)?Path\(")
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if own.search(text_of(path))
    }
    assert found <= OWN_PATHS | {name for name in found if name.startswith("media/")}


def test_models_are_asked_by_their_protocol():
    """What a model can do is said by ``tokenizers.base`` and ``generators.base``, not by its class.

    Outside their own package nothing tells tokenizers or generators apart by class, or by whether
    they have some attribute.
    """
    kinds = ("tokenizers", "generators")
    own = {kind: classes_of(PACKAGE / "models" / kind) for kind in kinds}
    for path in SOURCES:
        parts = path.relative_to(PACKAGE).parts
        foreign = set().union(*(own[kind] for kind in kinds if parts[:2] != ("models", kind)))
        for node in ast.walk(tree_of(path)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id == "hasattr":
                assert asked(node.args[0]) not in ("model", "tokenizer", "generator"), (
                    f"{path}:{node.lineno}"
                )
            if node.func.id == "isinstance":
                names = {asked(n) for n in ast.walk(node.args[1])}
                assert not names & foreign, f"{path}:{node.lineno}: {names & foreign}"


def test_tokenizers_are_known_to_their_registry_alone():
    """Nothing but models, and what reads files of one system, imports one tokenizer's package."""
    for path in SOURCES:
        if room(path) not in ("models", "weights", "convert"):
            for module in imported_modules(tree_of(path)):
                parts = module.split(".")
                assert len(parts) < 5 or parts[1:3] != ["models", "tokenizers"], f"{path}: {module}"


def test_meshes_are_built_in_one_place():
    for path in SOURCES:
        if path != PACKAGE / "parallel" / "mesh.py":
            text = text_of(path)
            assert "make_mesh(" not in text or "parallel.mesh import make_mesh" in text, path
            assert "Mesh(np" not in text, path


def lines_of(*command: str) -> list[str] | None:
    """What a command prints, nothing where it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def test_the_linter_sees_every_file():
    """Ruff skips folders by name, unless it is told which."""
    tracked = lines_of("git", "ls-files", "*.py")
    if tracked is None:
        pytest.skip("no git repository that could list its files")
    seen = lines_of(sys.executable, "-m", "ruff", "check", "--show-files", ".")
    assert seen is not None
    expected = {(ROOT / name).resolve() for name in tracked if (ROOT / name).exists()}
    assert not expected - {Path(line).resolve() for line in seen}


def test_every_folder_of_tests_is_searched(pytestconfig):
    """Pytest skips folders by name, too."""
    skipped = pytestconfig.getini("norecursedirs")
    for path in (ROOT / "tests").rglob("test_*.py"):
        for folder in path.relative_to(ROOT).parts[:-1]:
            assert not any(fnmatch(folder, pattern) for pattern in skipped), path
