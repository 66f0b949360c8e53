"""Small trainable conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.data.text.tokens import byte_tokens, word_tokens
from vidlatent.errors import VidlatentError
from vidlatent.layers.embeddings import LabelEmbedding, TextEmbedding


def test_labels():
    module = LabelEmbedding(3, 8)
    params = module.init(jax.random.key(0), jnp.zeros(1, jnp.int32))
    assert params["params"]["embedding"].shape == (4, 8)
    labels, drop = jnp.array([0, 2, 1, 3]), jnp.array([False, True, False, False])
    found = module.apply(params, labels, drop)
    np.testing.assert_array_equal(found, params["params"]["embedding"][jnp.array([0, 3, 1, 3])])


def test_texts():
    module = TextEmbedding(64, 8, 6)
    tokens, mask = word_tokens(["red square moving left", "Red, square!", ""], 6, 64)
    params = module.init(jax.random.key(0), tokens, mask)
    states, seen = module.apply(params, tokens, mask)
    np.testing.assert_array_equal(seen.sum(axis=1), [4, 2, 1])
    assert not np.asarray(states)[np.asarray(seen) == 0].any()
    np.testing.assert_array_equal(states[0, :2], states[1, :2])
    # A dropped text is the empty one; what stood at the padding is not read.
    dropped, short = module.apply(params, tokens, mask, jnp.array([True, False, False]))
    np.testing.assert_array_equal(dropped[0], states[2])
    np.testing.assert_array_equal(short[0], seen[2])
    other = module.apply(params, np.where(mask, tokens, 9), mask)[0]
    np.testing.assert_array_equal(other, states)
    # What stands for no text learns, too.
    grads = jax.grad(lambda p: jnp.sum(module.apply(p, tokens, mask)[0] ** 2))(params)
    assert np.abs(grads["params"]["embedding"][0]).max() > 0
    longer = byte_tokens(["abcdefg"], 7)
    with pytest.raises(VidlatentError, match="7 tokens exceed the embedder's length 6"):
        module.apply(params, *longer)
