"""The site: links of the repository's pages as links of the site, and a build without a warning."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the site is built by the packages of the extra 'docs'")

from docs.links import find_repository

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "docs" / "site"


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", SITE / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("target", "folder", "expected"),
    [
        ("data.md#captions", "docs", "data.md#captions"),
        ("docs/data.md", "", "data.md"),
        ("../README.md#install", "docs", "index.md#install"),
        ("../measurements.md", "docs/experiments", "../measurements.md"),
        ("growth.png", "docs/experiments", "growth.png"),
        ("../configs/fsae.py", "docs", "REPOSITORY/blob/main/configs/fsae.py"),
        ("tests/reference", "", "REPOSITORY/tree/main/tests/reference"),
        ("https://arxiv.org/abs/2602.02092", "docs", "https://arxiv.org/abs/2602.02092"),
        ("#here", "docs", "#here"),
    ],
)
def test_links(hooks, target, folder, expected):
    found = hooks.turn_link(target, folder)
    assert found == expected.replace("REPOSITORY", find_repository())


def test_a_page_that_the_menu_does_not_name_follows_at_its_end(hooks):
    config = type("Config", (), {"nav": [{"A": ["index.md", {"B": "data.md"}]}]})
    nav = hooks.on_config(config).nav
    assert "glossary.md" in nav[-1]["More"] and "data.md" not in nav[-1]["More"]
    assert "experiments/growth.md" in nav[-1]["More"]


def build(folder, *options):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", folder / "mkdocs.yml"]
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path):
    done = build(SITE, "-d", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    api = (tmp_path / "out" / "api" / "index.html").read_text()
    assert "A video of any length and size" in api  # of Codec.encode's docstring
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {page.parent.name for page in (tmp_path / "out").rglob("index.html")}
    for page in (tmp_path / "out").rglob("index.html"):
        foreign = r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]+)"'
        assert not re.findall(foreign, page.read_text()), f"{page} asks another server"


@pytest.mark.slow
def test_a_broken_link_is_an_error(tmp_path):
    """In a copy of the pages, since a link must lead nowhere."""
    import shutil

    for name in ("docs", "notebooks", "vidlatent"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for page in (*ROOT.glob("*.md"), ROOT / "setup.py"):
        shutil.copy(page, tmp_path)
    with (tmp_path / "docs" / "glossary.md").open("a") as page:
        page.write("\n[nowhere](data.md#nowhere)\n")
    done = build(tmp_path / "docs" / "site", "-d", tmp_path / "out")
    assert done.returncode != 0 and "nowhere" in done.stderr
