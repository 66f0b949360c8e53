"""Group-causal convolutions against a plain group-by-group computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.layers.conv import Conv
from vidlatent.layers.temporal import TimeRule, merge_taps, view_frames


def _by_groups(x, kernel, group):
    """Each group padded by the frame before it on the left and its own last frame on the right."""
    starts = [0, *range(1, x.shape[1], group)]
    parts = []
    for begin, end in zip(starts, [*starts[1:], x.shape[1]], strict=True):
        left = x[:, max(0, begin - 1) : max(0, begin - 1) + 1]
        padded = jnp.concatenate([left, x[:, begin:end], x[:, end - 1 : end]], axis=1)
        parts.append(
            jax.lax.conv_general_dilated(
                padded,
                kernel,
                (1, 1, 1),
                ((0, 0), (1, 1), (1, 1)),
                dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
            )
        )
    return jnp.concatenate(parts, axis=1)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_dense_form_equals_the_padded_groups(group):
    rng = np.random.default_rng(group)
    x = jnp.asarray(rng.normal(size=(2, 9, 4, 5, 3)), jnp.float32)
    conv = Conv(4, time=TimeRule("group", group), use_bias=False)
    params = conv.init(jax.random.key(0), x)
    want = _by_groups(x, params["params"]["kernel"], group)
    np.testing.assert_allclose(conv.apply(params, x)[0], want, atol=1e-5)


def test_groups_of_one_take_two_taps():
    x, kernel = jnp.ones((1, 3, 2, 2, 1)), jnp.arange(3.0).reshape(3, 1, 1, 1, 1)
    view, _ = view_frames(x, None, TimeRule("group", 1), 3)
    frames, merged = merge_taps(view, kernel)
    assert len(frames) == 2
    np.testing.assert_array_equal(merged.ravel(), [0.0, 3.0])
    # Zeros to the right need no tap at all; another frame there needs its own.
    view, _ = view_frames(x, None, TimeRule("group", 1, "zeros"), 3)
    frames, merged = merge_taps(view, kernel)
    np.testing.assert_array_equal(merged.ravel(), [0.0, 1.0])
    view, _ = view_frames(x, None, TimeRule("group", 2), 3)
    assert merge_taps(view, kernel) == (view, kernel)
