"""Links out of the repository: the list, whether they are well formed, and whether they answer.

    python -m docs.links              the list, with the files that have each
    python -m docs.links --check      asks every address; needs the network (make links)

The repository's own address stands in setup.py, once; notebooks and site take it from there.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = (
    "*.md",
    "CITATION.cff",
    "setup.py",
    ".github/**/*.yml",
    "docs/**/*.md",
    "configs/*.py",
    "launch/**/*",
    "notebooks/*.py",  # .ipynb files are made of these
    "tests/reference/README.md",
    "vidlatent/**/*.py",
)
_LINK = re.compile(r"https?://[^\s\"'`<>|\\\]]+")
_LOCAL = ("localhost", "127.0.0.1", "0.0.0.0")
_AGENT = "Mozilla/5.0 (link check of vidlatent)"
_SECONDS = 20.0
_AT_A_TIME = 8
# Answers of places that want to see a browser or a person: neither right nor wrong.
_SHY = (401, 403, 429, 999)


def find_repository() -> str:
    """The address of the repository, as ``setup.py`` has it."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    return re.search(r'^REPOSITORY = "(.+)"$', text, re.MULTILINE)[1]


def find_links() -> dict[str, list[str]]:
    """All addresses of other servers, each with the files that have it."""
    found: dict[str, set[str]] = {}
    for pattern in PLACES:
        for path in filter(Path.is_file, ROOT.glob(pattern)):
            for link in read_links(path.read_text(encoding="utf-8")):
                found.setdefault(link, set()).add(str(path.relative_to(ROOT)))
    return {link: sorted(files) for link, files in sorted(found.items())}


def read_links(text: str) -> set[str]:
    """The addresses in a text, without the marks that end the sentence or bracket around them."""
    links = set()
    for link in _LINK.findall(text):
        # Of brackets only those that were opened outside: `(https://a.b/c_(d))`.
        while link.endswith(")") and link.count(")") > link.count("(") or link[-1:] in ".,;:*_!?":
            link = link[:-1]
        link = link.split(")", 1)[0] if link.count(")") > link.count("(") else link
        filled_in = {"{", "}", "$"} & set(link)  # by a program
        if not filled_in and urllib.parse.urlsplit(link).hostname not in (None, *_LOCAL):
            links.add(link)
    return links


def find_fault(link: str) -> str:
    """What is wrong with an address as it is written; '' for nothing."""
    parts = urllib.parse.urlsplit(link)
    if parts.scheme != "https":
        return "no https"
    if not re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc):
        return f"{parts.netloc!r} is no name of a server"
    if "//" in parts.path:
        return "two strokes in a row"
    if not link.isascii():
        return "characters that addresses do not have"
    return ""


def ask(link: str) -> str:
    """What a server answers: ``ok``, ``not known: ...`` or what is wrong."""
    reason = ""
    for method in ("HEAD", "GET"):  # some servers answer only the second
        request = urllib.request.Request(link, method=method, headers={"User-Agent": _AGENT})
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS):
                return "ok"
        except urllib.error.HTTPError as error:
            reason = f"status {error.code}"
            if error.code in _SHY:
                return f"not known: {reason}"
        except (OSError, ValueError) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())[:100]
    return reason


def ask_all(links: Iterable[str]) -> dict[str, str]:
    """``ask`` for each, several at a time."""
    links = list(links)
    with concurrent.futures.ThreadPoolExecutor(_AT_A_TIME) as pool:
        return dict(zip(links, pool.map(ask, links), strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the list; the exit status is 1 if a link is malformed or leads nowhere."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.links",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="ask every address")
    options = parser.parse_args(arguments)
    links = find_links()
    faults = {link: find_fault(link) for link in links}
    sound = [link for link in links if not faults[link]]
    answers = ask_all(sound) if options.check else dict.fromkeys(sound, "")
    bad = 0
    for link, files in links.items():
        told = faults[link] or answers[link]
        bad += bool(faults[link]) or not told.startswith(("ok", "not known")) and options.check
        print(f"{told + '  ' if told else ''}{link}  ({', '.join(files)})")
    print(
        f"{len(links)} links, {bad} of them wrong" + ("" if options.check else "; none was asked")
    )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
