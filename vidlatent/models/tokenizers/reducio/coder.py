"""Video encoder, content encoder and decoder of Reducio-VAE."""

from __future__ import annotations

import flax.linen as nn
import jax

from vidlatent.models.tokenizers.reducio.blocks import (
    Convolution,
    Dense,
    Down,
    ResBlock,
    SelfAttention,
    Up,
    make_group_norm,
    make_taps,
)
from vidlatent.models.tokenizers.reducio.fusion import Fusion
from vidlatent.models.tokenizers.reducio.variants import ReducioConfig
from vidlatent.parallel.sharding import constrain

__all__ = ["FeatureEncoder", "ReducioDecoder", "ReducioEncoder"]

_AXES = ("batch", "time", "height", "width", "channel")


def _block(c: ReducioConfig, features: int, name: str):
    kind = nn.remat(ResBlock, prevent_cse=True) if c.remat else ResBlock
    block = kind(c, features, name=name)
    return lambda x: constrain(block(x), _AXES)


class FeatureEncoder(nn.Module):
    """An encoder down to its deepest level: of the video, or of the content frame.

    Attributes:
      outputs: channels of the last convolution; 0: none.
    """

    config: ReducioConfig
    outputs: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """``[B, T, H, W, 3]`` -> output, and features per level.

        The features are those before each level's down operation, then those right after the
        middle attention (one more than levels).
        """
        c = self.config
        features = []
        x = Convolution(c, c.widths[0], make_taps(c), name="conv_in")(x)
        for level, width in enumerate(c.widths):
            for i in range(c.blocks):
                x = _block(c, width, f"down_{level}_block_{i}")(x)
            features.append(x)
            if level < c.last and any(c.steps[level]):
                x = constrain(Down(c, *c.steps[level], name=f"down_{level}_downsample")(x), _AXES)
        x = _block(c, c.widths[-1], "mid_block_1")(x)
        x = SelfAttention(c, name="mid_attn_1")(x)
        # The released decoder reads this map, before the second block.
        features.append(x)
        x = nn.silu(make_group_norm(c, "norm_out")(_block(c, c.widths[-1], "mid_block_2")(x)))
        if self.outputs:
            x = Convolution(c, self.outputs, make_taps(c), name="conv_out")(x)
        return x, tuple(features)


class ReducioEncoder(nn.Module):
    """The two encoders: moments of the motion latent, features of the content frame.

    Attributes:
      video, content: their hyper-parameters; content None: no content frame.
      latent_channels: of the latent; moments have twice as many.
    """

    video: ReducioConfig
    content: ReducioConfig | None
    latent_channels: int

    def setup(self):
        moments = 2 * self.latent_channels
        self.volume = FeatureEncoder(self.video, moments)
        self.quant = Dense(moments)  # float32: the latent is stored
        if self.content is not None:
            self.frame = FeatureEncoder(self.content)

    def __call__(self, video: jax.Array) -> jax.Array:
        """Moments ``[B, t, h, w, 2c]`` float32."""
        return self.quant(self.volume(video)[0])

    def features(self, frame: jax.Array) -> tuple[jax.Array, ...]:
        """Pyramid of ``[B, H, W, 3]``, as ``FeatureEncoder`` orders it, ``[B, H', W', C]`` each."""
        return tuple(x[:, 0] for x in self.pyramid(frame)[1])

    def pyramid(self, frame: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Also the output behind the pyramid, which nothing uses but released weights hold."""
        return self.frame(frame[:, None])


class ReducioDecoder(nn.Module):
    """Motion latent and content features to video.

    Attributes:
      config: widths, pixels first; the deepest level runs first.
      latent_channels: c.
      frames: of the video, by level.
      fuse: per level, index into the content features, or -1.
      fuse_middle: attend to the last content features in the middle.
      window: ``(rows, columns)`` of fusion windows.
    """

    config: ReducioConfig
    latent_channels: int
    frames: tuple[int, ...]
    fuse: tuple[int, ...]
    fuse_middle: bool
    window: tuple[int, int]

    @nn.compact
    def __call__(self, latent: jax.Array, content: dict[int, jax.Array]) -> jax.Array:
        """``[B, t, h, w, c]`` and features by index -> ``[B, T, H, W, 3]`` float32."""
        c = self.config
        x = Dense(self.latent_channels, name="post_quant")(latent)
        x = Convolution(c, c.widths[-1], make_taps(c), name="conv_in")(x)
        x = _block(c, c.widths[-1], "mid_block_1")(x)
        if self.fuse_middle:
            x = self._fusion(c.last, "mid_fuse")(x, content[-1])
        x = SelfAttention(c, name="mid_attn_1")(x)
        x = _block(c, c.widths[-1], "mid_block_2")(x)
        for level in range(c.last, -1, -1):
            for i in range(c.blocks):
                x = _block(c, c.widths[level], f"up_{level}_block_1_{i}")(x)
            if self.fuse[level] >= 0:
                x = self._fusion(level, f"up_{level}_fuse")(x, content[self.fuse[level]])
            for i in range(c.blocks):
                x = _block(c, c.widths[level], f"up_{level}_block_2_{i}")(x)
            if level and any(c.steps[level - 1]):
                x = constrain(Up(c, *c.steps[level - 1], name=f"up_{level}_upsample")(x), _AXES)
        x = nn.silu(make_group_norm(c, "norm_out")(x))
        return Convolution(c, 3, make_taps(c), name="conv_out")(x).astype("float32")

    def _fusion(self, level: int, name: str) -> Fusion:
        c = self.config
        kind = nn.remat(Fusion, prevent_cse=True) if c.remat else Fusion
        return kind(self.frames[level], self.window, c.residual_scale, c.dtype, name=name)
