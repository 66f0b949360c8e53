"""Old names of config keys: stored configs are read under the new ones.

A key that is renamed gets a row in ``RENAMED``. The rows are applied one after the other, so that
an older name may lead to a newer one that leads to today's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["RENAMED", "RENAMED_RECIPES", "renamed_key", "upgrade"]

# Old name of a key, or of a group of keys -> its name today.
RENAMED = {
    "critic": "discriminator",
    "discriminator.continues": "discriminator.inherit",
    "discriminator.optim.frozen": "discriminator.optim.freeze",
    "discriminator.optim.factors": "discriminator.optim.lr_factors",
    "discriminator.optim.undecayed": "discriminator.optim.no_decay",
    "optim.frozen": "optim.freeze",
    "optim.factors": "optim.lr_factors",
    "optim.undecayed": "optim.no_decay",
    "sampler.eight_bits": "sampler.fp8",
    "sampler.keep": "sampler.cache_conditions",
    "eval.stand_ins": "eval.random_networks",
}
# Words of recipes, in config.recipe and config.train.init_recipes.
RENAMED_RECIPES = {"critic": "discriminator"}


def renamed_key(dotted: str) -> str:
    """Today's name of the key ``a.b``; the same name if it was never renamed."""
    for old, new in RENAMED.items():
        if dotted == old or dotted.startswith(f"{old}."):
            dotted = new + dotted.removeprefix(old)
    return dotted


def upgrade(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config under today's names.

    Args:
      stored: as ``config.json`` holds it, of any age, nested.
    """
    result: dict[str, Any] = {}
    for dotted, value in _leaves(stored, ""):
        *parents, leaf = renamed_key(dotted).split(".")
        node = result
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    train = result.get("train", {})
    if "recipe" in result:
        result["recipe"] = _renamed_recipe(result["recipe"])
    if "init_recipes" in train:
        train["init_recipes"] = tuple(map(_renamed_recipe, train["init_recipes"]))
    # Configs from before this key: only generators have a section of that name.
    if "task" not in result:
        result["task"] = "generator" if result.get("generator") else "tokenizer"
    if result["task"] == "generator" and "latents" not in result:
        _set_normalisation(result)
    return result


def _set_normalisation(config: dict[str, Any]) -> None:
    """What was done before there was a key: a set's own moments, or the spec's scale and shift."""
    source = config.get("data", {}).get("source")
    kind = "statistics" if source == "latents" else "spec"
    config["latents"] = {"normalisation": kind}


def _leaves(node: Mapping[str, Any], prefix: str) -> Any:
    """Dotted names and values; an empty group is a value too."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _renamed_recipe(recipe: str) -> str:
    return " ".join(RENAMED_RECIPES.get(word, word) for word in recipe.split(" "))
