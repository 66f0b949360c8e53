"""Growing a trained tokenizer to twice its temporal compression (ProMAG 3.2, appendix A).

The trained model codes every second frame, which gives the grown model a starting point; a new
block adds what lies between these key frames. Earlier parts are not trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.layers.dense import fan_in
from vidlatent.layers.resample import double_frames
from vidlatent.models.tokenizers.promag.blocks import AdaNorm, ProMAGConfig
from vidlatent.models.tokenizers.promag.coder import Tape

__all__ = [
    "STAGE_FPS",
    "Growth",
    "make_frozen_pattern",
    "grown_from",
    "inflated_from_image",
    "subsample",
    "with_first_frame",
]

# Frame rate of the training clips at each growth (ProMAG 3.2): it doubles with the compression, so
# that key frames keep their distance in time.
STAGE_FPS = (6.0, 12.0, 24.0)
_STEP = (2, 1, 1)


def subsample(video: jax.Array, stride: int, first: bool = True) -> jax.Array:
    """Every ``stride``-th frame of a stream counted from its frame 0.

    Args:
      video: ``[B, T, H, W, C]``: T = 1 + stride * m at the start, stride * m later.
      first: the stream starts here; a later chunk continues the count.
    """
    # A later chunk follows a frame that was kept, so its first one is a full stride away.
    return video[:, 0 if first else stride - 1 :: stride]


class _Encode(nn.Module):
    config: ProMAGConfig
    ada_mode: str
    zero: bool

    @nn.compact
    def __call__(self, x: jax.Array, key: jax.Array | None, cache: Any) -> tuple[jax.Array, Any]:
        tape = Tape(self.config, cache)
        if key is not None and self.ada_mode != "none":
            # A small initial kernel, so that the key latents have little influence at first.
            ada = AdaNorm(self.config, self.ada_mode, "frame", 0.1, name="ada")
            # Each key latent stands for two frames of `x`, the first for frame 0 alone.
            x = ada(x, key, lambda a: double_frames(a, tape.first))
        x = tape.blocks(x, x.shape[-1], "block")
        x = tape.down(x, _STEP, "down", nn.initializers.zeros if self.zero else fan_in)
        return x, tape.cache


class _Decode(nn.Module):
    config: ProMAGConfig

    @nn.compact
    def __call__(self, x: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        tape = Tape(self.config, cache, tiled=True)
        x = tape.blocks(x, x.shape[-1], "block")
        return tape.up(x, _STEP, "up"), tape.cache


class Growth(nn.Module):
    """The blocks that one doubling adds.

    Attributes:
      config: the family's, with the number of added blocks.
      ada_mode: ``'position'``, ``'pooled'`` or ``'none'``: how the added encoder block is
        conditioned on the key latents.
      zero: start with a residual of zero, so that the grown latents equal those of the key frames.
    """

    config: ProMAGConfig
    ada_mode: str
    zero: bool

    def setup(self):
        self.encoder = _Encode(self.config, self.ada_mode, self.zero)
        self.decoder = _Decode(self.config)

    def encode(
        self, x: jax.Array, key: jax.Array | None, cache: Any = None
    ) -> tuple[jax.Array, Any]:
        """What the key frames lack, ``[B, 1 + 2n, h, w, C] -> [B, 1 + n, h, w, C]``, and the cache.

        Args:
          x: features at the full frame rate.
          key: features of every second frame, ``[B, 1 + n, h, w, C]``; None: growth without them.
          cache: of the previous chunk (then 2n frames become n).
        """
        return self.encoder(x, key, cache)

    def decode(self, x: jax.Array, cache: Any = None) -> tuple[jax.Array, Any]:
        """``[B, 1 + n, h, w, C] -> [B, 1 + 2n, h, w, C]`` and the cache."""
        return self.decoder(x, cache)


def make_frozen_pattern(grow: int, first_frame_join: str = "none") -> str:
    """Expression for the parameters that a stage does not train, for ``config.optim.freeze``.

    Stage ``grow`` trains the blocks of its own growth and the 1x1x1 layers at the latent.
    """
    frozen = ["image"] if first_frame_join != "none" else []
    if grow:
        # Later growths do not exist yet; the layers at the latent are trained in every stage.
        frozen += ["encoder", "decoder", *(f"grow{i}" for i in range(1, grow))]
    return f"({'|'.join(frozen)})/" if frozen else ""


def grown_from(params: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a grown model: the earlier stage's where it has them, new ones elsewhere.

    Args:
      params: the earlier stage's.
      fresh: newly initialised ones of the grown model.

    Raises:
      VidlatentError: ``params`` has parameters that the grown model lacks.
    """
    return _merge(params, fresh, "")


def _merge(old: Any, new: Any, where: str) -> Any:
    if not isinstance(new, Mapping) or not isinstance(old, Mapping):
        if jnp.shape(old) != jnp.shape(new) or isinstance(new, Mapping) != isinstance(old, Mapping):
            raise VidlatentError(f"{where} differs in shape from the earlier stage's.")
        return old
    if unknown := sorted(set(old) - set(new)):
        raise VidlatentError(
            f"the earlier stage has {where}{unknown[0]}, the grown model does not: give both the "
            "same config.model but for grow."
        )
    return {
        name: _merge(old[name], value, f"{where}{name}/") if name in old else value
        for name, value in new.items()
    }


def with_first_frame(params: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """``fresh`` parameters of a video model with an image autoencoder's encoder for frame 0.

    Args:
      params: of the image autoencoder (stage 0).
      fresh: of a model with ``first_frame_join`` ``'feature'`` or ``'latent'``.
    """
    if "image" not in fresh:
        raise VidlatentError(
            "this model has no image encoder: set config.model.first_frame_join to 'feature' or "
            "'latent'."
        )
    # With first_frame_join 'latent' the image encoder has its own layer to the latent.
    wanted = ("encoder", "bottleneck") if "bottleneck" in fresh["image"] else ("encoder",)
    if missing := [name for name in wanted if name not in params]:
        raise VidlatentError(
            f"these weights have no {missing[0]}: start from ProMAG's image autoencoder (stage 0)."
        )
    image = {"encoder": params["encoder"]}
    if "bottleneck" in fresh["image"]:
        image["bottleneck"] = {"encoder": params["bottleneck"]["encoder"]}
    return {**fresh, "image": _merge(image, fresh["image"], "image/")}


def inflated_from_image(params: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """A video model that treats every aligned frame as the image autoencoder does (MAGVIT-v2).

    2-D kernels go to the last temporal slice, so with zero padding frame 0 sees exactly the image
    network; kernels of up layers that double time are used for both frames.

    Args:
      params: of the image autoencoder (``image`` set, the other fields the same).
      fresh: of the video model, without an image encoder for frame 0 and not grown.
    """
    return _inflate(params, fresh, "")


def _inflate(old: Any, new: Any, where: str) -> Any:
    if isinstance(new, Mapping):
        if set(old) != set(new):
            name = sorted(set(old) ^ set(new))[0]
            raise VidlatentError(
                f"only one of the image and the video model has {where}{name}: give both the same "
                "config.model but for image."
            )
        return {name: _inflate(old[name], new[name], f"{where}{name}/") for name in new}
    if old.ndim == 5 and old.shape[0] == 1 and new.shape[0] > 1:
        old = jnp.pad(old, ((new.shape[0] - 1, 0), *((0, 0),) * 4))
    # Up layers that double time have twice the output channels: the same kernel for both frames.
    old = jnp.tile(old, new.shape[-1] // old.shape[-1])
    if old.shape != new.shape:
        raise VidlatentError(f"{where[:-1]} of the image model does not fit: {old.shape}.")
    return old
