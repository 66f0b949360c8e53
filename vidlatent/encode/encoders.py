"""Networks of ``--mode=encode``: videos to latents, captions and frames to their encoders' states.

They run on this process's own devices. Processes divide the shards; no array spans processes.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vidlatent.data.text.rules import RULES
from vidlatent.data.text.tokens import load_tokenizer, word_tokens
from vidlatent.encode.plan import EncodeOptions
from vidlatent.errors import VidlatentError
from vidlatent.latents.pixels import from_pixels
from vidlatent.models.pretrained import NETWORKS
from vidlatent.models.pretrained.load import load_network
from vidlatent.models.tokenizers.chunks import encode_chunks
from vidlatent.parallel.sharding import batch_sharding, replicated
from vidlatent.registry import did_you_mean

__all__ = [
    "ImageTokens",
    "LatentEncoder",
    "TextStates",
    "find_weights",
    "make_window_key",
    "make_window_names",
]

WORDS = "words"  # name of a tokenizer that needs no file
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
    """Videos -> latents.

    Args:
      model: the tokenizer.
      params: its parameters, on ``mesh``.
      mesh: its devices divide the batch.
      draws: number of draws from the posterior of each window; 0: the mean.
      seed: of the draws. The noise of a draw depends only on it, the clip's name, the window's
        first frame and the number of the draw.
      chunks: ``(frames, overlap_frames)`` if windows are encoded in chunks; None: as a whole.
    """

    def __init__(
        self,
        model: Any,
        params: Any,
        mesh: Mesh,
        draws: int,
        seed: int,
        chunks: tuple[int, int] | None = None,
    ):
        self.model, self._params = model, params
        self._rows = batch_sharding(mesh)
        placed = jax.tree.map(lambda leaf: leaf.sharding, params)
        self._encode: Callable = jax.jit(
            functools.partial(_encode, model, draws, seed, chunks),
            in_shardings=(placed, self._rows, self._rows),
            out_shardings=self._rows,
        )

    def __call__(self, video: np.ndarray, clips: Sequence[str], firsts: Sequence[int]) -> jax.Array:
        """uint8 ``[B, T, H, W, 3]`` -> float32 ``[B, n, t, h, w, c]``: n draws, or 1 mean."""
        arrays = jax.device_put((video, make_window_names(clips, firsts)), self._rows)
        return self._encode(self._params, *arrays)

    def content(self, video: np.ndarray) -> np.ndarray | None:
        """Frames ``[n, H, W, 3]`` of a window ``[T, H, W, 3]`` that its decoder reads, or None."""
        if self.model.condition_kind == "none":
            return None
        return np.asarray(self.model.apply({}, video[None], method="pick_content_frames"))


def _encode(model, draws, seed, chunks, params, video, names):
    def whole(clips):
        return model.apply({"params": params}, from_pixels(clips), method="encode")[0]

    posterior = encode_chunks(whole, video, chunks)
    if not draws:
        # The mean takes the place of a single draw: [B, t, h, w, c] -> [B, 1, t, h, w, c]
        return posterior.mode()[:, None].astype(jnp.float32)
    if posterior.logvar is None:
        raise VidlatentError(
            f"{model.latent_spec.name} has no variance to draw latents from: set "
            "config.encode.draws=0."
        )

    def noise(name, number):
        key = make_window_key(seed, name, number)
        return jax.random.normal(key, posterior.mean.shape[1:], posterior.mean.dtype)

    def draw(number):
        # [B, t, h, w, c], each window with noise from its own key
        return posterior.draw(jax.vmap(noise, (0, None))(names, number))

    # From 1 on: draw 0 is that of the content frame (``encode.content``).
    drawn = [draw(number + 1) for number in range(draws)]
    return jnp.stack(drawn, axis=1).astype(jnp.float32)


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
