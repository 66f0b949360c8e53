"""Reducio-VAE: a motion latent of extreme compression, decoded around one content frame."""

from vidlatent.models.tokenizers.reducio.model import ReducioVAE, build_reducio

__all__ = ["ReducioVAE", "build_reducio"]
