"""Networks of ``--mode=encode``: videos to latents, captions and frames to their encoders' states.

They run on this process's own devices. Processes divide the shards; no array spans processes.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.codec.batches import BatchEncoder
from vidlatent.codec.options import CodecOptions, plan_codec
from vidlatent.data.text.rules import RULES
from vidlatent.data.text.tokens import WORDS, load_tokenizer, word_tokens
from vidlatent.encode.plan import EncodeOptions
from vidlatent.errors import VidlatentError
from vidlatent.latents.pixels import from_pixels
from vidlatent.models.load import spec_in_chunks
from vidlatent.models.pretrained import NETWORKS
from vidlatent.models.pretrained.load import load_network
from vidlatent.parallel.sharding import replicated
from vidlatent.registry import did_you_mean
from vidlatent.spec import LatentSpec

__all__ = [
    "ImageTokens",
    "LatentEncoder",
    "TextStates",
    "choose_chunks",
    "find_weights",
    "make_window_key",
    "make_window_names",
]

_KEPT_BYTES = 256 << 20  # cache of text states, for captions that occur again


def make_window_names(clips: Sequence[str], firsts: Sequence[int]) -> np.ndarray:
    """uint32 ``[B, 2]``: hash of each clip's name, and the window's first frame."""
    # crc32 is the same in all processes and runs; Python salts its own hash of a string.
    names = [(zlib.crc32(clip.encode()), first) for clip, first in zip(clips, firsts, strict=True)]
    return np.array(names, np.uint32)


def make_window_key(seed: int, name: jax.Array, number: int) -> jax.Array:
    """Random key of draw ``number`` of a window; it does not depend on the rest of the batch.

    Args:
      seed: of the set.
      name: ``[2]``, a row of ``make_window_names``.
      number: of the draw.
    """
    key = jax.random.key(seed)
    for part in (name[0], name[1], number):
        key = jax.random.fold_in(key, part)
    return key


class LatentEncoder:
    """Videos -> latents, cut in time and space as the codec cuts them.

    Args:
      model: the tokenizer.
      params: its parameters, on ``mesh``.
      mesh: its devices divide the batch.
      draws: number of draws from the posterior of each window; 0: the mean.
      seed: of the draws. The noise of a draw depends only on it, the clip's name, the window's
        first frame and the number of the draw.
      options: ``config.codec``, for the latents that are wanted (``choose_chunks``).

    Attributes:
      cut: as of ``FrameCoder``.
    """

    def __init__(
        self,
        model: Any,
        params: Any,
        mesh: Mesh,
        draws: int,
        seed: int,
        options: CodecOptions,
    ):
        self.model = model
        self._encode = BatchEncoder(model, params, mesh, options)
        self.cut = self._encode.cut
        self.describe, self.cuts = self._encode.describe, self._encode.cuts

        def make_keys(names):
            make = jax.vmap(make_window_key, (None, 0, None))
            # From 1 on: draw 0 is that of the content frame (``encode.content``).
            return jnp.stack([make(seed, names, 1 + k) for k in range(draws)], axis=1)

        self._make_keys = jax.jit(make_keys) if draws else None

    def __call__(self, video: np.ndarray, clips: Sequence[str], firsts: Sequence[int]) -> jax.Array:
        """uint8 ``[B, T, H, W, 3]`` -> float32 ``[B, n, t, h, w, c]``: n draws, or 1 mean.

        Raises:
          VidlatentError: draws of a tokenizer that has no variance.
        """
        names = make_window_names(clips, firsts)
        return self._encode(video, self._make_keys(names) if self._make_keys else None)

    def content(self, video: np.ndarray) -> np.ndarray | None:
        """Frames ``[n, H, W, 3]`` of a window ``[T, H, W, 3]`` that its decoder reads, or None."""
        if self.model.condition_kind == "none":
            return None
        return np.asarray(self.model.apply({}, video[None], method="pick_content_frames"))


def choose_chunks(config: ConfigDict, model: Any) -> tuple[LatentSpec, CodecOptions]:
    """What ``config.encode.chunks`` and ``config.codec`` come to for ``config.data.buckets``.

    Returns:
      The spec of the latents, and how clips are cut to make them. Chunks are those of
      ``encode.chunks``, or else of ``codec.time='chunks'`` if a bucket is longer than one of them.

    Raises:
      VidlatentError: as ``spec_in_chunks``.
    """
    options = CodecOptions.of(**config.codec)
    chunks, key = tuple(config.encode.chunks), "config.encode.chunks"
    # A decoder that looks at frames of the clip cannot have chunks in a set.
    if not chunks and options.time == "chunks" and model.condition_kind == "none":
        key, asked = "config.codec.chunk_frames", plan_codec(options, model).chunks or ()
        longest = max((row[0] for row in config.data.buckets if len(row) == 4), default=0)
        chunks = asked if asked and longest > asked[0] else ()
    spec = spec_in_chunks(model, chunks, key)
    return spec, options.for_latents(spec)


class TextStates:
    """Captions -> states of a text encoder.

    Args:
      options: ``text`` names the system of ``text.rules.RULES`` whose generator reads the states;
        ``text_network`` replaces that system's network; ``tokenizer`` is the path of a
        ``tokenizer.json``, or ``'words'``, which hashes words, for networks with random weights.
      networks: ``config.networks``.
      mesh: where it runs.
      dtype: that it computes in.

    Attributes:
      length: most tokens of a text.
      label: describes the network in the set's header.

    Raises:
      VidlatentError: a name is unknown, or weights or tokenizer are missing.
    """

    def __init__(self, options: EncodeOptions, networks: Mapping[str, str], mesh: Mesh, dtype: Any):
        if options.text not in RULES:
            hint = did_you_mean(options.text, RULES)
            raise VidlatentError(f"config.encode.text={options.text!r} is no text rule: {hint}")
        rule = RULES[options.text]
        name = options.text_network or rule.network
        network = load_network(name, find_weights(networks, name), dtype)
        self.length = rule.length
        if options.tokenizer == WORDS:
            vocabulary = NETWORKS.get(name).module(dtype=dtype).vocab
            self._tokens = lambda texts: word_tokens(texts, rule.length, vocabulary)
        else:
            self._tokens = load_tokenizer(options.text, options.tokenizer)
        self.label = f"{options.text}: {network.label}, {rule.length} tokens"
        self._whole = replicated(mesh)
        self._params = jax.device_put(network.params, self._whole)
        self._apply = jax.jit(network.apply, out_shardings=self._whole)
        self._known: dict[str, np.ndarray] = {}
        self._width = 0

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Float32 states ``[n, D]`` of each caption's ``n`` tokens; an empty caption has n = 0."""
        # Sorted, because the order of a set of strings changes from run to run.
        new = sorted({caption for caption in captions if caption not in self._known})
        if new:
            # Padded to one shape, so that it is compiled once, however many are new.
            texts = new + [""] * (len(captions) - len(new))
            tokens, mask = jax.device_put(self._tokens(texts), self._whole)
            states = np.asarray(self._apply(self._params, tokens, mask), np.float32)
            lengths = np.asarray(mask).sum(axis=1)
            self._width = states.shape[-1]
            if len(self._known) * self.length * self._width * 4 > _KEPT_BYTES:
                # Keep what this call returns, and start collecting anew.
                self._known = {text: self._known[text] for text in captions if text in self._known}
            for text, row, length in zip(texts, states, lengths, strict=True):
                # An empty caption has no states. A copy, since a view would keep the padded batch.
                self._known[text] = row[: length if text else 0].copy()
        return [self._known[caption] for caption in captions]

    def empty(self) -> np.ndarray:
        """Float32 states ``[n, D]`` of the empty text: those of its end token, if it has one."""
        tokens, mask = jax.device_put(self._tokens([""]), self._whole)
        states = np.asarray(self._apply(self._params, tokens, mask), np.float32)
        return states[0, : int(np.asarray(mask).sum())].copy()


class ImageTokens:
    """Frames -> tokens of the image encoder ``config.encode.image``; see ``TextStates``."""

    def __init__(self, options: EncodeOptions, networks: Mapping[str, str], mesh: Mesh, dtype: Any):
        network = load_network(options.image, find_weights(networks, options.image), dtype)
        self.label = network.label
        self._whole = replicated(mesh)
        self._params = jax.device_put(network.params, self._whole)
        self._apply = jax.jit(
            lambda params, frames: network.apply(params, from_pixels(frames)),
            out_shardings=self._whole,
        )

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """uint8 ``[B, H, W, 3]`` -> float32 ``[B, I, D]``; grids of tokens are flattened."""
        frames = jax.device_put(frames, self._whole)
        tokens = np.asarray(self._apply(self._params, frames), np.float32)
        return tokens.reshape(len(tokens), -1, tokens.shape[-1])


def find_weights(networks: Mapping[str, str], name: str) -> str:
    """Path of a network's weights in ``config.networks``.

    Raises:
      VidlatentError: the name is unknown.
    """
    if name not in networks:
        raise VidlatentError(f"no network is called {name!r}: {did_you_mean(name, networks)}")
    return networks[name]
