"""``config.model`` and ``config.generator``: what is trained, filled by the system's config."""

from ml_collections import ConfigDict


def get_model() -> ConfigDict:
    """``name`` of ``models.tokenizers.MODELS`` and that tokenizer's fields."""
    return ConfigDict()


def get_generator() -> ConfigDict:
    """``name`` of ``models.generators.GENERATORS`` and that generator's fields."""
    return ConfigDict()
