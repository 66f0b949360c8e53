"""``config.latents`` (generators): how latents are normalised before a network sees them."""

from ml_collections import ConfigDict


def get_latents() -> ConfigDict:
    latents = ConfigDict()
    # statistics: by the mean and deviation of each channel, measured once and stored with the
    # tokenizer (by the first --mode=encode, or by --mode=latents) | spec: by the moments or scale
    # of the tokenizer's config | none. A run that starts from a generator takes over its moments
    latents.normalisation = "statistics"
    # With chunks in time (tokenizer.chunks): moments of each latent frame of a chunk by itself,
    # since a chunk's first latent frame holds one frame and the others several
    latents.chunk_positions = False
    return latents
