"""vidlatent: highly compressed video latents in JAX/Flax, from training to serving.

``load_codec`` gives a ``Codec``, which turns videos into ``Coded`` latents, or the bytes of a
compressed file, and back; ``decompress`` restores compressed files that hold their decoder.
``load_generator`` gives a ``Generator``, which makes videos, and ``write_video`` writes them.
``LatentSpec`` describes a latent space; mistakes of the user are ``VidlatentError``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time a name is imported on first use
    from vidlatent.codec.codec import Codec
    from vidlatent.codec.coded import Coded
    from vidlatent.codec.load import decompress, load_codec
    from vidlatent.errors import VidlatentError
    from vidlatent.media.write import write_video
    from vidlatent.sample.generator import Generator
    from vidlatent.sample.load import load_generator
    from vidlatent.spec import LatentSpec

__version__ = "0.1.0"
__all__ = [
    "Codec",
    "Coded",
    "Generator",
    "LatentSpec",
    "VidlatentError",
    "__version__",
    "decompress",
    "load_codec",
    "load_generator",
    "write_video",
]

_MODULES = {
    "Codec": "vidlatent.codec.codec",
    "Coded": "vidlatent.codec.coded",
    "Generator": "vidlatent.sample.generator",
    "LatentSpec": "vidlatent.spec",
    "VidlatentError": "vidlatent.errors",
    "decompress": "vidlatent.codec.load",
    "load_codec": "vidlatent.codec.load",
    "load_generator": "vidlatent.sample.load",
    "write_video": "vidlatent.media.write",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
