"""Loss terms as pure functions, by the names a config uses.

A term takes ``(prediction, target, mask)``: video ``[B, T, H, W, C]`` in [-1, 1] and a weight
``[B]`` that is 1 for real samples and 0 for padding; it returns a float32 scalar.
"""

from __future__ import annotations

from vidlatent.losses.recon import l1
from vidlatent.registry import Registry

__all__ = ["TERMS", "l1"]

TERMS = Registry("loss term")
TERMS.register("l1", l1)
