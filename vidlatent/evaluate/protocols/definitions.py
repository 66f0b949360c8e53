"""The papers' evaluations of reconstructions as data: frames, size, metrics, the paper's table.

A protocol is one paper's procedure. What the paper leaves open is chosen here and listed with every
result. Every protocol scores all clips of a folder, one window of each.
"""

from __future__ import annotations

import dataclasses

from vidlatent.errors import VidlatentError
from vidlatent.evaluate.protocols import paper_tables
from vidlatent.evaluate.protocols.base import (
    I3D_FEATURES,
    RESIZE,
    PaperProtocol,
    ProtocolMetric,
)
from vidlatent.evaluate.protocols.paper_tables import PaperRow
from vidlatent.metrics import PRESERVATION
from vidlatent.registry import Registry
from vidlatent.spec import FrameRule, LatentSpec

__all__ = ["PROTOCOLS", "Protocol", "ProtocolMetric"]

# Metrics that every evaluation has; all others a protocol names are in ``metrics.METRICS``.
BUILT_IN = ("psnr", "ssim", PRESERVATION)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol(PaperProtocol):
    """One paper's way to score reconstructions; see also ``PaperProtocol``.

    Attributes:
      frames: window lengths; of each clip the longest that it fills is taken.
      chunk: frames that are encoded and decoded at a time; what is coded of a window is a whole
        number of chunks.
      keep: every so manyth frame of a window is coded, from its first to its last; the others are
        an interpolator's, from ``config.eval.interpolated``. Above 1 there is one window length.
      place: where in a clip the window lies: 0 for its first frames, 0.5 for its middle ones.
      draw: decode a draw from the posterior, not its mean.
      space: value of ``config.codec.space`` by which frames are cut; a tokenizer that does not have
        it codes them whole.
      gride: also estimate the intrinsic dimension of the latents, each clip's one point.
    """

    frames: tuple[int, ...]
    chunk: int
    place: float
    draw: bool = False
    space: str = ""
    gride: bool = False
    keep: int = 1

    @property
    def rule(self) -> FrameRule:
        """Lengths of the windows as the loader checks them."""
        shortest = self.chunk if self.keep == 1 else self.frames[-1]
        return FrameRule(shortest, shortest)

    def check(self, spec: LatentSpec) -> None:
        """Raise ``VidlatentError`` unless a tokenizer can encode the protocol's chunks."""
        try:
            spec.check_video(self.chunk, *self.size)
        except VidlatentError as error:
            raise VidlatentError(
                f"config.eval.protocol={self.name} scores {spec.name} on chunks of {self.chunk} "
                f"frames at {self.size[0]}x{self.size[1]}: {error}"
            ) from error

    def find_comparable(self, spec: LatentSpec) -> list[PaperRow]:
        """Rows of the paper's own models to show next to ours: those with a latent like ours, or
        else the headline model.
        """
        own = [row for row in self.paper_table if row.own]
        # Time factor and channels tell a paper's variants apart; names need not match.
        alike = [row for row in own if (row.t, row.channels) == (spec.t, spec.channels)]
        return alike or [row for row in own if row.model.startswith(self.headline)]


PROTOCOLS = Registry("protocol")

# What a protocol's ``open`` says: "what is left open: what is done here".
_MIDDLE = (
    "clips and frames of each: every clip of the folder, its middle {} consecutive frames at the "
    "file's own rate"
)
_LPIPS = "network of LPIPS: both VGG16 and AlexNet are given, each by its name"
_ORDER = "order of averaging: over a clip's frames, then over clips; 8-bit RGB after rounding"
_MEAN = "latent: the posterior's mean"

PROTOCOLS.register(
    "fsae_table2",
    Protocol(
        name="fsae_table2",
        source="FSVideo, table 2 (17 frames at 256x256)",
        frames=(17,),
        chunk=17,
        size=(256, 256),
        place=0.5,
        metrics=(
            ProtocolMetric("ssim", "SSIM"),
            ProtocolMetric("psnr", "PSNR"),
            ProtocolMetric("lpips_vgg", "LPIPS"),
            ProtocolMetric("lpips_alex", "LPIPS"),
            ProtocolMetric("fvd_i3d", "FVD"),
        ),
        paper_table=paper_tables.FSAE_TABLE_2,
        headline="FSAE-Standard",
        open=(_MIDDLE.format(17), RESIZE.format(256), _LPIPS, _ORDER, I3D_FEATURES),
    ),
)

PROTOCOLS.register(
    "ivvae_s1",
    Protocol(
        name="ivvae_s1",
        source="IV-VAE, supplement table 1 (17 frames at 512x512)",
        frames=(17,),
        chunk=17,
        size=(512, 512),
        place=0.5,
        metrics=(
            ProtocolMetric("psnr", "PSNR"),
            ProtocolMetric("ssim", "SSIM"),
            ProtocolMetric("lpips_vgg", "LPIPS"),
            ProtocolMetric("lpips_alex", "LPIPS"),
            # Not in the paper's table, so it has no heading.
            ProtocolMetric(PRESERVATION),
        ),
        paper_table=paper_tables.IVVAE_TABLE_S1,
        headline="IV-VAE z=16",
        open=(
            _MIDDLE.format(17),
            RESIZE.format(512),
            _LPIPS,
            _ORDER,
            _MEAN,
            "information preservation: of equation 2, not in this table; its range of pixels "
            "(not stated) is taken to be [-1, 1]",
        ),
    ),
)

PROTOCOLS.register(
    "reducio_main",
    Protocol(
        name="reducio_main",
        source="Reducio, table of VAEs (16 frames at 256x256, 16 a second)",
        frames=(16,),
        chunk=16,
        size=(256, 256),
        place=0.5,
        fps=16.0,
        draw=True,
        resize="bilinear",
        metrics=(
            ProtocolMetric("psnr_reducio", "PSNR"),
            ProtocolMetric("ssim_reducio", "SSIM"),
            ProtocolMetric("lpips_reducio", "LPIPS"),
            ProtocolMetric("lpips_vgg", "LPIPS"),
            ProtocolMetric("fvd_i3d", "rFVD"),
        ),
        paper_table=paper_tables.REDUCIO_MAIN,
        headline="Reducio-VAE",
        open=(
            "frames of each clip: its middle 16 at 16 a second (the released code begins at "
            "random)",
            "resizing: as in the released code short side to 256 bilinearly with antialiasing, "
            "centre cut; the long side is rounded to whole pixels, not cut off to them",
            "range of LPIPS: the released code shows the network pixels in [0, 1], so the figure "
            "is that one; the usual [-1, 1] is given beside it",
            I3D_FEATURES + " (the paper's code for it is not published)",
        ),
    ),
)


PROTOCOLS.register(
    "reducio_512",
    Protocol(
        name="reducio_512",
        source="Reducio, supplement table 4 (16 frames at 512x512, against DC-AE)",
        frames=(16,),
        chunk=16,
        size=(512, 512),
        place=0.5,
        fps=16.0,
        draw=True,
        space="tiles_published",
        resize="bilinear",
        metrics=(
            ProtocolMetric("psnr_reducio", "PSNR"),
            ProtocolMetric("ssim_reducio", "SSIM"),
        ),
        paper_table=paper_tables.REDUCIO_512,
        headline="Reducio-VAE",
        open=(
            "frames of each clip: its middle 16 at 16 a second (only the size is stated)",
            "resizing: as in the released code short side to 512 bilinearly with antialiasing, "
            "centre cut",
            "scores: as in the table of VAEs, so SSIM of frames averaged down by 2 to 256x256",
            "tiles: of 320 pixels every 256, as the released code cuts frames above 320; other "
            "tokenizers code frames whole",
        ),
    ),
)

PROTOCOLS.register(
    "ivvae_256",
    Protocol(
        name="ivvae_256",
        source="IV-VAE, main table and supplement table 5 (17 frames at 256x256)",
        frames=(17,),
        chunk=17,
        size=(256, 256),
        place=0.5,
        metrics=(
            ProtocolMetric("fvd_i3d", "FVD"),
            ProtocolMetric("psnr", "PSNR"),
            ProtocolMetric("ssim", "SSIM"),
            ProtocolMetric("lpips_vgg", "LPIPS"),
            ProtocolMetric("lpips_alex", "LPIPS"),
        ),
        paper_table=paper_tables.IVVAE_256,
        headline="IV-VAE z=16",
        open=(
            _MIDDLE.format(17),
            RESIZE.format(256),
            _LPIPS,
            _ORDER,
            _MEAN,
            I3D_FEATURES,
            "SSIM by place: frames 1 to 16 in groups of four, without frame 0; in the table of "
            "places in the frame group",
        ),
    ),
)

PROTOCOLS.register(
    "fsvideo_table1",
    Protocol(
        name="fsvideo_table1",
        source="FSVideo, table 1 (intrinsic dimension by Gride, up to 64 neighbours)",
        frames=(17,),
        chunk=17,
        size=(256, 256),
        place=0.5,
        gride=True,
        metrics=(ProtocolMetric("psnr"), ProtocolMetric("ssim")),
        paper_table=paper_tables.FSVIDEO_TABLE_1,
        headline="FSAE, regulariser: Video VF",
        open=(
            "points: one a clip, its whole latent (the paper's values exceed the number of "
            "channels, so its points are no single positions); one clip of each file",
            "images: the first latent frames of the same clips, which encode their first frames "
            "alone",
            "clips: every one of the folder; below 1,000 the larger scales are underestimated",
            _MIDDLE.format(17),
            RESIZE.format(256),
            _MEAN,
        ),
    ),
)


def _promag(name: str, size: tuple[int, int], resize: str) -> Protocol:
    return Protocol(
        name=name,
        source=f"ProMAG, table 1 at {size[0]}x{size[1]} (68 frames in chunks of 17)",
        frames=(68, 51, 34, 17),
        chunk=17,
        size=size,
        place=0.0,
        metrics=(
            ProtocolMetric("psnr", "PSNR"),
            ProtocolMetric("lpips_alex", "LPIPS x 100", 100.0),
            ProtocolMetric("lpips_vgg", "LPIPS x 100", 100.0),
            ProtocolMetric("fvd_i3d", "rFVD"),
            ProtocolMetric("fvd_videomae", "rFVD"),
            ProtocolMetric("fvd_i3d_cut16", "rFVD"),
            ProtocolMetric("fvd_videomae_cut16", "rFVD"),
        ),
        paper_table=paper_tables.PROMAG_TABLE_1[f"{size[0]}x{size[1]}"],
        headline="ProMAG, 8x, z=16",
        open=(
            "clips: every one of the folder (which 30 sequences of DAVIS is not stated)",
            "frames: the first 68 at the file's own rate, as on the project page, in disjoint "
            "chunks of 17; of shorter clips the largest multiple of 17",
            resize,
            "network of LPIPS: both AlexNet and VGG16 are given, each by its name",
            _ORDER,
            "rFVD's network and clips: I3D (Kinetics-400 logits) and VideoMAE (giant, SSv2), one "
            "feature a clip over all of its frames, and (cut16) of its consecutive pieces of 16 "
            "frames; each frame straight to 224x224 bilinearly without antialiasing, covariance "
            "divided by n: with few clips the value depends mostly on their number",
            _MEAN,
        ),
    )


PROTOCOLS.register(
    "promag_table1", _promag("promag_table1", (512, 512), RESIZE.format(512) + ", as on the page")
)
PROTOCOLS.register(
    "promag_table1_360",
    _promag(
        "promag_table1_360",
        (360, 640),
        "resizing: to cover 360x640 and centre cut, which for 16:9 is plain resizing",
    ),
)


def _interpolated(keep: int) -> Protocol:
    frames = 1 + 16 * keep
    return Protocol(
        name=f"promag_table3_{keep}x",
        source=f"ProMAG, table 3 ({frames} frames at 512x512, every {keep}. coded, the others "
        "interpolated)",
        frames=(frames,),
        chunk=17,
        keep=keep,
        size=(512, 512),
        place=0.0,
        metrics=(
            ProtocolMetric("psnr", "PSNR"),
            ProtocolMetric("lpips_alex", "LPIPS x 100", 100.0),
            ProtocolMetric("lpips_vgg", "LPIPS x 100", 100.0),
            ProtocolMetric("fvd_i3d", "rFVD"),
            ProtocolMetric("fvd_videomae", "rFVD"),
        ),
        paper_table=paper_tables.PROMAG_TABLE_3[keep],
        headline="ProMAG 4x",
        open=(
            f"frames: the first {frames} at the file's own rate, of which every {keep}. makes the "
            "17 that are coded at once (65 is what a clip of the project page shows for 4x; for "
            "2x the number is not stated)",
            "interpolator: whatever made the frames of config.eval.interpolated (the paper names "
            "EMA-VFI) from the decoded frames, which are 8-bit",
            RESIZE.format(512),
            "network of LPIPS: both AlexNet and VGG16 are given, each by its name",
            _ORDER,
            I3D_FEATURES,
            _MEAN,
        ),
    )


for _keep in (2, 4):
    PROTOCOLS.register(f"promag_table3_{_keep}x", _interpolated(_keep))
