"""``config.loss``: the terms of a tokenizer's loss, filled by the system's config."""

from ml_collections import ConfigDict


def get_loss() -> ConfigDict:
    """Term of ``losses.TERMS`` -> its weight, or a group of ``weight`` and the term's options."""
    return ConfigDict()
