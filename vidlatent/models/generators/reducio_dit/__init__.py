"""Reducio-DiT: PixArt-alpha over Reducio latents, with a content frame."""
