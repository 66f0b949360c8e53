"""PatchGAN over video: pix2pix's layers, with time kernels (Reducio, ProMAG) or without."""

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
_normal = nn.initializers.normal(0.02)


class PatchDiscriminator(nn.Module):
    """Convolutions 4x4 in space that end in one logit for each patch.

    The last two layers keep the grid (stride 1), those before halve it; in time too where their
    time kernel has more than one tap. Time is padded by one frame on both sides of such kernels.

    Attributes:
      width: channels after the first layer; doubled by each further one up to eightfold.
      time_kernels: taps in time, one number a layer. ``(4, 4, 3, 1, 1)`` is Reducio's
        discriminator, ``(3, 3, 3, 3, 3)`` the form of ProMAG's that takes 17 frames and single
        images, all 1 the image discriminator of latent diffusion, frame by frame.
      norm: ``'batch'`` (of the published discriminators), ``'group'`` (per frame and sample),
        ``'none'``, or ``'spectral'`` (no norm of features, all kernels of spectral norm one).
      groups: of the group norm.
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

    def _geometry(self) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """Kernel, strides and padding of each layer."""
        layers = []
        for index, taps in enumerate(self.time_kernels):
            step = 2 if index < len(self.time_kernels) - 2 else 1
            moves = taps > 1
            layers.append(((taps, 4, 4), (step if moves else 1, step, step), (int(moves), 1, 1)))
        return layers

    @property
    def smallest_clip(self) -> tuple[int, int, int]:
        """Frames, height and width below which no logit is left; one frame: takes images."""
        size = (1, 1, 1)
        for kernel, strides, padding in reversed(self._geometry()):
            size = tuple(
                max(1, (n - 1) * s + k - 2 * p)
                for n, k, s, p in zip(size, kernel, strides, padding, strict=True)
            )
        return size

    def _features(self, index: int) -> int:
        last = index == len(self.time_kernels) - 1
        return 1 if last else self.width * min(2**index, 8)

    def init_stats(self) -> dict[str, Stats]:
        """Statistics before the first step: ``{}`` for the norms that keep none."""
        check_norm(self.norm, NORMS)
        count = len(self.time_kernels)
        if self.norm == "batch":
            sizes = {i: (self._features(i),) for i in range(1, count - 1)}
            return {
                f"norm_{i}": {"mean": jnp.zeros(size), "var": jnp.ones(size)}
                for i, size in sizes.items()
            }
        if self.norm == "spectral":
            return {f"conv_{i}": spectral_start(self._features(i)) for i in range(count)}
        return {}

    @nn.compact
    def __call__(
        self, video: jax.Array, stats: Stats, train: bool
    ) -> tuple[list[jax.Array], dict[str, Stats]]:
        """Logits of clips, one for each patch.

        Args:
          video: ``[B, T, H, W, 3]`` in [-1, 1].
          stats: from ``init_stats`` or the last call.
          train: use the batch's statistics and move the running ones.

        Returns:
          One logit map ``[B, T', H', W']`` float32 in a list, and the new statistics.

        Raises:
          VidlatentError: a clip so small that no logit is left, or an unknown norm.
        """
        check_norm(self.norm, NORMS)
        self._check_size(video)
        x, new = video.astype(self.dtype), {}
        last = len(self.time_kernels) - 1
        for index, (kernel, strides, padding) in enumerate(self._geometry()):
            normed = 0 < index < last and self.norm in ("batch", "group")
            spectral = self.norm == "spectral"
            conv = DiscriminatorConv(
                self._features(index),
                kernel,
                strides,
                padding,
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


def _positions(layers: int) -> list[tuple[int, int]]:
    """Our layer number and the place of its convolution in the published list of modules."""
    return [(0, 0), *((i, 3 * i - 1) for i in range(1, layers))]


def patch_table(layers: int = 5) -> tuple[tuple[str, str, str], ...]:
    """Importer rows of Reducio's and latent diffusion's names, ``main.2.weight`` and so on.

    Args:
      layers: convolutions (``len(time_kernels)``).
    """
    rows = [(r"main[.]\d+[.](?:running_mean|running_var|num_batches_tracked)", "", "drop")]
    for index, place in _positions(layers):
        source = f"main[.]{place}[.]"
        rows.append((source + "weight", f"conv_{index}/kernel", "conv3d"))
        rows.append((source + "bias", f"conv_{index}/bias", "copy"))
        if 0 < index < layers - 1:
            source = f"main[.]{place + 1}[.]"
            rows.append((source + "weight", f"norm_{index}/scale", "copy"))
            rows.append((source + "bias", f"norm_{index}/bias", "copy"))
    return tuple(rows)


def patch_stats_table(layers: int = 5) -> tuple[tuple[str, str, str], ...]:
    """The running statistics under the same names; everything else is left out."""
    rows = []
    for index, place in _positions(layers)[1:-1]:
        source = f"main[.]{place + 1}[.]running_"
        rows += [(source + part, f"norm_{index}/{part}", "copy") for part in ("mean", "var")]
    rows.append((r"main[.]\d+[.](?:weight|bias|num_batches_tracked)", "", "drop"))
    return tuple(rows)
