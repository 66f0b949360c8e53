"""In which pieces frames go through a tokenizer's programs: groups of a stream, or chunks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from vidlatent.codec.options import CodecPlan
from vidlatent.models.tokenizers.chunks import stream_chunks
from vidlatent.spec import LatentSpec

__all__ = ["Piece", "Pieces"]


class Piece(NamedTuple):
    """Frames that are coded together.

    Attributes:
      frames: of the video.
      new: how many of them are not shared with the piece before.
      length: frames to code, after repeating the last one.
    """

    frames: list[Any]
    new: int
    length: int


class Pieces:
    """How a plan cuts videos in time; the same for one video and for a batch of clips.

    Args:
      plan: of ``config.codec``.
      spec: of the tokenizer's latents.

    Attributes:
      chunks: ``(frames, overlap_frames)`` of chunks, each coded by itself; None for a stream.
      per_group: latent frames of a frame group.
      lead: 1 if frame 0 stands before the groups, with a latent frame of its own; else 0.
    """

    def __init__(self, plan: CodecPlan, spec: LatentSpec):
        self.spec, self.chunks = spec, plan.chunks
        self._groups, self._scan_groups = plan.groups, plan.scan_groups
        self.per_group = spec.rule.step // spec.t
        self.lead = spec.rule.first % spec.rule.step

    def cut(self, frames: Iterable[Any]) -> Iterator[Piece]:
        """The pieces of a video of unknown length."""
        rule = self.spec.rule
        if self.chunks:
            chunk, overlap = self.chunks
            for count, (piece, new) in enumerate(stream_chunks(frames, overlap, chunk)):
                # A video of one frame is coded as a picture, not as a chunk full of copies.
                picture = count == 0 and len(piece) == 1 and rule.legal(1)
                yield Piece(piece, new, 1 if picture else chunk)
            return
        stream, wanted = iter(frames), self._groups * rule.step
        # The first piece also takes frame 0 of causal tokenizers, which is in no group.
        taken = list(itertools.islice(stream, wanted + self.lead))
        # A short video is coded at its own length; later pieces keep one compiled shape.
        length = rule.ceil(len(taken))
        while taken:
            yield Piece(taken, len(taken), length)
            taken, length = list(itertools.islice(stream, wanted)), wanted

    def group_runs(self, pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
        """Group pieces into the lists that one call codes.

        The first piece comes alone, then ``scan_groups`` full pieces at a time. Left-over pieces at
        the end come one by one, so that no further shape has to be compiled.
        """
        head = next(pieces, None)
        if head is not None:
            yield [head]
        count = self._scan_groups
        while run := list(itertools.islice(pieces, count)):
            full = len(run) == count > 1 and all(len(piece.frames) == piece.length for piece in run)
            yield from [run] if full else [[piece] for piece in run]

    def count_kept(self, run: list[Piece], first: bool) -> int:
        """Latent frames of a run that stay: all of a chunk; at the end of a stream none of padding.

        ``first``: the run begins a stream.
        """
        if self.chunks:
            return self._count_latents(run[0].length, first)
        return self._count_latents(sum(len(piece.frames) for piece in run), first)

    def _count_latents(self, frames: int, first: bool) -> int:
        lead = self.lead if first else 0
        groups = -(-(frames - lead) // self.spec.rule.step)
        return (1 if lead else 0) + groups * self.per_group
