"""Residual discriminators without feature norms: StyleGAN2's blocks in 3-D (MAGVIT, FSVideo)."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.models.discriminators.layers import (
    DiscriminatorConv,
    Stats,
    check_norm,
    leaky_relu,
    shrink,
    spectral_start,
)
from vidlatent.spec import check_shape

__all__ = ["NORMS", "MultiscaleDiscriminator", "StyleDiscriminator"]

NORMS = ("none", "spectral")
_FILTERS = {"mean": (1, 1), "blur": (1, 3, 3, 1)}


class _Convs(nn.Module):
    """Base class that makes size-preserving convolutions and collects their statistics."""

    norm: str = "none"
    dtype: Any = jnp.float32

    @nn.nowrap
    def _apply_conv(self, name, features, size, x, stats, train, new):
        layer = DiscriminatorConv(
            features,
            (size,) * 3,
            padding=(size // 2,) * 3,
            # The skips, of size 1, have none in StyleGAN2.
            use_bias=size > 1,
            spectral=self.norm == "spectral",
            dtype=self.dtype,
            name=name,
        )
        y, seen = layer(x, stats[name] if stats else {}, train)
        # Only spectral norm keeps statistics; without it none are passed on.
        if seen:
            new[name] = seen
        return y


class _Block(_Convs):
    """``(conv3(C, C) leaky shrink conv3(C, C') leaky + conv1(shrink)) / sqrt 2``."""

    features: int = 0
    pool: str = "mean"

    @nn.compact
    def __call__(self, x: jax.Array, stats: Stats, train: bool) -> tuple[jax.Array, Stats]:
        """``[B, T, H, W, C] -> [B, T/2, H/2, W/2, features]``, rounded up."""
        taps, new = _FILTERS[self.pool], {}
        main = leaky_relu(self._apply_conv("in", x.shape[-1], 3, x, stats, train, new))
        main = self._apply_conv("out", self.features, 3, shrink(main, taps), stats, train, new)
        skip = self._apply_conv("skip", self.features, 1, shrink(x, taps), stats, train, new)
        # The sum of two branches has twice the variance of one (StyleGAN2).
        return (leaky_relu(main) + skip) * math.sqrt(0.5), new


class _Tower(_Convs):
    """A stem, residual blocks that halve T, H and W, and one more convolution.

    Attributes:
      widths: channels after the stem and after each block.
      pool: ``'mean'`` (average of 2x2x2) or ``'blur'`` (four taps).
      norm: ``'none'`` or ``'spectral'``.
      remat: recompute each block in the backward pass, to save memory.
    """

    widths: tuple[int, ...] = ()
    pool: str = "mean"
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, stats: Stats, train: bool) -> tuple[jax.Array, Stats]:
        """``[B, T, H, W, 3] -> [B, T', H', W', widths[-1]]``."""
        check_norm(self.norm, NORMS)
        if self.pool not in _FILTERS:
            raise VidlatentError(
                f"config.discriminator.model.pool {self.pool!r}: use 'mean' or 'blur'."
            )
        # Argument 3, counted from self, is ``train``: it decides what is traced.
        block = nn.remat(_Block, static_argnums=(3,)) if self.remat else _Block
        new = {}
        x = x.astype(self.dtype)
        x = leaky_relu(self._apply_conv("stem", self.widths[0], 3, x, stats, train, new))
        for i, features in enumerate(self.widths[1:]):
            name = f"block_{i}"
            layer = block(self.norm, self.dtype, features, self.pool, name=name)
            x, seen = layer(x, stats[name] if stats else {}, train)
            if seen:
                new[name] = seen
        return leaky_relu(self._apply_conv("last", x.shape[-1], 3, x, stats, train, new)), new


def _init_tower_stats(widths: tuple[int, ...], norm: str) -> dict[str, Stats]:
    check_norm(norm, NORMS)
    if norm == "none":
        return {}
    stats = {"stem": spectral_start(widths[0]), "last": spectral_start(widths[-1])}
    for i, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        sizes = {"in": before, "out": after, "skip": after}
        stats[f"block_{i}"] = {name: spectral_start(size) for name, size in sizes.items()}
    return stats


class MultiscaleDiscriminator(nn.Module):
    """One tower per scale, with separate weights; each scale halves the clip once more.

    FSVideo specifies a 3-D multi-scale discriminator with the non-saturating loss and R1, but not
    its layers. These are MAGVIT's blocks, made fully convolutional because clip sizes vary. There
    is no batch norm, since R1 needs the gradient of each sample separately. Images are clips of one
    frame.

    Attributes:
      scales: number of towers; the first one sees the clip at full size.
      widths, pool, norm: of each tower, see ``_Tower``.
      remat: recompute blocks in the backward pass; only their inputs are kept.
      dtype: compute dtype; logits are float32.
    """

    scales: int = 3
    widths: tuple[int, ...] = (64, 128, 256, 256, 256)
    pool: str = "mean"
    norm: str = "none"
    remat: bool = False
    dtype: Any = jnp.float32

    @property
    def smallest_clip(self) -> tuple[int, int, int]:
        """Clips of any size yield a logit."""
        return (1, 1, 1)

    def init_stats(self) -> dict[str, Stats]:
        """Statistics before the first step: ``{}`` without spectral norm."""
        tower = _init_tower_stats(self.widths, self.norm)
        if not tower:
            return {}
        towers = {f"scale_{s}": tower for s in range(self.scales)}
        return {**towers, **{f"head_{s}": spectral_start(1) for s in range(self.scales)}}

    @nn.compact
    def __call__(
        self, video: jax.Array, stats: Stats, train: bool
    ) -> tuple[list[jax.Array], dict[str, Stats]]:
        """Logits of clips, one map for each scale.

        Args:
          video: ``[B, T, H, W, 3]`` in [-1, 1], of any size.
          stats: from ``init_stats`` or the last call.
          train: update the statistics, if there are any.

        Returns:
          A logit map ``[B, T', H', W']`` float32 for each scale, and the new statistics.
        """
        check_shape(video, "B T H W C", C=3)
        maps, new = [], {}
        for s in range(self.scales):
            video = shrink(video, (1, 1)) if s else video
            fields = (self.norm, self.dtype, self.widths, self.pool, self.remat)
            tower = _Tower(*fields, name=f"scale_{s}")
            spectral = self.norm == "spectral"
            head = DiscriminatorConv(
                1, (1, 1, 1), spectral=spectral, dtype=self.dtype, name=f"head_{s}"
            )
            x, seen = tower(video, stats[f"scale_{s}"] if stats else {}, train)
            x, of_head = head(x, stats[f"head_{s}"] if stats else {}, train)
            if stats:
                new[f"scale_{s}"], new[f"head_{s}"] = seen, of_head
            # [B, T', H', W', 1] -> [B, T', H', W']; losses compare logits in float32.
            maps.append(x[..., 0].astype(jnp.float32))
        return maps, new


class StyleDiscriminator(nn.Module):
    """MAGVIT-v2's discriminator: a tower with blurred downsampling, flattened, two dense layers.

    It works for one clip size only, that of its first call, because the first dense layer reads all
    positions.

    Attributes:
      widths, pool: of the tower, see ``_Tower``.
      norm: ``'none'`` or ``'spectral'``, for the tower and the dense layers.
      remat: recompute blocks in the backward pass; only their inputs are kept.
      hidden: width of the first dense layer.
      dtype: compute dtype; logits are float32.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512, 512, 512)
    pool: str = "blur"
    norm: str = "none"
    remat: bool = False
    hidden: int = 512
    dtype: Any = jnp.float32

    @property
    def scales(self) -> int:
        """Number of logit maps."""
        return 1

    @property
    def smallest_clip(self) -> tuple[int, int, int]:
        """Any size yields a logit, but later calls must repeat the size of the first one."""
        return (1, 1, 1)

    def init_stats(self) -> dict[str, Stats]:
        """Statistics before the first step: ``{}`` without spectral norm."""
        tower = _init_tower_stats(self.widths, self.norm)
        if not tower:
            return {}
        return {"tower": tower, "dense": spectral_start(self.hidden), "logit": spectral_start(1)}

    @nn.compact
    def __call__(
        self, video: jax.Array, stats: Stats, train: bool
    ) -> tuple[list[jax.Array], dict[str, Stats]]:
        """Logits of clips ``[B, T, H, W, 3]``: a list of one array ``[B]``, and the statistics.

        Raises:
          VidlatentError: the parameters were made for another clip size.
        """
        size = check_shape(video, "B T H W C", C=3)
        fields = (self.norm, self.dtype, self.widths, self.pool, self.remat)
        tower = _Tower(*fields, name="tower")
        x, seen = tower(video, stats["tower"] if stats else {}, train)
        # One position with all values, so that dense layers are convolutions with spectral norm.
        x = x.reshape(x.shape[0], 1, 1, 1, -1)
        if not self.is_initializing():
            # Checked here, because Flax's message would not name the clip's size.
            rows = self.get_variable("params", "dense")["kernel"].shape[-2]
            if rows != x.shape[-1]:
                raise VidlatentError(
                    f"the discriminator stylegan3d was made for another clip size than "
                    f"{size['T']} frames of {size['H']}x{size['W']}: use one bucket, or the "
                    "discriminator multiscale3d."
                )
        new = {"tower": seen}
        for name, features in (("dense", self.hidden), ("logit", 1)):
            layer = DiscriminatorConv(
                features,
                (1, 1, 1),
                spectral=self.norm == "spectral",
                dtype=self.dtype,
                name=name,
            )
            x, new[name] = layer(x, stats[name] if stats else {}, train)
            x = leaky_relu(x) if name == "dense" else x
        return [x[:, 0, 0, 0, 0].astype(jnp.float32)], new if stats else {}
