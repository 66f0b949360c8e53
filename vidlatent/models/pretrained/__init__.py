"""Frozen networks that judge pictures and clips: losses and metrics look through them.

Generators read texts and pictures through others (``t5``, ``clip``). A network is a pure function
of its parameters and pixels in [-1, 1] or tokens; whatever scaling its training used happens
inside. Its weights come from a published file (``pretrained.load``), or, by the explicit
path ``random``, from a seed: then its label says so, and so must every number that it had a part
in. ``*_tiny`` are not published networks but small stand-ins for tests and for demonstrations
without weights.
"""

from vidlatent.models.pretrained.registry import (
    NETWORKS,
    Definition,
    Network,
    network_apply,
    network_shapes,
    random_params,
)

__all__ = [
    "NETWORKS",
    "Definition",
    "Network",
    "network_apply",
    "network_shapes",
    "random_params",
]
