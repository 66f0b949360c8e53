"""Pretrained networks, always frozen: feature extractors of losses and metrics, and encoders of
texts and images for generators (``t5``, ``clip``).

A network is a pure function of its parameters and of pixels in [-1, 1] or tokens; the normalisation
that it was trained with happens inside. Its weights come from a published file
(``pretrained.load``). The path ``random`` gives random weights instead: the network's label then
says so, and every score computed with it carries the label. ``*_tiny`` are tiny networks for tests
and for demonstrations without downloads.
"""

from vidlatent.models.pretrained.registry import (
    NETWORKS,
    Definition,
    Network,
    init_network,
    network_apply,
    network_shapes,
    random_params,
)

__all__ = [
    "NETWORKS",
    "Definition",
    "Network",
    "init_network",
    "network_apply",
    "network_shapes",
    "random_params",
]
