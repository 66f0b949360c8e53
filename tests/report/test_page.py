"""The report page: self-contained, escaped, complete."""

import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from vidlatent.errors import VidlatentError
from vidlatent.report.page import write_report


def png(shade):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), shade, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced; collects addresses and text."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self, source):
        super().__init__()
        self.open, self.addresses, self.tags, self.text = [], [], [], ""
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for name, v in attributes if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def write(tmp_path, **kwargs):
    path = tmp_path / "deep" / "report.html"
    write_report(path, **{"title": "A run", "scores": {"psnr": 24.3123, "clips": 12}, **kwargs})
    source = path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return source, Page(source)


def test_a_full_page(tmp_path):
    source, page = write(
        tmp_path,
        subtitle="12 clips",
        tables={
            "By clip": [
                {"clip": "a.mp4", "psnr": 20.5, "ssim": np.float32(0.75), "bad": None},
                {"clip": "b.mp4", "psnr": 1234.5, "ssim": float("nan")},
            ],
            "By frame": [{"frame": i, "psnr": 20.0 + i} for i in range(60)],
            "Empty": [],
        },
        sheets=[("first", png(3)), ("second", png(200))],
        curves={
            "train/loss": (list(range(2000)), list(np.linspace(9, 0.01, 2000))),
            "val/psnr": ([0, 10, 20], [20, None, float("inf")]),
            "none of it": ([0], [None]),
        },
        config={"model": {"name": "fsae", "widths": (64, 128)}, "seed": 3},
        command="python -m vidlatent.main --mode=eval",
    )
    for words in (
        "A run",
        "12 clips",
        "24.31",
        "dB",
        "a.mp4",
        "20.5",
        "1,234.5",
        "0.7500",
        "not a number",
        "20 more rows",
        "Nothing to show",
        "model.widths",
        "(64, 128)",
        "python -m vidlatent.main --mode=eval",
        "train/loss",
        "jax",
        "CPU cores",
    ):
        assert words in page.text, words
    assert "none of it" not in page.text
    assert page.tags.count("svg") == 3 and page.tags.count("img") == 2
    assert len(source) < 300_000, "long curves are thinned"


def test_nothing_is_fetched(tmp_path):
    source, page = write(tmp_path, sheets=[("x", png(1))], curves={"a": ([0, 1], [1, 2])})
    assert page.addresses and all(a.startswith(("data:", "#")) for a in page.addresses)
    assert "<script" not in source and "@import" not in source
    without_namespaces = re.sub(
        r'xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>', "", source, flags=re.S
    )
    without_namespaces = re.sub(r"<!DOCTYPE[^>]*>", "", without_namespaces)
    assert "http" not in without_namespaces


def test_texts_are_escaped(tmp_path):
    nasty = "<img src=x onerror=alert(1)>&\"'"
    source, page = write(
        tmp_path,
        title=nasty,
        subtitle=nasty,
        scores={nasty: nasty},
        tables={nasty: [{nasty: nasty}]},
        sheets=[(nasty, png(0))],
        curves={nasty: ([0, 1], [1.0, 2.0])},
        config={nasty: nasty},
        command=nasty,
    )
    assert "<img src=x" not in source and page.tags.count("img") == 1
    assert page.text.count("onerror") >= 9


def test_moving_pictures(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    gif = io.BytesIO()
    frames[0].save(gif, format="GIF", save_all=True, append_images=frames[1:])
    source, page = write(
        tmp_path, sheets=[("gif", gif.getvalue()), ("mp4", b"\0\0\0\x18ftypisom....")]
    )
    assert "data:image/gif" in source and "data:video/mp4" in source and "video" in page.tags
    with pytest.raises(VidlatentError, match="neither PNG"):
        write(tmp_path, sheets=[("text", b"hello")])


def test_default_command_and_replacement(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["/somewhere/vidlatent/main.py", "--mode=eval", "--workdir=a b"]
    )
    write(tmp_path, title="old")
    _, page = write(tmp_path)
    assert "python -m vidlatent.main --mode=eval '--workdir=a b'" in page.text
    assert "old" not in page.text


def test_unwritable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VidlatentError, match="cannot write the report"):
        write_report(tmp_path / "file" / "r.html", title="", scores={})
