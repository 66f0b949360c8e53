"""What an evaluation says of latents: mean and spread, intrinsic dimension, channels as pictures.

Latents are added batch by batch while a tokenizer is scored; padding does not count. Only running
moments of each channel are kept and, for the intrinsic dimension, one latent of each source clip.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import logging

from vidlatent.media.sheets import channel_sheet
from vidlatent.metrics import ChannelMoments, gride, stretch_channels
from vidlatent.spec import LatentSpec

__all__ = ["LatentStatistics", "latent_sheet"]

_FEWEST_POINTS = 3  # that ``gride`` takes


class LatentStatistics:
    """Statistics of the latents of validation clips.

    Args:
      spec: what the latents are.
      gride_clips: source clips whose latents are kept for the intrinsic dimension, at most.

    Attributes:
      clips: clips seen (windows; several may come from one file).
    """

    def __init__(self, spec: LatentSpec, gride_clips: int = 0):
        self.spec = spec
        self.clips = 0
        self._moments = ChannelMoments(spec.channels)
        self._wanted = gride_clips
        # Latent shape -> source clip -> latent. One latent a file: two windows of the same file
        # would be near neighbours, and the dimension at small scales would be that of these pairs.
        self._kept: dict[tuple[int, ...], dict[int, np.ndarray]] = {}

    def add(self, latents: np.ndarray, mask: np.ndarray, clips: np.ndarray) -> None:
        """Add a batch ``[B, t, h, w, c]``; rows with ``mask`` 0 are left out.

        ``clips`` ``[B]`` numbers the source clips.
        """
        latents = np.asarray(latents, np.float32)
        real = np.flatnonzero(mask)
        self.clips += len(real)
        self._moments.add(latents[real])
        kept = self._kept.setdefault(latents.shape[1:], {})
        for row in real:
            if len(kept) < self._wanted and int(clips[row]) not in kept:
                # A view would keep the whole batch in memory.
                kept[int(clips[row])] = latents[row].copy()

    def statistics(self) -> dict[str, Any]:
        """Mean and standard deviation of what the encoder returns, whole and by channel.

        ``n`` counts the values behind each channel's numbers: latent frames times positions.
        """
        mean, std = self._moments.overall()
        channels = zip(self._moments.mean.tolist(), self._moments.std.tolist(), strict=True)
        return {
            "clips": self.clips,
            "n": self._moments.n,
            "mean": mean,
            "std": std,
            "by_channel": [
                {"channel": number, "mean": mean, "std": std}
                for number, (mean, std) in enumerate(channels)
            ],
        }

    def intrinsic_dimension(self) -> list[dict[str, Any]]:
        """``gride`` of whole latents as points, one row for each kind of point and scale.

        The kinds are videos, the first latent frames of the same videos (which a causal tokenizer
        makes of their first frames alone), and images; each latent shape by itself.
        """
        rows = []
        # Videos before images, which have one latent frame.
        for shape, kept in sorted(self._kept.items(), reverse=True):
            latents = list(kept.values())
            if len(latents) < self._wanted:
                logging.warning(
                    "latents %s: only %d source clips for the intrinsic dimension (at least 3 are "
                    "needed), not the %d of config.eval.gride_clips: raise "
                    "config.data.validation_clips or add files.",
                    _size(shape),
                    len(latents),
                    self._wanted,
                )
            if len(latents) < _FEWEST_POINTS:
                continue
            stacked = np.stack(latents)
            kinds = {"images" if shape[0] == 1 else "videos": stacked}
            if shape[0] > 1 and self.spec.rule.first == 1:
                kinds["first frames"] = stacked[:, :1]
            for kind, points in kinds.items():
                rows += _gride_rows(f"{kind} {_size(points.shape[1:])}", points)
        return rows


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _gride_rows(kind: str, points: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "points": kind,
            "neighbours": f"{scale.n1}, {scale.n2}",
            "dimension_gride": scale.dimension,
            "error": scale.error,
            "mean_distance": scale.distance,
            "n": scale.n,
        }
        for scale in gride(points.reshape(len(points), -1))
    ]


def latent_sheet(latent: np.ndarray, video: np.ndarray, spec: LatentSpec, title: str) -> bytes:
    """PNG of a clip's latent channels, each stretched from black to white by itself.

    Next to each latent frame is the first of the frames that it encodes.

    Args:
      latent: ``[t, h, w, c]``.
      video: the clip, uint8 ``[T, H, W, 3]``.
      spec: how the two belong together.
      title: a line at the top.
    """
    # Frames of the first latent if they are fewer than t: 1 under the rule 1+4k, else 0.
    lead = spec.rule.first % spec.t
    starts = [max(0, lead + (k - 1) * spec.t) if lead else k * spec.t for k in range(len(latent))]
    return channel_sheet(stretch_channels(latent), frames=video[starts], title=title)
