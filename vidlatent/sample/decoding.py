"""The tokenizer behind a generator: frames of latents, for files and for people to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vidlatent.codec.codec import Codec
from vidlatent.codec.options import CodecOptions
from vidlatent.latents.space import (
    Latents,
    check_tokenizer,
    choose_tokenizer_step,
    read_tokenizer_config,
)
from vidlatent.models.load import model_of
from vidlatent.parallel.mesh import make_mesh

__all__ = ["ClipDecoder", "load_tokenizer_codec", "pick_content_frames", "use_one_device"]


class ClipDecoder:
    """``(latent [t, h, w, c], clip) -> frames uint8 [T, H, W, 3]`` for clips of a data set.

    The tokenizer is that of ``config.tokenizer``; it is read when it is first used.

    Args:
      config: of the generator's run.
      latents: what the generator knows about its latents.
    """

    def __init__(self, config: ConfigDict, latents: Latents):
        self._config, self._latents = config, latents
        self._codec: Codec | None = None

    def describe(self, batch: Mapping[str, Any], row: int, title: str = "") -> dict[str, Any]:
        """Title, content frames and video of a clip; only the title with several processes."""
        seen: dict[str, Any] = {"content": None, "video": None}
        if jax.process_count() == 1:
            if not title and "caption" in batch:
                title = str(batch["caption"][row])
            seen |= {name: np.asarray(batch[name][row]) for name in seen if name in batch}
        return {"title": title or "sample", **seen}

    def can_decode(self, clip: Mapping[str, Any]) -> bool:
        """Whether there is a tokenizer here, and the frame that its decoder reads, if it does."""
        if not self._config.tokenizer.path or jax.process_count() > 1:
            return False
        # A set has no such frames if another decoder's workdir encoded it (FSAE and its Standard).
        tokenizer = model_of(read_tokenizer_config(self._config))
        given = clip["content"] is not None or clip["video"] is not None
        return given or tokenizer.condition_kind == "none"

    def __call__(self, latent: np.ndarray, clip: Mapping[str, Any]) -> np.ndarray:
        with use_one_device():
            if self._codec is None:
                self._codec = load_tokenizer_codec(self._config, self._latents)
            content = clip["content"]
            if content is None and clip["video"] is not None:
                content = pick_content_frames(self._codec, clip["video"])
            return self._codec.decode(latent, content=content)


def pick_content_frames(codec: Codec, video: np.ndarray) -> np.ndarray | None:
    """The frames of ``video`` ``[T, H, W, 3]`` that the decoder reads, or None if it reads none."""
    if codec.model.condition_kind == "none":
        return None
    return np.asarray(codec.model.apply({}, video[None], method="pick_content_frames"))


def use_one_device() -> Any:
    """A context in which the mesh is the first local device alone."""
    sizes = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
    return jax.set_mesh(make_mesh(sizes, jax.local_devices()[:1]))


def load_tokenizer_codec(config: ConfigDict, latents: Latents) -> Codec:
    """The tokenizer of ``config.tokenizer``.

    Raises:
      VidlatentError: its encoder did not make the latents.
    """
    config = choose_tokenizer_step(config, latents.space)
    path, step = config.tokenizer.path, config.tokenizer.step
    own = read_tokenizer_config(config)
    check_tokenizer(latents.space, config, "this generator")
    options = CodecOptions.of(**own.codec).for_latents(latents.spec)
    options = options.with_cut(model_of(own), latents.space.cut)
    return Codec.from_workdir(path, None if step < 0 else step, options)
