"""Tokenizers by name, one folder for each system; ``build`` makes one from a config."""

from __future__ import annotations

import functools

from vidlatent.models.build import build_module
from vidlatent.models.tokenizers.base import Posterior
from vidlatent.registry import Registry

__all__ = ["MODELS", "Posterior", "build"]

MODELS = Registry("model")
MODELS.register("dcae", "vidlatent.models.tokenizers.fsvideo:build_dcae")
MODELS.register("fsae", "vidlatent.models.tokenizers.fsvideo:build_fsae")
MODELS.register("ivvae", "vidlatent.models.tokenizers.ivvae:build_ivvae")
MODELS.register("reducio", "vidlatent.models.tokenizers.reducio:build_reducio")
MODELS.register("promag", "vidlatent.models.tokenizers.promag:build_promag")
MODELS.register("magvit2", "vidlatent.models.tokenizers.promag:build_magvit2")
MODELS.register("wan_vae", "vidlatent.models.tokenizers.wan_vae:build_wan_vae")


# The module of a config's section ``model``.
build = functools.partial(build_module, MODELS)
