"""Class labels as learned vectors."""

import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.layers.embeddings import LabelEmbedding


def test_labels():
    module = LabelEmbedding(3, 8)
    params = module.init(jax.random.key(0), jnp.zeros(1, jnp.int32))
    assert params["params"]["embedding"].shape == (4, 8)
    labels, drop = jnp.array([0, 2, 1, 3]), jnp.array([False, True, False, False])
    found = module.apply(params, labels, drop)
    np.testing.assert_array_equal(found, params["params"]["embedding"][jnp.array([0, 3, 1, 3])])
