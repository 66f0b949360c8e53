"""``config.conditions`` (generators): conditioning inputs and their dropout rates."""

from ml_collections import ConfigDict


def get_conditions() -> ConfigDict:
    conditions = ConfigDict()
    # Condition -> share of the samples that train without it, for classifier-free guidance;
    # "first+image" names two that are dropped together
    conditions.drop = ConfigDict()
    conditions.joint = 0.0  # share of the samples that train without any of those
    # What replaces a dropped text in generators that learn no null text: "empty", the encoded empty
    # text, which data sets with texts hold, or "zeros", one token of zeros
    conditions.null_text = "zeros"
    # Latent of the content frame (Reducio-DiT): "latents" of the image autoencoder encode.content,
    # which a data set stores, or "pooled": means of squares of pixels, which need no network
    conditions.content = "latents"
    return conditions
