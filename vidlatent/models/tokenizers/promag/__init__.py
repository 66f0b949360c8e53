"""ProMAG: a causal 4x tokenizer grown to 8x and 16x; with the MAGVIT-v2 baseline it starts from."""

from vidlatent.models.tokenizers.promag.model import ProMAG, build_magvit2, build_promag

__all__ = ["ProMAG", "build_magvit2", "build_promag"]
