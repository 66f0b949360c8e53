"""What a generator takes over from its latents: numbers of channels that are ``-1`` in its config.

And whether it fits the latents of a tokenizer that is not trained yet.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from vidlatent.config import is_generator
from vidlatent.errors import VidlatentError
from vidlatent.latents.contract import LatentSpace
from vidlatent.latents.space import (
    Latents,
    abstract_generator,
    check_generator,
    describe_latents,
    generator_of,
)
from vidlatent.models.generators import FOLLOW
from vidlatent.models.load import model_of, spec_in_chunks
from vidlatent.spec import LatentSpec

__all__ = ["check_with_tokenizer", "follow_latents"]

_KEYS = ("latent_channels", "condition_channels")


def follow_latents(config: ConfigDict, spec: LatentSpec | None = None) -> ConfigDict:
    """The config with the channels that are ``FOLLOW`` replaced by those of the latents.

    A run stores the result, so that whoever reads its ``config.json`` sees numbers.

    Args:
      config: of a run; that of a tokenizer is returned as it is.
      spec: of the latents; None: of those that ``config.data`` and ``config.tokenizer`` name.

    Raises:
      VidlatentError: the generator's given latents have other channels, or the latents are missing.
    """
    if not is_generator(config):
        return config
    asked = {key: config.generator[key] for key in _KEYS if key in config.generator}
    condition = asked.get("condition_channels", 0)
    # Only then are the latents looked for: programs on made-up latents need none.
    if FOLLOW not in asked.values() and not condition:
        return config
    spec = describe_latents(config).spec if spec is None else spec
    if condition not in (0, FOLLOW, spec.channels):
        raise VidlatentError(
            f"config.generator.condition_channels is {condition}, but the latents of {spec.name} "
            f"have {spec.channels}, and given frames have as many: set it to {spec.channels}, to "
            f"{FOLLOW} to follow them, or to 0 if no frame is given."
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for key, value in asked.items():
            if value == FOLLOW:
                config.generator[key] = spec.channels
    return config


def check_with_tokenizer(config: ConfigDict, tokenizer: ConfigDict) -> None:
    """Check a generator's config before the tokenizer is trained whose latents it will have.

    Raises:
      VidlatentError: the generator cannot be built, or does not fit these latents.
    """
    chunks = config.tokenizer.chunks
    spec = spec_in_chunks(model_of(tokenizer), chunks, "config.tokenizer.chunks")
    model = generator_of(follow_latents(config, spec))
    check_generator(model, Latents(LatentSpace.of_spec(spec, "none")))
    abstract_generator(model)  # sizes that do not divide show when it is traced
