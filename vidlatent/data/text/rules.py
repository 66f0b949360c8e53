"""How each system prepares texts for its text encoder: cleaning, length and vocabulary.

All functions are pure. ``ftfy`` repairs wrongly decoded text, as in the published code.
"""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Callable
from html.entities import html5, name2codepoint
from html.parser import HTMLParser
from urllib.parse import unquote_plus

from vidlatent.errors import VidlatentError

__all__ = [
    "RULES",
    "TextRule",
    "clean_basic",
    "clean_caption",
    "clean_caption_twice",
    "clean_prompt",
    "text_of_markup",
]


def clean_basic(text: str) -> str:
    """Repair Unicode, resolve HTML references twice (``&amp;lt;`` is ``<``), strip the ends.

    Raises:
      VidlatentError: ``ftfy`` is not installed.
    """
    try:
        import ftfy
    except ImportError as error:
        raise VidlatentError(
            "cleaning texts needs the package ftfy: `pip install ftfy`."
        ) from error
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def clean_prompt(text: str) -> str:
    """Wan's cleaning: ``clean_basic``, then each run of white space becomes one space."""
    return re.sub(r"\s+", " ", clean_basic(text)).strip()


class _Markup(HTMLParser):
    """Collects the text that a page would show, without that of the ``HIDDEN`` elements."""

    HIDDEN = frozenset({"script", "style", "template", "rt", "rp"})

    def __init__(self):
        super().__init__(convert_charrefs=False)
        self.parts: list[str] = []
        self.hidden: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag in self.HIDDEN:
            self.hidden.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if self.hidden and tag == self.hidden[-1]:
            self.hidden.pop()

    def handle_data(self, data):
        if not self.hidden:
            self.parts.append(data)

    def handle_charref(self, name):
        self.handle_data(html.unescape(f"&#{name};"))

    def handle_entityref(self, name):
        known = name2codepoint.get(name)
        self.handle_data(chr(known) if known else html5.get(name + ";", f"&{name}"))

    def unknown_decl(self, data):
        if data.upper().startswith("CDATA["):
            self.handle_data(data[len("CDATA[") :])


def text_of_markup(text: str) -> str:
    """The text of HTML without tags, comments and scripts, as BeautifulSoup's ``.text``.

    References are resolved once.
    """
    parser = _Markup()
    parser.feed(text)
    parser.close()
    return "".join(parser.parts)


_HOSTS = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
_SUFFIXES = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
# Inside brackets a hyphen makes a range. The first one stands for itself and is escaped, the one
# after \u2010 does make a range.
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
).replace("\u002d", r"\-", 1)

Rules = tuple[tuple[re.Pattern[str], str], ...]


def _compile_rules(*rows: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rows)


# The published rules in the published order, mistakes included, because the text encoder's inputs
# in training were cleaned by exactly these.
_ADDRESSES = _compile_rules(
    ("<person>", "person"),
    (rf"\b((?:https?:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_HOSTS}))", ""),
    (rf"\b((?:www:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_HOSTS}))", ""),
)
_SIGNS = _compile_rules(
    (r"@[\w\d]+\b", ""),  # names of users
    # CJK strokes, phonetic extensions, enclosed and compatibility forms, ideographs, hexagrams.
    ("[\u31c0-\u31ef]+", ""),
    ("[\u31f0-\u31ff]+", ""),
    ("[\u3200-\u32ff]+", ""),
    ("[\u3300-\u33ff]+", ""),
    ("[\u3400-\u4dbf]+", ""),
    ("[\u4dc0-\u4dff]+", ""),
    ("[\u4e00-\u9fff]+", ""),
    (f"[{_DASHES}]+", "-"),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # network addresses
    (r"\d:\d\d\s+$", ""),  # article numbers
    (r"\\n", " "),  # a backslash and an n
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.{_SUFFIXES}", ""),
    (r"[\"\']{2,}", '"'),
    (r"[\.]{2,}", " "),
    (
        "[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~)(\\]\\[}{|\\\\/*]+",
        " ",
    ),
    (r"\s+\.\s+", " "),
)
_JOINED = re.compile(r"[-_]")
_WORDS = _compile_rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # article codes
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_SUFFIXES}(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    ("\\b\\d+\\.?\\d*[x\u0445\u00d7]\\d+\\.?\\d*\\b", ""),  # sizes; the second x is Cyrillic
    (r"\b\s+\:\s+", ": "),
    (r"(\D[,\./])\b", r"\1 "),
    (r"\s+", " "),
    # As published, the text is not stripped before these, so they fail where a space is left at
    # the end.
    (r"^[\"\']([\w\W]+)[\"\']$", r"\1"),
    (r"^[\'\_,\-\:;]", ""),
    (r"[\'\_,\-\:\-\+]$", ""),
    (r"^\.\S+$", ""),
)


def clean_caption(text: str) -> str:
    """One pass of DeepFloyd's cleaning of web captions, as used by PixArt and Reducio.

    It lowers the case, removes addresses, tags, ideographs, codes, file names and shopping phrases,
    and replaces typographic quotes and dashes by plain ones.
    """
    text = _apply(_ADDRESSES, unquote_plus(str(text)).strip().lower())
    text = _apply(_SIGNS, text_of_markup(text))
    if len(_JOINED.findall(text)) > 3:  # this-is-my-cute-cat
        text = _JOINED.sub(" ", text)
    return _apply(_WORDS, clean_basic(text)).strip()


def clean_caption_twice(text: str) -> str:
    """``clean_caption`` applied twice, which is the text preprocessing of PixArt and Reducio."""
    return clean_caption(clean_caption(text))


def _apply(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _keep_text(text: str) -> str:
    return text


@dataclasses.dataclass(frozen=True)
class TextRule:
    """How a system prepares texts for its text encoder.

    Attributes:
      length: number of tokens, end mark included; longer texts are cut, shorter ones padded.
      clean: cleaning function, applied to each text first.
      network: the text encoder, a name of ``models.pretrained.NETWORKS``.
      source: where the encoder's ``tokenizer.json`` is published.
    """

    length: int
    clean: Callable[[str], str]
    network: str
    source: str


_T5 = "google/flan-t5-xxl on huggingface.co (all of T5 v1.0, v1.1 and Flan share it)"
RULES = {
    "wan": TextRule(512, clean_prompt, "umt5_xxl", "google/umt5-xxl on huggingface.co"),
    "reducio": TextRule(120, clean_caption_twice, "t5_v11_xxl", _T5),
    # As in CogVideoX, whose architecture ProMAG's generator uses.
    "promag": TextRule(226, _keep_text, "t5_v11_xxl", _T5),
}
