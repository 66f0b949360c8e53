"""What requests ask for as a generator's conditions: all are encoded before anything is drawn.

Each encoder is large and needed once: a stage of ``Residency`` for each encodes the texts or the
pictures of all requests, and is over before the generator is loaded. Results wait on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vidlatent.data.text.rules import RULES
from vidlatent.encode.content import ContentLatents
from vidlatent.encode.encoders import ImageTokens, TextStates
from vidlatent.encode.plan import EncodeOptions
from vidlatent.errors import VidlatentError
from vidlatent.latents.inputs import check_null_text, make_text_states
from vidlatent.models.load import resolve_dtype
from vidlatent.models.pretrained import NETWORKS, network_shapes
from vidlatent.parallel.mesh import local_mesh
from vidlatent.sample.residency import Loadable, count_device_bytes

__all__ = [
    "ENCODERS",
    "EncodedTexts",
    "encode_pictures",
    "encoder_networks",
    "join_texts",
    "use_encoder_mesh",
]

# Condition -> what encodes it, as ``config.encode`` names it under the same key.
ENCODERS: dict[str, Any] = {"text": TextStates, "image": ImageTokens, "content": ContentLatents}


def encoder_networks(config: ConfigDict, reads: Sequence[str]) -> dict[str, Loadable]:
    """The encoders of the conditions that a generator reads, by condition."""
    return {
        name: Loadable(lambda name=name: _load(config, name), lambda name=name: _size(config, name))
        for name in ENCODERS
        if name in reads
    }


def use_encoder_mesh() -> Any:
    """A context in which the mesh is that of the encoders.

    Requests come in any number, which only one device always divides.
    """
    return jax.set_mesh(local_mesh([1]))


def _load(config: ConfigDict, name: str) -> Any:
    if not config.encode[name]:
        raise VidlatentError(
            f"config.encode.{name} is empty: name what encoded the {name} in the latents' set, as "
            "for --mode=encode."
        )
    options = EncodeOptions.of(config.encode)
    return ENCODERS[name](options, config.networks, local_mesh([1]), resolve_dtype(config))


def _size(config: ConfigDict, name: str) -> int:
    """Bytes of an encoder's parameters; 0 where the config names none."""
    network = config.encode[name]
    if name == "text":
        rule = RULES.get(config.encode.text)
        network = config.encode.text_network or (rule.network if rule else "")
    if not network:
        return 0
    shapes = network_shapes(network)
    if NETWORKS.get(network).keeps_dtype:  # as published, in two bytes a number
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), shapes)
    return count_device_bytes(shapes)


class EncodedTexts:
    """States of texts on the host, ``texts -> {'text': ..., 'null_text': ...}``.

    ``null_text`` encodes ``config.sampler.guidance.negative``. If that is empty, it is the empty
    text or left out, as in training (``config.conditions.null_text``).

    Args:
      encoder: as ``TextStates``.
      texts: all that will be asked for.
      config: of the generator.
      length: tokens that the generator reads; longer texts are cut.
      batch: texts that are encoded at the same time.
    """

    def __init__(
        self, encoder: Any, texts: Sequence[str], config: ConfigDict, length: int, batch: int
    ):
        self._length = min(encoder.length, length)
        negative = config.sampler.guidance.negative
        # In the order of the requests; equal texts once.
        wanted = list(dict.fromkeys([*texts, *([negative] if negative else [])]))
        self._states: dict[str, np.ndarray] = {}
        self._null: dict[str, Any] | None = None
        with use_encoder_mesh():
            for group in _fill_groups(wanted, batch):
                found = [row[: self._length] for row in encoder(group)]
                self._states |= dict(zip(group, found, strict=True))
            if not negative and check_null_text(config) == "empty":
                self._null = make_text_states(encoder.empty()[: self._length])
        if negative:
            self._null = join_texts([self._states[negative]], self._length)

    def __call__(self, texts: Sequence[str]) -> dict[str, Any]:
        found = {"text": join_texts([self._states[text] for text in texts], self._length)}
        return found if self._null is None else {**found, "null_text": self._null}


def join_texts(states: Sequence[np.ndarray], length: int) -> dict[str, np.ndarray]:
    """States ``[n, D]`` of B texts -> ``{'states' [B, length, D], 'length' [B]}``, zero-padded."""
    width = max(row.shape[-1] for row in states)
    padded = np.zeros((len(states), length, width), np.float32)
    for number, row in enumerate(states):
        padded[number, : len(row)] = row
    return {"states": padded, "length": np.asarray([len(row) for row in states], np.int32)}


def encode_pictures(
    encode: Callable[[np.ndarray], np.ndarray],
    pictures: Mapping[Hashable, Callable[[], np.ndarray]],
    batch: int,
) -> dict[Hashable, np.ndarray]:
    """Each picture's code, on the host.

    Args:
      encode: uint8 ``[B, H, W, 3]`` -> ``[B, ...]``.
      pictures: what reads each, uint8 ``[H, W, 3]``, so that only a batch is in memory.
      batch: pictures that are encoded at the same time.
    """
    found: dict[Hashable, np.ndarray] = {}
    for group in _fill_groups(list(pictures), batch):
        codes = np.asarray(encode(np.stack([pictures[key]() for key in group])))
        found |= dict(zip(group, codes, strict=True))
    return found


def _fill_groups(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Groups of one size, so that one compiled program serves all: the last is filled up."""
    size = min(size, len(items))
    for start in range(0, len(items), max(1, size)):
        group = list(items[start : start + size])
        yield group + [group[-1]] * (size - len(group))
