"""Training and validation parts by a hash of the file name, whatever the order of the files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

__all__ = ["TRAIN", "VALIDATION", "WHOLE", "split_groups"]

TRAIN, VALIDATION = "train", "validation"
WHOLE = "whole"  # both of them: for scoring on data that nothing was trained on


def _hash_position(group: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:7], "big") / 2**56


def split_groups(groups: Mapping[str, str], share: float) -> dict[str, str]:
    """Assign each group of clips with the same content to a part.

    A group is held out if its hash is below ``share``, so that adding files never moves the others.
    Of two groups or more at least one is held out, but never all. With ``share`` 0 none is.

    Args:
      groups: group name -> the part that its source puts it in, or ''.
      share: share to hold out.
    """
    parts = {}
    for group, bound in groups.items():
        parts[group] = bound or (VALIDATION if _hash_position(group) < share else TRAIN)
    if share <= 0:
        return {group: TRAIN for group in groups}
    order = sorted(parts, key=lambda group: (_hash_position(group), group))
    held = [group for group in order if parts[group] == VALIDATION]
    if len(parts) >= 2 and not held:
        # The one that would be held out first if the share grew.
        parts[order[0]] = VALIDATION
    elif held and len(held) == len(parts):
        parts[held[-1]] = TRAIN
    return parts
