"""Wan2.1's and Wan2.2's video autoencoders, so that latents made by either can be read and made."""

from vidlatent.models.tokenizers.wan_vae.model import WanVAE, build_wan_vae

__all__ = ["WanVAE", "build_wan_vae"]
