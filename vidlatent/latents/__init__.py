"""The latent space: what generators learn from and codecs hand over."""
