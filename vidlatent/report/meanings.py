"""What a number on a page means: its unit, whether more is better, and its definition."""

from __future__ import annotations

import dataclasses

from vidlatent.metrics import METRICS

__all__ = ["Meaning", "find_meaning"]


@dataclasses.dataclass(frozen=True)
class Meaning:
    """As ``metrics.base.MetricEntry`` has it; '' where it is not known."""

    unit: str = ""
    better: str = ""
    definition: str = ""


# Scores that evaluations compute beside the registered metrics.
_OTHERS = {
    "psnr": Meaning("dB", "higher", "peak signal-to-noise ratio, from the mean squared error"),
    "ssim": Meaning("", "higher", "structural similarity; 1 is equal"),
    "psnr_constant_colour": Meaning(
        "dB", "", "PSNR of each clip's mean colour: what a tokenizer without details would reach"
    ),
    "information_preservation_minus1_to_1": Meaning(
        "",
        "higher",
        "1 - sum |x - x'| / sum |x| over all clips, pixels in [-1, 1] (IV-VAE); 1 is all",
    ),
}


def find_meaning(name: str) -> Meaning:
    """Of a score such as ``psnr`` or ``val/psnr``; empty for what is no known score."""
    last = name.split("/")[-1]
    if last in _OTHERS:
        return _OTHERS[last]
    if last in METRICS.names():
        entry = METRICS.get(last)
        return Meaning(entry.unit, entry.better, entry.definition)
    return Meaning()
