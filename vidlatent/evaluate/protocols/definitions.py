"""The papers' evaluations as data: which frames, at what size, which scores, beside which figures.

What a paper leaves open is chosen here and listed with every result. Every protocol scores all
clips of a folder, one window of each.
"""

from __future__ import annotations

import dataclasses

from vidlatent.errors import VidlatentError
from vidlatent.evaluate.protocols import figures
from vidlatent.evaluate.protocols.figures import Row
from vidlatent.metrics import PRESERVATION
from vidlatent.registry import Registry, did_you_mean
from vidlatent.spec import FrameRule, LatentSpec

__all__ = ["PROTOCOLS", "Measure", "Protocol"]

BUILT_IN = (
    "psnr",
    "ssim",
    PRESERVATION,
)  # of every evaluation, besides those of ``metrics.METRICS``


@dataclasses.dataclass(frozen=True)
class Measure:
    """A score and the column of the paper's table that it belongs to.

    Attributes:
      name: 'psnr', 'ssim', information preservation, or a name of ``metrics.METRICS``.
      heading: of the paper's column; '' where the table has none.
      factor: measurements times this are in the table's unit.
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
      chunk: frames that are coded at a time; windows are whole numbers of chunks.
      size: height and width; frames are scaled until they cover it and cut in the middle.
      place: 0: a clip's first frames, 0.5: its middle ones.
      fps: frame rate of the windows; 0: each file's own.
      draw: decode a draw from the posterior, not its mean.
      resize: how frames are brought to their size, as ``config.data.resize``.
      measures: the scores.
      figures: the paper's table.
      headline: model of that table to stand beside a measured one that is none of the paper's.
      open: what the paper leaves open and what is done here.
    """

    name: str
    source: str
    frames: tuple[int, ...]
    chunk: int
    size: tuple[int, int]
    place: float
    measures: tuple[Measure, ...]
    figures: tuple[Row, ...]
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
        """Raise unless a tokenizer takes the protocol's chunks."""
        try:
            spec.check_video(self.chunk, *self.size)
        except VidlatentError as error:
            raise VidlatentError(
                f"config.eval.protocol={self.name} scores {spec.name} on chunks of {self.chunk} "
                f"frames at {self.size[0]}x{self.size[1]}: {error}"
            ) from error

    def without(self, names: tuple[str, ...]) -> tuple[Measure, ...]:
        """The measures but those named in ``config.eval.leave_out``.

        Raises:
          VidlatentError: a name that is none of them.
        """
        known = [measure.name for measure in self.measures]
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known)
                raise VidlatentError(
                    f"config.eval.leave_out: {self.name} has no score {name!r}: {hint}"
                )
        return tuple(measure for measure in self.measures if measure.name not in names)

    def beside(self, spec: LatentSpec) -> list[Row]:
        """The paper's own models nearest to a measured one: of its latent, else the headline."""
        own = [row for row in self.figures if row.own]
        alike = [row for row in own if (row.t, row.channels) == (spec.t, spec.channels)]
        return alike or [row for row in own if row.model.startswith(self.headline)]


PROTOCOLS = Registry("protocol")

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
        measures=(
            Measure("ssim", "SSIM"),
            Measure("psnr", "PSNR"),
            Measure("lpips_vgg", "LPIPS"),
            Measure("lpips_alex", "LPIPS"),
            Measure("fvd_i3d", "FVD"),
        ),
        figures=figures.FSAE_TABLE_2,
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
        measures=(
            Measure("psnr", "PSNR"),
            Measure("ssim", "SSIM"),
            Measure("lpips_vgg", "LPIPS"),
            Measure("lpips_alex", "LPIPS"),
            Measure(PRESERVATION),
        ),
        figures=figures.IVVAE_TABLE_S1,
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
        measures=(
            Measure("psnr_reducio", "PSNR"),
            Measure("ssim_reducio", "SSIM"),
            Measure("lpips_reducio", "LPIPS"),
            Measure("lpips_vgg", "LPIPS"),
            Measure("fvd_i3d", "rFVD"),
        ),
        figures=figures.REDUCIO_MAIN,
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
        measures=(
            Measure("psnr", "PSNR"),
            Measure("lpips_alex", "LPIPS x 100", 100.0),
            Measure("lpips_vgg", "LPIPS x 100", 100.0),
            Measure("fvd_i3d", "rFVD"),
            Measure("fvd_videomae", "rFVD"),
            Measure("fvd_i3d_cut16", "rFVD"),
            Measure("fvd_videomae_cut16", "rFVD"),
        ),
        figures=figures.PROMAG_TABLE_1[f"{size[0]}x{size[1]}"],
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
