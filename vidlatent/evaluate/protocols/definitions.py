"""The papers' evaluations as data: which frames, at what size, which metrics, which paper's table.

A protocol is one paper's procedure. What the paper leaves open is chosen here and listed with every
result. Every protocol scores all clips of a folder, one window of each.
"""

from __future__ import annotations

import dataclasses

from vidlatent.errors import VidlatentError
from vidlatent.evaluate.protocols import paper_tables
from vidlatent.evaluate.protocols.paper_tables import PaperRow
from vidlatent.metrics import PRESERVATION
from vidlatent.registry import Registry, did_you_mean
from vidlatent.spec import FrameRule, LatentSpec

__all__ = ["PROTOCOLS", "ProtocolMetric", "Protocol"]

# Metrics that every evaluation has; all others a protocol names are in ``metrics.METRICS``.
BUILT_IN = ("psnr", "ssim", PRESERVATION)


@dataclasses.dataclass(frozen=True)
class ProtocolMetric:
    """A metric, and the column of the paper's table that it belongs to.

    Attributes:
      name: 'psnr', 'ssim', information preservation, or a name of ``metrics.METRICS``.
      heading: of the paper's column; '' if the table has none.
      factor: our score times this is in the table's unit.
    """

    name: str
    heading: str = ""
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One paper's way to score reconstructions.

    Attributes:
      name: value of ``config.eval.protocol``.
      source: paper and table.
      frames: window lengths; of each clip the longest that it fills is taken.
      chunk: frames that are encoded and decoded at a time; a window is a whole number of chunks.
      size: height and width; frames are scaled until they cover it and cut in the middle.
      place: where in a clip the window lies: 0 for its first frames, 0.5 for its middle ones.
      fps: frame rate of the windows; 0: each file's own.
      draw: decode a draw from the posterior, not its mean.
      resize: how frames are brought to their size, as ``config.data.resize``.
      metrics: what is measured.
      paper_table: the paper's own numbers.
      headline: the model whose row of that table is shown next to a model that matches none of its
        rows.
      open: what the paper leaves open, and what is done here.
    """

    name: str
    source: str
    frames: tuple[int, ...]
    chunk: int
    size: tuple[int, int]
    place: float
    metrics: tuple[ProtocolMetric, ...]
    paper_table: tuple[PaperRow, ...]
    headline: str
    open: tuple[str, ...]
    fps: float = 0.0
    draw: bool = False
    resize: str = "area"

    @property
    def rule(self) -> FrameRule:
        """Lengths of the windows as the loader checks them."""
        return FrameRule(self.chunk, self.chunk)

    def check(self, spec: LatentSpec) -> None:
        """Raise ``VidlatentError`` unless a tokenizer can encode the protocol's chunks."""
        try:
            spec.check_video(self.chunk, *self.size)
        except VidlatentError as error:
            raise VidlatentError(
                f"config.eval.protocol={self.name} scores {spec.name} on chunks of {self.chunk} "
                f"frames at {self.size[0]}x{self.size[1]}: {error}"
            ) from error

    def select_metrics(self, names: tuple[str, ...]) -> tuple[ProtocolMetric, ...]:
        """The metrics without those named in ``config.eval.leave_out``.

        Raises:
          VidlatentError: a name that is not one of the protocol's metrics.
        """
        known = [metric.name for metric in self.metrics]
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known)
                raise VidlatentError(
                    f"config.eval.leave_out: {self.name} has no metric {name!r}: {hint}"
                )
        return tuple(metric for metric in self.metrics if metric.name not in names)

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
_RESIZE = "resizing: short side to {} (area-averaged when smaller, bicubic when larger), centre cut"
_LPIPS = "network of LPIPS: both VGG16 and AlexNet are given, each by its name"
_ORDER = "order of averaging: over a clip's frames, then over clips; 8-bit RGB after rounding"
_I3D = (
    "FVD's network and resizing: I3D's Kinetics-400 logits of whole windows, each frame straight "
    "to 224x224 bilinearly without antialiasing, covariance divided by n"
)
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
        open=(_MIDDLE.format(17), _RESIZE.format(256), _LPIPS, _ORDER, _I3D),
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
            _RESIZE.format(512),
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
            _I3D + " (the paper's code for it is not published)",
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
    "promag_table1", _promag("promag_table1", (512, 512), _RESIZE.format(512) + ", as on the page")
)
PROTOCOLS.register(
    "promag_table1_360",
    _promag(
        "promag_table1_360",
        (360, 640),
        "resizing: to cover 360x640 and centre cut, which for 16:9 is plain resizing",
    ),
)
