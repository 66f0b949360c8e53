"""DINOv2 as a loss uses it: sizes, preprocessing, the tiny network."""

import jax
import numpy as np
import pytest

from tests.helpers import pretrained_oracle as oracle
from vidlatent.models.pretrained import network_apply, network_shapes, random_params
from vidlatent.models.pretrained.dinov2.model import input_size

# Published parameters, of which the mask token (one width) is not kept.
SIZES = {
    "dinov2_vits14": (22_056_576, 384),
    "dinov2_vitb14": (86_580_480, 768),
    "dinov2_vitl14": (304_368_640, 1024),
    "dinov2_vitg14": (1_136_480_768, 1536),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    total, width = SIZES[name]
    assert sum(leaf.size for leaf in jax.tree.leaves(network_shapes(name))) == total - width


def test_input_sizes():
    assert input_size(256, 256, 14) == (224, 224)
    assert input_size(1024, 1024, 14) == (224, 224)
    assert input_size(360, 640, 14) == (168, 294)
    assert input_size(10, 4000, 14) == (14, 4480)


def test_tokens_follow_the_picture_and_not_its_size():
    apply, params = oracle.quick(network_apply("dinov2_tiny")), random_params("dinov2_tiny")
    small = np.random.default_rng(0).uniform(-1, 1, (2, 24, 24, 3)).astype(np.float32)
    tokens = apply(params, small)
    assert tokens.shape == (2, 6, 6, 16)
    # Bilinear, three to one: the middle pixel of each block is taken.
    large = np.repeat(np.repeat(small, 3, axis=1), 3, axis=2)
    np.testing.assert_allclose(apply(params, large), tokens, atol=1e-5)
    assert np.abs(apply(params, -small) - tokens).max() > 0.1
