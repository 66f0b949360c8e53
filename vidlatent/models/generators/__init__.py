"""Video generators by name: diffusion transformers over the tokenizers' latents.

What each is asked for stands in ``base.Generator``.
"""

from __future__ import annotations

import functools

from vidlatent.models.build import build_module
from vidlatent.registry import Registry

__all__ = ["GENERATORS", "build_generator"]

GENERATORS = Registry("generator")
GENERATORS.register("wan", "vidlatent.models.generators.wan.model:build_wan")
GENERATORS.register("latte", "vidlatent.models.generators.latte.model:build_latte")
GENERATORS.register(
    "reducio_dit", "vidlatent.models.generators.reducio_dit.model:build_reducio_dit"
)
GENERATORS.register("promag_dit", "vidlatent.models.generators.promag_dit.model:build_promag_dit")

# The module of a config's section ``generator``.
build_generator = functools.partial(build_module, GENERATORS)
