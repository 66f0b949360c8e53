"""Links out of the repository are well formed; the repository's own address is one setting."""

import http.server
import threading
from pathlib import Path

import pytest
import yaml

from docs import links

ROOT = Path(__file__).resolve().parents[1]


def test_all_links_are_well_formed():
    found = links.find_links()
    assert {"https://arxiv.org/abs/2602.02092", links.find_repository()} <= set(found)
    assert not {link: files for link, files in found.items() if links.find_fault(link)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "see [it](https://a.b/c_(d)) and <https://e.f/g>.",
            {"https://a.b/c_(d)", "https://e.f/g"},
        ),
        ("`https://a.b/c`, (https://a.b/d).", {"https://a.b/c", "https://a.b/d"}),
        ("[![x](https://a.b/x.svg)](https://a.b/y)", {"https://a.b/x.svg", "https://a.b/y"}),
        ("http://127.0.0.1:7860 https://localhost/x f'https://{host}/x'", set()),
    ],
)
def test_links_in_a_text(text, expected):
    assert links.read_links(text) == expected


@pytest.mark.parametrize(
    ("link", "word"),
    [
        ("http://a.org/b", "https"),
        ("https://a/b", "server"),
        ("https://a.org//b", "strokes"),
        ("https://a.org/ö", "characters"),
        ("https://a.org/b", ""),
    ],
)
def test_faults(link, word):
    assert word in links.find_fault(link) and bool(word) == bool(links.find_fault(link))


def test_a_server_is_asked_twice_at_most():
    """HEAD, then GET; a place that wants a person is neither right nor wrong."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            status = {"/there": 200, "/shy": 403}.get(self.path, 405)
            self.send_response(status)
            self.end_headers()

        def do_GET(self):
            self.send_response(200 if self.path == "/only_get" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        answers = links.ask_all([f"{at}/{name}" for name in ("there", "only_get", "shy", "gone")])
        server.shutdown()
    told = list(answers.values())
    assert told[:2] == ["ok", "ok"] and told[2] == "not known: status 403"
    assert told[3] == "status 404"


def test_the_address_of_the_repository_is_one_setting():
    address = links.find_repository()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["repository-code"] == address
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        text = path.read_text()
        assert f'REPOSITORY = \\"{address}\\"' in text, f"{path.name}: run make notebooks"
        place = address.removeprefix("https://github.com/")
        assert f"colab.research.google.com/github/{place}/" in text
    known = {"setup.py", "CITATION.cff"}
    assert {
        file for link, files in links.find_links().items() if address in link for file in files
    } <= known
