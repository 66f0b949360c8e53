"""The papers' evaluations of generated videos as data: which clips, which frames, which scores.

A set of generated clips is compared with a set of real ones. Where a paper says only the number of
clips, the rest is that of the code which its field shares (StyleGAN-V's metrics, which Latte uses).
"""

from __future__ import annotations

import dataclasses

from vidlatent.evaluate.protocols import paper_tables
from vidlatent.evaluate.protocols.base import (
    I3D_FEATURES,
    RESIZE,
    PaperProtocol,
    ProtocolMetric,
)
from vidlatent.evaluate.protocols.paper_tables import PaperRow
from vidlatent.registry import Registry

__all__ = ["GENERATION_PROTOCOLS", "GenerationProtocol"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationProtocol(PaperProtocol):
    """One paper's way to score generated videos; see also ``PaperProtocol``.

    Attributes:
      frames: of a window, as the networks see it.
      real_stride: a real window takes every so many frames of its clip.
      drop: first frames of each generated clip that are left out.
      clips: of each set, spread evenly over the folder; 0: all that there are.
      few_real: fewer real clips will do, because the data set has fewer.
      splits: parts of the generated clips, each with an inception score of its own; 0: as
        ``config.eval.is_splits``.
    """

    frames: int
    real_stride: int = 1
    drop: int = 0
    clips: int = 2048
    few_real: bool = False
    splits: int = 10

    @property
    def real_frames(self) -> int:
        """Frames of a real clip that its window spans."""
        return (self.frames - 1) * self.real_stride + 1

    @property
    def generated_frames(self) -> int:
        """Frames that a generated clip must have."""
        return self.frames + self.drop

    def find_comparable(self) -> list[PaperRow]:
        """Rows of the paper's own models to show next to ours."""
        return [row for row in self.paper_table if row.own]


GENERATION_PROTOCOLS = Registry("protocol of generated videos")

_FVD, _IS = ProtocolMetric("fvd_i3d", "FVD"), ProtocolMetric("is_c3d", "IS")
_FILES = "generated clips: read from video files, so with what their compression changed"
_SPLITS = (
    "IS's parts and order: 10 parts, rows shuffled with seed 42, the class probabilities of C3D "
    "trained on UCF-101"
)


def _ivvae(data: str, *metrics: ProtocolMetric, **more: bool) -> GenerationProtocol:
    return GenerationProtocol(
        name=f"ivvae_{data}",
        source="IV-VAE, supplement table 2 (Latte with each tokenizer, 17 frames, interval 3)",
        frames=16,
        real_stride=3,
        drop=1,
        size=(256, 256),
        metrics=metrics,
        paper_table=paper_tables.IVVAE_GENERATION[data],
        headline="IV-VAE",
        open=(
            "number of clips: 2,048 of each, as Latte's evaluation takes",
            "generated frames: the first of 17 is left out (said for IS; done for FVD too, so that "
            "both see the same 16)",
            "real frames: the middle 16 of each clip at every third frame, as the models are "
            "trained (Latte's evaluation begins at random)",
            RESIZE.format(256),
            I3D_FEATURES,
            *((_SPLITS,) if _IS in metrics else ()),
            _FILES,
        ),
        **more,
    )


# FaceForensics has about a thousand videos, so 2,048 real ones there cannot be.
GENERATION_PROTOCOLS.register("ivvae_ucf101", _ivvae("ucf101", _FVD, _IS))
GENERATION_PROTOCOLS.register("ivvae_sky", _ivvae("sky", _FVD, few_real=True))
GENERATION_PROTOCOLS.register("ivvae_faces", _ivvae("faces", _FVD, few_real=True))

GENERATION_PROTOCOLS.register(
    "reducio_ucf101",
    GenerationProtocol(
        name="reducio_ucf101",
        source="Reducio, UCF-101 figure and supplement table 5 (16 frames at 256x256)",
        frames=16,
        fps=16.0,
        resize="bilinear",
        size=(256, 256),
        metrics=(_FVD, _IS),
        paper_table=paper_tables.REDUCIO_GENERATION,
        headline="Reducio-DiT",
        open=(
            "number of clips: 2,048 of each",
            "real frames: the middle 16 of each clip at 16 a second, the rate of the tokenizer",
            "resizing: short side to 256 bilinearly with antialiasing, centre cut, as the released "
            "code reads clips",
            "content frames of generated clips: where samples are drawn here, the middle frames of "
            "real clips",
            I3D_FEATURES,
            _SPLITS,
            _FILES,
        ),
    ),
)
