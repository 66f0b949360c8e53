"""PatchGAN over video: pix2pix's layers with kernels in time (Reducio, ProMAG) or without."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.models.discriminators.layers import (
    BatchNorm,
    DiscriminatorConv,
    FrameGroupNorm,
    Stats,
    check_norm,
    leaky_relu,
    spectral_start,
)
from vidlatent.spec import check_shape

__all__ = ["NORMS", "PatchDiscriminator", "patch_stats_table", "patch_table"]

NORMS = ("batch", "group", "none", "spectral")
# As pix2pix draws kernels.
_normal = nn.initializers.normal(0.02)


class PatchDiscriminator(nn.Module):
    """Convolutions with 4x4 kernels in space that end in one logit for each patch.

    The last two layers have stride 1, the others stride 2 in space. A layer whose time kernel has
    more than one tap has the same stride in time, and pads time by one frame on both sides.

    Attributes:
      width: channels after the first layer; each further layer doubles them, up to 8 x ``width``.
      time_kernels: taps in time of each layer. ``(4, 4, 3, 1, 1)`` is Reducio's discriminator,
        ``(3, 3, 3, 3, 3)`` is used for ProMAG, as it accepts 17 frames and single images, and all 1
        is the image discriminator of latent diffusion, applied frame by frame.
      norm: ``'batch'`` (the published discriminators), ``'group'`` (per frame and sample),
        ``'none'``, or ``'spectral'`` (spectral normalisation of the kernels, no feature norm).
      groups: number of groups of the group norm.
      dtype: compute dtype; logits are float32.
    """

    width: int = 64
    time_kernels: tuple[int, ...] = (4, 4, 3, 1, 1)
    norm: str = "batch"
    groups: int = 32
    dtype: Any = jnp.float32

    @property
    def scales(self) -> int:
        """Number of logit maps."""
        return 1

    def _list_layers(self) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """Kernel, strides and padding of each layer."""
        layers = []
        for index, taps in enumerate(self.time_kernels):
            step = 2 if index < len(self.time_kernels) - 2 else 1
            moves = taps > 1
            layers.append(((taps, 4, 4), (step if moves else 1, step, step), (int(moves), 1, 1)))
        return layers

    @property
    def smallest_clip(self) -> tuple[int, int, int]:
        """The smallest (frames, height, width) that yields a logit; 1 frame means images work."""
        size = (1, 1, 1)
        # Backwards from a single logit: what each layer needs to yield so many outputs.
        for kernel, strides, padding in reversed(self._list_layers()):
            size = tuple(
                max(1, (n - 1) * s + k - 2 * p)
                for n, k, s, p in zip(size, kernel, strides, padding, strict=True)
            )
        return size

    def _count_features(self, index: int) -> int:
        last = index == len(self.time_kernels) - 1
        return 1 if last else self.width * min(2**index, 8)

    def init_stats(self) -> dict[str, Stats]:
        """Statistics before the first step: ``{}`` for the norms that keep none."""
        check_norm(self.norm, NORMS)
        count = len(self.time_kernels)
        if self.norm == "batch":
            # pix2pix has no norm after the first and the last convolution.
            sizes = {i: (self._count_features(i),) for i in range(1, count - 1)}
            return {
                f"norm_{i}": {"mean": jnp.zeros(size), "var": jnp.ones(size)}
                for i, size in sizes.items()
            }
        if self.norm == "spectral":
            return {f"conv_{i}": spectral_start(self._count_features(i)) for i in range(count)}
        return {}

    @nn.compact
    def __call__(
        self, video: jax.Array, stats: Stats, train: bool
    ) -> tuple[list[jax.Array], dict[str, Stats]]:
        """Logits of clips, one for each patch.

        Args:
          video: ``[B, T, H, W, 3]`` in [-1, 1].
          stats: from ``init_stats`` or the last call.
          train: normalise with the batch's statistics and update the running ones.

        Returns:
          One logit map ``[B, T', H', W']`` float32 in a list, and the new statistics.

        Raises:
          VidlatentError: the clip is too small to yield a logit, or the norm is unknown.
        """
        check_norm(self.norm, NORMS)
        self._check_size(video)
        x, new = video.astype(self.dtype), {}
        last = len(self.time_kernels) - 1
        for index, (kernel, strides, padding) in enumerate(self._list_layers()):
            # Neither pixels nor logits are normalised (pix2pix).
            normed = 0 < index < last and self.norm in ("batch", "group")
            spectral = self.norm == "spectral"
            conv = DiscriminatorConv(
                self._count_features(index),
                kernel,
                strides,
                padding,
                # No bias before a norm, which has one of its own.
                not normed,
                spectral,
                self.dtype,
                _normal,
                name=f"conv_{index}",
            )
            x, seen = conv(x, stats[f"conv_{index}"] if spectral else {}, train)
            if spectral:
                new[f"conv_{index}"] = seen
            if normed and self.norm == "batch":
                name = f"norm_{index}"
                x, new[name] = BatchNorm(name=name)(x, stats[name], train)
            elif normed:
                x = FrameGroupNorm(self.groups, name=f"norm_{index}")(x)
            x = x if index == last else leaky_relu(x)
        return [x[..., 0].astype(jnp.float32)], new

    def _check_size(self, video: jax.Array) -> None:
        size = check_shape(video, "B T H W C", C=3)
        given = (size["T"], size["H"], size["W"])
        if any(g < s for g, s in zip(given, self.smallest_clip, strict=True)):
            raise VidlatentError(
                "this discriminator needs clips of at least {} frames of {}x{}, not {} of {}x{}: "
                "change the data's buckets or config.discriminator.model.time_kernels.".format(
                    *self.smallest_clip, *given
                )
            )


def _list_positions(layers: int) -> list[tuple[int, int]]:
    """Pairs of a layer's number here and its convolution's index in the published Sequential."""
    # The Sequential counts norms and activations too: conv, leaky; then conv, norm, leaky each.
    return [(0, 0), *((i, 3 * i - 1) for i in range(1, layers))]


def patch_table(layers: int = 5) -> tuple[tuple[str, str, str], ...]:
    """Importer rows for Reducio's and latent diffusion's tensor names, such as ``main.2.weight``.

    Args:
      layers: number of convolutions, ``len(time_kernels)``.
    """
    # Statistics are no parameters: patch_stats_table reads them.
    rows = [(r"main[.]\d+[.](?:running_mean|running_var|num_batches_tracked)", "", "drop")]
    for index, place in _list_positions(layers):
        source = f"main[.]{place}[.]"
        rows.append((source + "weight", f"conv_{index}/kernel", "conv3d"))
        rows.append((source + "bias", f"conv_{index}/bias", "copy"))
        if 0 < index < layers - 1:
            source = f"main[.]{place + 1}[.]"
            rows.append((source + "weight", f"norm_{index}/scale", "copy"))
            rows.append((source + "bias", f"norm_{index}/bias", "copy"))
    return tuple(rows)


def patch_stats_table(layers: int = 5) -> tuple[tuple[str, str, str], ...]:
    """Importer rows for the running statistics under the same names; the rest is dropped."""
    rows = []
    for index, place in _list_positions(layers)[1:-1]:
        source = f"main[.]{place + 1}[.]running_"
        rows += [(source + part, f"norm_{index}/{part}", "copy") for part in ("mean", "var")]
    rows.append((r"main[.]\d+[.](?:weight|bias|num_batches_tracked)", "", "drop"))
    return tuple(rows)
