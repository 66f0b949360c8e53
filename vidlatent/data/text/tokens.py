"""Texts to token numbers, by published vocabularies or by a hash that needs no file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidlatent.data.text.rules import RULES, TextRule
from vidlatent.errors import VidlatentError
from vidlatent.paths import as_path
from vidlatent.registry import did_you_mean

__all__ = [
    "WORDS",
    "TextTokenizer",
    "hash_words",
    "import_tokenizers",
    "load_tokenizer",
    "open_vocabulary",
    "word_tokens",
]

Tokens = tuple[np.ndarray, np.ndarray]
# In the place of a tokenizer's path: words are hashed, and no file is needed.
WORDS = "words"


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
    """Cleans texts as a system does, and converts them to token numbers for its text encoder.

    Attributes:
      encoder: a ``tokenizers.Tokenizer``.
      rule: length and cleaning.
      end, padding: token numbers of ``</s>`` and ``<pad>``.
    """

    encoder: Any
    rule: TextRule
    end: int
    padding: int

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Token numbers and mask, both ``[B, length]`` int32; an empty text is ``</s>`` alone."""
        clean = [self.rule.clean(text) for text in texts]
        found = self.encoder.encode_batch(clean, add_special_tokens=False)
        # One place is kept for the end mark, in texts that are cut too.
        room = self.rule.length - 1
        return _pad([[*one.ids[:room], self.end] for one in found], self.rule.length, self.padding)


def load_tokenizer(system: str, path: str | os.PathLike[str]) -> TextTokenizer:
    """The tokenizer of a system (a key of ``data.text.rules.RULES``) from its ``tokenizer.json``.

    Args:
      system: key of ``RULES``.
      path: the file, or the folder that holds it.

    Raises:
      VidlatentError: the system is unknown; the file is missing, malformed, or has no ``</s>`` or
        ``<pad>``; or ``tokenizers`` is not installed.
    """
    if system not in RULES:
        raise VidlatentError(f"no text rule is called {system!r}: {did_you_mean(system, RULES)}")
    rule = RULES[system]
    encoder = open_vocabulary(
        path, f"the {system} text encoder {rule.network} needs tokenizer.json of {rule.source}."
    )
    marks = {mark: encoder.token_to_id(mark) for mark in ("</s>", "<pad>")}
    if None in marks.values():
        lacking = " and ".join(mark for mark, number in marks.items() if number is None)
        raise VidlatentError(
            f"{os.fspath(path)} has no {lacking}: it is not a T5 tokenizer; take {rule.source}."
        )
    return TextTokenizer(encoder, rule, marks["</s>"], marks["<pad>"])


def open_vocabulary(path: str | os.PathLike[str], wanted: str) -> Any:
    """A ``tokenizers.Tokenizer`` that neither cuts nor pads.

    Args:
      path: ``tokenizer.json``, or the folder that holds it.
      wanted: the end of the error where it is missing: who needs which file.

    Raises:
      VidlatentError: the file is missing or malformed, or ``tokenizers`` is not installed.
    """
    file = as_path(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    if not os.fspath(path) or not file.is_file():
        raise VidlatentError(f"no tokenizer at {os.fspath(path) or 'an empty path'}: {wanted}")
    encoder = import_tokenizers().Tokenizer.from_str(_read_checked(file))
    # The file's own truncation would leave no room for marks, such as ``</s>``.
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def import_tokenizers() -> Any:
    """The package ``tokenizers``.

    Raises:
      VidlatentError: it is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise VidlatentError(
            "reading a tokenizer's file needs the package tokenizers: `pip install tokenizers`."
        ) from error
    return tokenizers


def _read_checked(file: Path) -> str:
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        whole = isinstance(json.loads(text)["model"], dict)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise VidlatentError(f"{file} is no tokenizer.json: it describes no model.")
    return text


def word_tokens(texts: Sequence[str], length: int, buckets: int) -> Tokens:
    """Token numbers by hashing words, and their mask, both ``[B, length]`` int32.

    Words get numbers from 1 to ``buckets - 1``, padding gets 0. A word has the same number in every
    process and release; two words may share one. It serves demos that need no vocabulary file.

    Raises:
      VidlatentError: fewer than 2 buckets.
    """
    if buckets < 2:
        raise VidlatentError(f"{buckets} buckets hold no word: use at least 2.")
    return _pad([hash_words(text, buckets) for text in texts], length, 0)


def hash_words(text: str, buckets: int) -> list[int]:
    """A number from 1 to ``buckets - 1`` for each word; see ``word_tokens``."""
    return [_hash_word(word, buckets) for word in _split_words(text)]


def _split_words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def _hash_word(word: str, buckets: int) -> int:
    # Python's own hash of a text changes from process to process.
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    # 0 is the number of padding.
    return 1 + int.from_bytes(digest, "little") % (buckets - 1)


def _pad(rows: Sequence[Sequence[int]], length: int, padding: int) -> Tokens:
    tokens = np.full((len(rows), length), padding, np.int32)
    mask = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        count = min(len(row), length)
        tokens[i, :count] = row[:count]
        mask[i, :count] = 1
    return tokens, mask
