"""Texts to the token numbers of CLIP: byte pairs of lower-case words between two marks."""

from __future__ import annotations

import dataclasses
import gzip
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidlatent.data.text.tokens import hash_words, import_tokenizers, open_vocabulary
from vidlatent.errors import VidlatentError
from vidlatent.paths import as_path

__all__ = ["ClipTokenizer", "hashing_clip_tokenizer", "load_clip_tokenizer"]

_MARKS = ("<|startoftext|>", "<|endoftext|>")
# As in CLIP's own code: contractions, runs of letters, single digits, runs of anything else.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_MERGES = 49152 - 256 - 2  # of the published list, which goes on
_NEEDS = (
    "CLIP's texts need tokenizer.json of laion/CLIP-ViT-H-14-laion2B-s32B-b79K on huggingface.co, "
    "or bpe_simple_vocab_16e6.txt.gz, which comes with the package open_clip_torch."
)


@dataclasses.dataclass(frozen=True)
class ClipTokenizer:
    """Texts to arrays.

    Attributes:
      split: texts to the numbers of their parts, without marks.
      start, end: numbers of the marks.
      padding: number after the end mark. transformers takes the end mark's, open_clip 0.
      length: of every text, marks included; longer ones are cut before the end mark.
    """

    split: Callable[[Sequence[str]], list[list[int]]]
    start: int
    end: int
    padding: int
    length: int = 77

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Token numbers ``[B, length]`` int32."""
        tokens = np.full((len(texts), self.length), self.padding, np.int32)
        for row, numbers in enumerate(self.split(texts)):
            whole = [self.start, *numbers[: self.length - 2], self.end]
            tokens[row, : len(whole)] = whole
        return tokens


def load_clip_tokenizer(
    path: str | os.PathLike[str], padding: int = -1, length: int = 77
) -> ClipTokenizer:
    """CLIP's tokenizer from a file.

    Args:
      path: ``tokenizer.json`` or its folder, or the list of merges of OpenAI's and open_clip's
        code (``.txt`` or ``.txt.gz``).
      padding: -1: the end mark.
      length: see ``ClipTokenizer``.

    Raises:
      VidlatentError: the file is missing or is no tokenizer of CLIP, or ``tokenizers`` is not
        installed.
    """
    file = os.fspath(path)
    merges = file.endswith((".txt", ".txt.gz"))
    encoder = _open_merges(as_path(file)) if merges else open_vocabulary(file, _NEEDS)
    start, end = map(encoder.token_to_id, _MARKS)
    if start is None or end is None:
        raise VidlatentError(f"{file} has no {' or '.join(_MARKS)}: {_NEEDS}")

    def split(texts: Sequence[str]) -> list[list[int]]:
        return [one.ids for one in encoder.encode_batch(list(texts), add_special_tokens=False)]

    return ClipTokenizer(split, start, end, end if padding < 0 else padding, length)


def hashing_clip_tokenizer(vocab: int, length: int) -> ClipTokenizer:
    """For demos and tests: words by their hash, marks by the two largest numbers."""

    def split(texts: Sequence[str]) -> list[list[int]]:
        return [hash_words(text, vocab - 2) for text in texts]

    return ClipTokenizer(split, vocab - 2, vocab - 1, vocab - 1, length)


def _open_merges(file: Path) -> Any:
    """The ``tokenizers.Tokenizer`` of a list of merges, a line each after a heading."""
    if not file.is_file():
        raise VidlatentError(f"no tokenizer at {file}: {_NEEDS}")
    tokenizers = import_tokenizers()
    try:
        opened = gzip.open if file.suffix == ".gz" else open
        with opened(file, "rt", encoding="utf-8") as lines:
            rows = [line.split() for line in lines.read().strip().split("\n")[1 : _MERGES + 1]]
        merges = [(first, second) for first, second in rows]
    except (OSError, UnicodeDecodeError, EOFError, ValueError) as error:
        raise VidlatentError(f"{file} is no list of merges ({error}): {_NEEDS}") from error
    # Numbers follow the order: bytes, bytes that end a word, merges, marks.
    letters = _byte_letters()
    words = [*letters, *(x + "</w>" for x in letters), *map("".join, merges), *_MARKS]
    model = tokenizers.models.BPE(
        {word: number for number, word in enumerate(words)}, merges, end_of_word_suffix="</w>"
    )
    encoder = tokenizers.Tokenizer(model)
    parts = tokenizers.pre_tokenizers
    encoder.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFC(), tokenizers.normalizers.Lowercase()]
    )
    encoder.pre_tokenizer = parts.Sequence(
        [
            parts.Split(tokenizers.Regex(_WORDS), "removed", invert=True),
            parts.ByteLevel(add_prefix_space=False),
        ]
    )
    return encoder


def _byte_letters() -> list[str]:
    """The letter for each byte in the order of the vocabulary: printable ones, then the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (chr(256 + n) for n in range(256 - len(printable)))
    return [*map(chr, printable), *others]
