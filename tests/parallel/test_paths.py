"""Path expressions all work alike, and the shipped ones select what they always did."""

import re

import jax
import pytest

from tests.helpers.recipes import DEMOS, PAPER, small
from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.latents.space import abstract_generator, generator_of
from vidlatent.models.load import abstract_params, model_of
from vidlatent.parallel.paths import match_path, path_name
from vidlatent.train.freeze import mark_frozen

GENERATORS = ("fsvideo_dit:demo", "fsvideo_dit:paper", "latte:demo", "reducio_dit:demo")


def test_expressions_are_matched_from_the_start():
    assert match_path("encoder/", "encoder/conv_in/kernel")
    assert not match_path("encoder/", "grow1/encoder/conv_in/kernel")
    assert match_path(".*encoder/", "grow1/encoder/conv_in/kernel")
    assert not match_path("router_$", "router_2/kernel") and not match_path("", "router_2/kernel")
    with pytest.raises(
        VidlatentError, match="config.optim.freeze .*encoder.* is not a regular expression"
    ):
        match_path("(encoder", "encoder/kernel", "config.optim.freeze")


def expressions(config):
    """The config's expressions, each with the function of ``re`` that formerly matched it."""
    optim = [config.optim, config.discriminator.optim]
    found = [(o.freeze, re.match) for o in optim] + [(o.no_decay, re.match) for o in optim]
    found += [(pattern, re.match) for o in optim for pattern, _ in o.lr_factors]
    found.append((config.discriminator.adaptive_layer, re.fullmatch))
    return [(pattern, once) for pattern, once in found if pattern]


@pytest.mark.parametrize("preset", [*PAPER, *DEMOS, *GENERATORS])
def test_presets_select_the_leaves_that_they_selected(preset):
    config = load(preset) if preset in GENERATORS else small(preset)[0]
    found = expressions(config)
    if not found:
        return
    if preset in GENERATORS:
        shapes = abstract_generator(generator_of(config))
    else:
        shapes = abstract_params(model_of(config))
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    for pattern, once in found:
        selected = [name for name in names if match_path(pattern, name)]
        assert selected == [name for name in names if once(pattern, name)]
        assert selected or pattern != config.discriminator.adaptive_layer
    if config.optim.freeze:
        marks = jax.tree.leaves(mark_frozen(shapes, config.optim.freeze))
        assert marks == [match_path(config.optim.freeze, name) for name in names]
