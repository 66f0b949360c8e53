"""What protocols of both kinds have: of reconstructions, and of generated videos."""

from __future__ import annotations

import dataclasses

from vidlatent.errors import VidlatentError
from vidlatent.evaluate.protocols.paper_tables import PaperRow
from vidlatent.registry import did_you_mean

__all__ = ["I3D_FEATURES", "RESIZE", "PaperProtocol", "ProtocolMetric"]

# What a protocol's ``open`` says: "what is left open: what is done here".
RESIZE = "resizing: short side to {} (area-averaged when smaller, bicubic when larger), centre cut"
I3D_FEATURES = (
    "FVD's network and resizing: I3D's Kinetics-400 logits of whole windows, each frame straight "
    "to 224x224 bilinearly without antialiasing, covariance divided by n"
)


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperProtocol:
    """One paper's way to score videos.

    Attributes:
      name: value of ``config.eval.protocol``.
      source: paper and table.
      size: height and width; frames are scaled until they cover it and cut in the middle.
      metrics: what is measured.
      paper_table: the paper's own numbers.
      headline: the model whose row of that table is shown next to a model that matches none of its
        rows.
      open: what the paper leaves open, and what is done here.
      fps: frame rate of the windows; 0: each file's own.
      resize: how frames are brought to their size, as ``config.data.resize``.
    """

    name: str
    source: str
    size: tuple[int, int]
    metrics: tuple[ProtocolMetric, ...]
    paper_table: tuple[PaperRow, ...]
    headline: str
    open: tuple[str, ...]
    fps: float = 0.0
    resize: str = "area"

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
