"""The text that VideoAlign reads: an instruction in a chat, with the video, the prompt and scores.

Published scores need the published instruction, which is not part of this project: whoever has it
names it by ``--template=FILE`` when the weights are converted, and its token numbers are stored
beside them. ``INSTRUCTION`` is a wording of our own for rewards that are trained here.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.data.text.captions import read_text
from vidlatent.data.text.tokens import WORDS, hash_words, open_vocabulary
from vidlatent.errors import VidlatentError
from vidlatent.files import read_json
from vidlatent.models.rewards.videoalign.model import VideoAlign
from vidlatent.weights.safetensors import load_safetensors

__all__ = [
    "INSTRUCTION",
    "Encoder",
    "Template",
    "encode_prompts",
    "fill_template",
    "load_encoder",
    "load_template",
    "make_template",
    "read_template",
]

_VIDEO, _PICTURE = "<|video_pad|>", "<|image_pad|>"
_SCORES = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
# Qwen2's chat, as its model was trained with it.
_BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
_SHOWN = "<|vision_start|>{}<|vision_end|>"
_AFTER = "<|im_end|>\n<|im_start|>assistant\n"
_STORED = ("template.head", "template.tail")  # names in a weights file
_PROMPT = re.compile(r"\{(?:text_)?prompt\}")

INSTRUCTION = (
    "\nJudge the video above by three questions, one after another.\n"
    "First, how good does every frame look: is it sharp, well lit, free of noise and of broken "
    f"shapes, and pleasant to see? Visual quality: {_SCORES[0]}\n"
    "Second, how good is the movement: is it smooth, does it obey what we know of bodies and "
    f"things, and do they stay what they are? Motion quality: {_SCORES[1]}\n"
    "Third, how well does the video show what this description asks for: {prompt}\n"
    "Do all things, deeds, places and styles in it appear as they are described? Text alignment: "
    f"{_SCORES[2]}\n"
)


@dataclasses.dataclass(frozen=True)
class Template:
    """Token numbers before and after the prompt.

    Attributes:
      head: with one token in the place of the whole video, and of the picture if it has one.
      tail: what follows the prompt.
    """

    head: tuple[int, ...]
    tail: tuple[int, ...]

    def check(self, module: VideoAlign, source: str) -> Template:
        """Itself.

        Args:
          module: whose numbers of special tokens count.
          source: where the template comes from, for the error.

        Raises:
          VidlatentError: the video's token does not stand once in the head, or the scores' not once
            each behind it, in their order; a picture's stands elsewhere than before the video; or a
            number is beyond the vocabulary.
        """
        numbers = (*self.head, *self.tail)
        special = (module.video_token, *module.score_tokens)
        known = {*special, module.picture_token}
        found = [i for i in numbers if i in known]
        if found[:1] == [module.picture_token]:
            found = found[1:]
        if found != list(special) or special[0] not in self.head:
            raise VidlatentError(
                f"{source} is no template of VideoAlign: it must hold the token of the video "
                f"({special[0]}) before the prompt and behind it, in this order and once each, "
                f"those of VQ, MQ and TA ({', '.join(map(str, special[1:]))}); that of a picture "
                f"({module.picture_token}) may stand once, before the video."
            )
        if not all(0 <= i < module.language.vocab for i in numbers):
            raise VidlatentError(
                f"{source} holds token numbers beyond the vocabulary of {module.language.vocab}: "
                "it was made with another tokenizer."
            )
        return self

    def tensors(self) -> dict[str, np.ndarray]:
        """As they are stored beside the weights."""
        numbers = (self.head, self.tail)
        return {name: np.array(x, np.int32) for name, x in zip(_STORED, numbers, strict=True)}


def load_template(path: str | os.PathLike[str]) -> Template | None:
    """The template that is stored in a weights file; None where there is none.

    Raises:
      VidlatentError: a ``.safetensors`` file that is missing or damaged.
    """
    if not os.fspath(path).endswith(".safetensors"):
        return None
    found = load_safetensors(path, _STORED)
    if len(found) < len(_STORED):
        return None
    head, tail = (tuple(found[name].tolist()) for name in _STORED)
    return Template(head, tail)


class Encoder(Protocol):
    """Texts to token numbers; a special token's text is its number."""

    def __call__(self, text: str) -> list[int]:
        """The numbers of a text."""
        ...


def load_encoder(path: str | os.PathLike[str], module: VideoAlign) -> Encoder:
    """The tokenizer of the reward.

    Args:
      path: ``tokenizer.json`` (of the release), or the folder that holds it; ``'words'`` hashes
        words and needs no file, for small networks.
      module: whose numbers of special tokens it must have.

    Raises:
      VidlatentError: no such file, one that is no tokenizer, or another model's.
    """
    special = {_VIDEO: module.video_token, _PICTURE: module.picture_token}
    special |= dict(zip(_SCORES, module.score_tokens, strict=True))
    if os.fspath(path) == WORDS:
        return _WordEncoder(special, min(special.values()))
    source = "tokenizer/tokenizer.json of the released VideoAlign"
    vocabulary = open_vocabulary(path, f"VideoAlign reads texts with {source}.")
    wrong = [text for text, i in special.items() if vocabulary.token_to_id(text) != i]
    if wrong:
        raise VidlatentError(
            f"{os.fspath(path)} is not VideoAlign's tokenizer: {wrong[0]} is number "
            f"{vocabulary.token_to_id(wrong[0])} there, not {special[wrong[0]]}; take {source}."
        )
    return lambda text: list(vocabulary.encode(text, add_special_tokens=False).ids)


class _WordEncoder:
    """Hashed words below the special numbers."""

    def __init__(self, special: Mapping[str, int], buckets: int):
        self._special, self._buckets = special, buckets
        self._cut = re.compile(f"({'|'.join(map(re.escape, special))})")

    def __call__(self, text: str) -> list[int]:
        numbers: list[int] = []
        for part in self._cut.split(text):
            if part in self._special:
                numbers.append(self._special[part])
            else:
                numbers.extend(hash_words(part, self._buckets))
        return numbers


def make_template(
    instruction: str, encode: Encoder, source: str = "the template", *, picture: bool = False
) -> Template:
    """The template of an instruction in a chat.

    Args:
      instruction: text with ``{prompt}`` (or ``{text_prompt}``) once, after a space and at the end
        of its line, and the tokens of the scores.
      encode: of ``load_encoder``.
      source: what the errors call it.
      picture: show a picture before the video, the given first frame.

    Raises:
      VidlatentError: the place of the prompt is missing, stands twice, or is one where its tokens
        would depend on what stands beside it.
    """
    places = list(_PROMPT.finditer(instruction))
    if len(places) != 1:
        raise VidlatentError(
            f"{source} names the place of the prompt, {{prompt}}, {len(places)} times: once is "
            "needed."
        )
    before, after = instruction[: places[0].start()], instruction[places[0].end() :]
    # Tokens hold the space in front of a word, and a full stop together with the line's end, so
    # these belong to the prompt. What follows must not begin with another such end.
    whole = re.search(r"\S $", before) and re.match(r"\n\S", after)
    if not whole:
        raise VidlatentError(
            f"{source}: {{prompt}} must stand after a word and a single space and at the end of "
            "its line, with a word at the start of the next."
        )
    shown = "".join(map(_SHOWN.format, (_PICTURE, _VIDEO) if picture else (_VIDEO,)))
    return Template(
        tuple(encode(_BEFORE + shown + before.removesuffix(" "))),
        tuple(encode(after.removeprefix("\n") + _AFTER)),
    )


def read_template(
    path: str | os.PathLike[str], module: VideoAlign, tokenizer: str | os.PathLike[str] = ""
) -> Template:
    """The template of a file.

    Args:
      path: the instruction as a text in UTF-8, kept to the last space (``make_template``); or a
        ``.json`` object with its token numbers, ``head_ids`` and ``tail_ids``.
      module: which it is for.
      tokenizer: as for ``load_encoder``; only a text needs it.

    Raises:
      VidlatentError: no such file, or it is no template.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise VidlatentError(f"--template={path}: there is no such file.")
    if path.endswith(".json"):
        ids = read_json(path, "give token numbers as head_ids and tail_ids")
        parts = [ids.get(name) for name in ("head_ids", "tail_ids")]
        if not all(isinstance(p, list) and all(type(i) is int for i in p) for p in parts):
            raise VidlatentError(
                f"{path} is no template: it needs head_ids and tail_ids, lists of token numbers."
            )
        template = Template(*map(tuple, parts))
    else:
        template = make_template(read_text(path), load_encoder(tokenizer, module), path)
    return template.check(module, path)


def encode_prompts(
    prompts: Sequence[str], encode: Encoder, module: VideoAlign, bucket: int
) -> dict[str, np.ndarray]:
    """``tokens [B, P]`` of the prompts and their ``length [B]``, both int32.

    Args:
      prompts: one for each video.
      encode: of ``load_encoder``.
      module: whose special tokens they must not hold.
      bucket: P is a multiple of it, so that few programs are compiled.

    Raises:
      VidlatentError: a prompt holds a special token, such as that of a score.
    """
    special = {module.video_token, module.picture_token, *module.score_tokens}
    # As trained: not stripped, with the space before it and the line's end.
    rows = [encode(f" {prompt}\n") for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if special & set(row):
            raise VidlatentError(
                f"the prompt {prompt!r} holds a special token of VideoAlign ({_VIDEO}, "
                f"{_PICTURE} or {', '.join(_SCORES)}): take it out."
            )
    length = np.array([len(row) for row in rows], np.int32)
    width = max(1, -(-int(length.max()) // bucket)) * bucket
    tokens = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return {"tokens": tokens, "length": length}


def fill_template(
    template: Template, prompt: Mapping[str, Any], counts: Mapping[int, int]
) -> jax.Array:
    """Token numbers ``[B, L]`` with all tokens of the video, padded on the right.

    Args:
      template: what stands around video and prompt.
      prompt: of ``encode_prompts``.
      counts: token of the video (and of the picture) -> how many of it, the same for all samples.
    """
    head = [number for token in template.head for number in [token] * counts.get(token, 1)]
    tokens, length = jnp.asarray(prompt["tokens"]), jnp.asarray(prompt["length"])[:, None]
    batch, room = tokens.shape
    # The tail follows each prompt at once, so it begins at another place in every sample.
    behind = jnp.arange(room + len(template.tail)) - length
    text = jnp.pad(tokens, ((0, 0), (0, len(template.tail))))
    tail = jnp.array(template.tail, jnp.int32)[jnp.clip(behind, 0, len(template.tail) - 1)]
    # Numbers of the padding do not matter: no token looks behind itself.
    rest = jnp.where(behind < 0, text, jnp.where(behind < len(template.tail), tail, 0))
    return jnp.concatenate([jnp.tile(jnp.array(head, jnp.int32), (batch, 1)), rest], axis=1)
