"""IV-VAE: key frames and motion in two branches, group causal; with its ablations and baselines."""

from vidlatent.models.tokenizers.ivvae.model import IVVAE, build_ivvae

__all__ = ["IVVAE", "build_ivvae"]
