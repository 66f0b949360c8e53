"""Hyper-parameters of the IV-VAE family and the order of its modules (IV-VAE, figure 2).

The published model, its ablations and its baselines differ in four choices, a ``Variant``.
Everything else (widths, the order of blocks, resampling) is the same, so they are one family.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vidlatent.errors import VidlatentError
from vidlatent.layers.temporal import TimeRule
from vidlatent.registry import did_you_mean

__all__ = [
    "VARIANTS",
    "IVVAEConfig",
    "Op",
    "Variant",
    "list_decoder_ops",
    "list_encoder_ops",
    "find_variant",
]


@dataclasses.dataclass(frozen=True)
class Variant:
    """What distinguishes the members of the family.

    Attributes:
      branches: 2: the channels are two halves, key frames (A) and motion (B), with norms, attention
        and resampling of their own, and convolutions that read both; 1: an ordinary VAE.
      key: 3x3 convolutions of half A: ``'plane'`` (per frame) or ``'volume'`` (as half B's).
      time: ``'group'`` (group causal convolutions), ``'causal'`` (two past frames, zeros before the
        start) or ``'none'`` (an image VAE).
      rich: attention after every block at the lowest resolution and parallel dilated convolutions
        at the encoder's end; otherwise attention in the middle only and one 3x3 convolution.
    """

    branches: int = 2
    key: str = "plane"
    time: str = "group"
    rich: bool = True


VARIANTS: dict[str, Variant] = {
    "ivvae": Variant(),
    "ktc": Variant(rich=False),
    "ktc_causal": Variant(rich=False, time="causal"),
    "volumes": Variant(key="volume"),
    "volumes_plain": Variant(key="volume", rich=False),
    "causal": Variant(branches=1, rich=False, time="causal"),
    "gcconv": Variant(branches=1, rich=False),
    "image": Variant(branches=1, time="none"),
    "image_plain": Variant(branches=1, time="none", rich=False),
}


def find_variant(variant: str) -> Variant:
    """A variant by its name; raises ``VidlatentError`` naming the nearest one."""
    if variant not in VARIANTS:
        hint = did_you_mean(variant, VARIANTS)
        raise VidlatentError(f"config.model.variant {variant!r} is unknown: {hint}")
    return VARIANTS[variant]


@dataclasses.dataclass(frozen=True)
class Op:
    """One entry of ``downsamples``, ``middle`` or ``upsamples``.

    Attributes:
      kind: ``'res'``, ``'attn'``, ``'down'`` or ``'up'``.
      level: resolution level it starts from, 0 at the pixels.
      features: output channels of one branch.
      group: frames of a group at its level.
      plane: two branches joined by one 2-D convolution per frame (the lowest resolution).
      time: a resampling changes the frame count too.
    """

    kind: str
    level: int
    features: int
    group: int = 1
    plane: bool = False
    time: bool = False


@dataclasses.dataclass(frozen=True)
class IVVAEConfig:
    """Fields documented in ``model.IVVAE``."""

    variant: Variant
    latent_channels: int
    widths: tuple[int, ...]
    blocks: int
    temporal_down: tuple[int, ...]
    pac_dilations: tuple[int, ...]
    residual_scale: float
    up_form: str
    remat: bool
    row_limit: int
    strips_anywhere: bool
    implementation: str
    dtype: Any

    @property
    def last(self) -> int:
        return len(self.widths) - 1

    def group(self, level: int) -> int:
        """Frames that one latent frame after the first has at ``level``."""
        return 2 ** sum(index >= level for index in self.temporal_down)

    def rule(self, level: int) -> TimeRule:
        """Temporal neighbourhood of the 3x3x3 convolutions at ``level``."""
        if self.variant.time == "causal":
            return TimeRule("causal", padding="zeros")
        # Before frame 0 lies a copy of it, after each group a frame of zeros (IV-VAE's GCConv).
        return TimeRule("group", self.group(level), "replicate", "zeros")

    def plane(self, level: int) -> bool:
        return self.variant.branches == 2 and level == self.last

    def op(self, kind: str, level: int, features: int, **fields: Any) -> Op:
        return Op(kind, level, features, self.group(level), self.plane(level), **fields)


def _level(c: IVVAEConfig, level: int, blocks: int) -> list[Op]:
    """The residual blocks of a level, with attention at the lowest resolution."""
    width = c.widths[level]
    ops = []
    for _ in range(blocks):
        ops.append(c.op("res", level, width))
        if level == c.last and c.variant.rich:
            ops.append(c.op("attn", level, width))
    return ops


def list_encoder_ops(c: IVVAEConfig) -> list[Op]:
    """Contents of ``encoder.downsamples``, in order."""
    ops = []
    for level, width in enumerate(c.widths):
        # The released network has one attention more, right after the last down operation.
        if level == c.last and c.variant.rich:
            ops.append(c.op("attn", level, width))
        ops += _level(c, level, c.blocks)
        if level < c.last:
            ops.append(c.op("down", level, width, time=level in c.temporal_down))
    return ops


def list_decoder_ops(c: IVVAEConfig) -> list[Op]:
    """Contents of ``decoder.upsamples``: one block more a level; up operations halve the width."""
    ops = []
    for level in range(c.last, -1, -1):
        ops += _level(c, level, c.blocks + 1)
        if level > 0:
            time = level - 1 in c.temporal_down
            ops.append(c.op("up", level, c.widths[level] // 2, time=time))
    return ops
