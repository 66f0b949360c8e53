"""Statistics of latents by channel, and their channels as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["ChannelMoments", "stretch_channels"]


class ChannelMoments:
    """Mean and standard deviation of each channel over everything added so far.

    Values may be added in pieces of any size and order; the result is that of all of them at once.
    The standard deviation is that of a population (divided by ``n``).

    Attributes:
      n: number of values added, for each channel.
    """

    def __init__(self, channels: int):
        self.n = 0
        self._mean = np.zeros(channels)
        self._apart = np.zeros(channels)  # summed squared distances from the mean

    def add(self, latent: Any) -> None:
        """Add values ``[..., c]``."""
        values = np.asarray(latent, np.float64).reshape(-1, len(self._mean))
        if not len(values):
            return
        mean = values.mean(axis=0)
        self.merge(len(values), mean, np.square(values - mean).sum(axis=0))

    def merge(self, n: int, mean: Any, apart: Any) -> None:
        """Add ``n`` values a channel, given their ``mean`` ``[c]`` and summed squared distances."""
        if not n:
            return
        total = self.n + n
        step = np.asarray(mean, np.float64) - self._mean
        # Two parts differ within themselves and by their means (Chan et al. 1979). Sums of squares
        # would cancel where the mean is large.
        self._apart += np.asarray(apart, np.float64) + step**2 * (self.n * n / total)
        self._mean += step * (n / total)
        self.n = total

    @property
    def mean(self) -> np.ndarray:
        """``[c]`` float64."""
        return self._mean.copy()

    @property
    def apart(self) -> np.ndarray:
        """Summed squared distances from the mean, ``[c]`` float64."""
        return self._apart.copy()

    @property
    def std(self) -> np.ndarray:
        """``[c]`` float64; zeros before anything was added."""
        return np.sqrt(self._apart / max(1, self.n))

    def overall(self) -> tuple[float, float]:
        """Mean and standard deviation of all channels together."""
        mean = float(self._mean.mean())
        # Variance within channels, plus that of the channels' means.
        within = self._apart.mean() / max(1, self.n)
        return mean, float(np.sqrt(within + np.square(self._mean - mean).mean()))


def stretch_channels(latent: Any) -> np.ndarray:
    """Every map of every channel stretched to [-1, 1] (IV-VAE, supplement, eq. 6).

    ``(F - (max + min) / 2) * 2 / (max - min)`` with the extremes of one channel of one latent
    frame; a constant map becomes 0.

    Args:
      latent: ``[..., h, w, c]``.

    Returns:
      The same shape, float32.
    """
    latent = np.asarray(latent, np.float64)
    low = latent.min(axis=(-3, -2), keepdims=True)
    high = latent.max(axis=(-3, -2), keepdims=True)
    width = np.where(high > low, high - low, 1.0)
    return ((latent - (high + low) / 2) * 2 / width).astype(np.float32)
