"""vidlatent: highly compressed video latents in JAX/Flax, from training to serving."""

__version__ = "0.1.0"
