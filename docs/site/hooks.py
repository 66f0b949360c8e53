"""What the site adds to the pages: the README as its start, and links to files of the repository.

Pages are written to be read in the repository, where ``../configs/fsae.py`` is a link. On the site
such links lead to the repository's address, which setup.py names.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the program mkdocs does not look there

from docs.links import find_repository  # noqa: E402

# Pages of the repository's root, and what they are called here.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def turn_link(target: str, folder: str) -> str:
    """A link of a page in ``folder`` of the repository as a link of the site.

    Args:
      target: as it is written.
      folder: of the page, relative to the root: ``"docs/experiments"``; ``""`` for the root.
    """
    if "://" in target or target.startswith("#"):
        return target
    name, sign, anchor = target.partition("#")
    place = posixpath.normpath(posixpath.join(folder, name))
    here = "" if folder in ("", "docs") else folder.removeprefix("docs/")
    if place in OUTSIDE:
        place = f"docs/{OUTSIDE[place]}"
    if place.startswith("docs/") and not place.endswith(".py"):
        return posixpath.relpath(place.removeprefix("docs/"), here or ".") + sign + anchor
    kind = "tree" if (ROOT / place).is_dir() else "blob"
    return f"{find_repository()}/{kind}/main/{place}{sign}{anchor}"


def turn_links(text: str, folder: str) -> str:
    """All links of a page."""
    return _LINK.sub(lambda found: found[1] + turn_link(found[2], folder) + found[3], text)


def find_named(nav: Any) -> set[str]:
    """Pages that a menu names."""
    if isinstance(nav, str):
        return {nav}
    parts = nav.values() if isinstance(nav, dict) else nav
    return set().union(*map(find_named, parts))


def on_config(config: Any) -> Any:
    """Put pages that the menu does not name yet at its end."""
    docs = ROOT / "docs"
    there = {page.relative_to(docs).as_posix() for page in docs.rglob("*.md")}
    if more := sorted(there - find_named(config.nav)):
        config.nav.append({"More": more})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the root."""
    for name, here in OUTSIDE.items():
        text = turn_links((ROOT / name).read_text(), "")
        files.append(File.generated(config, here, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn the links of the pages of ``docs/``."""
    if page.file.src_uri in OUTSIDE.values():
        return markdown
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri)).rstrip("/")
    return turn_links(markdown, folder)
