"""Importer tables: LPIPS as its package saves it, and as two files, classifier and heads."""

from __future__ import annotations

from vidlatent.models.pretrained.lpips.model import ALEX_SLICES, VGG_SLICES, Slice

__all__ = ["LPIPS_ALEX_TORCHVISION_TABLE", "LPIPS_TABLE", "LPIPS_VGG_TORCHVISION_TABLE"]

_LAYER = r"net[.]slice(?P<s>\d)[.](?P<i>\d+)[.]"
_HEADS = ((r"lin(?P<k>\d)[.]model[.]1[.]weight", "lin{k}/kernel", "pointwise2d"),)

# The `lpips` package's whole module, whatever its trunk. It holds the heads a second time as a
# list, and the scaling constants.
LPIPS_TABLE = (
    (_LAYER + "weight", "slice{s}_{i}/kernel", "conv2d"),
    (_LAYER + "bias", "slice{s}_{i}/bias", "copy"),
    *_HEADS,
    (r"lins[.]\d[.]model[.]1[.]weight", "", "drop"),
    (r"scaling_layer[.](?:shift|scale)", "", "drop"),
)


def _torchvision(slices: tuple[Slice, ...]) -> tuple[tuple[str, str, str], ...]:
    """A torchvision classifier together with the published heads; its own head is left out."""
    rows = []
    for number, (_, layers) in enumerate(slices):
        for index, *_ in layers:
            source, target = f"features[.]{index}[.]", f"slice{number + 1}_{index}/"
            rows.append((source + "weight", target + "kernel", "conv2d"))
            rows.append((source + "bias", target + "bias", "copy"))
    return (*rows, *_HEADS, (r"classifier[.].*", "", "drop"))


LPIPS_VGG_TORCHVISION_TABLE = _torchvision(VGG_SLICES)
LPIPS_ALEX_TORCHVISION_TABLE = _torchvision(ALEX_SLICES)
