"""An image that starts a stream: one 2-D convolution gives what the padded clip gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.layers.conv import Conv
from vidlatent.layers.temporal import TimeRule

RULES = [
    TimeRule("causal"),
    TimeRule("causal", padding="zeros"),
    TimeRule("centred"),
    TimeRule("centred", padding="zeros"),
    TimeRule("group", 2),
    TimeRule("group", 4, "replicate", "zeros"),
    TimeRule("group", 1, "replicate", "zeros"),
]


def padded(x, kernel, rule, stride):
    """The convolution of the image between its borders, as of a clip."""
    before = [rule.border(x)] * (2 if rule.kind == "causal" else 1)
    after = [] if rule.kind == "causal" else [rule.border_after(x)]
    return jax.lax.conv_general_dilated(
        jnp.concatenate([*before, x, *after], axis=1),
        kernel,
        (stride, 1, 1),
        ((0, 0), (1, 1), (1, 1)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )


def convolutions(jaxpr):
    return sum(eqn.primitive.name == "conv_general_dilated" for eqn in jaxpr.eqns)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_one_plane_convolution(rule, stride):
    if stride == 2 and rule.kind != "causal":
        pytest.skip("only causal convolutions stride in time")
    rng = np.random.default_rng(0)
    x, more = (jnp.asarray(rng.normal(size=(2, n, 4, 5, 3)), jnp.float32) for n in (1, 4))
    conv = Conv(4, time=rule, strides=(stride, 1, 1), use_bias=False, implementation="taps")
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 3, 4)), jnp.float32)
    params = {"params": {"kernel": kernel}}
    y, cache = conv.apply(params, x)
    np.testing.assert_allclose(y, padded(x, kernel, rule, stride), atol=1e-5)
    assert convolutions(jax.make_jaxpr(conv.apply)(params, x)) == 1
    if rule.streams:
        # The stream goes on as that of the whole clip.
        whole, _ = conv.apply(params, jnp.concatenate([x, more], axis=1))
        rest, _ = conv.apply(params, more, cache)
        np.testing.assert_allclose(jnp.concatenate([y, rest], axis=1), whole, atol=1e-5)


def test_groups_of_one_leave_out_the_zeros():
    """IV-VAE's deepest level: nothing behind a frame, so two taps of three."""
    x = jnp.ones((1, 5, 4, 4, 2))
    for future, taps in (("zeros", 2), ("replicate", 2)):
        conv = Conv(3, time=TimeRule("group", 1, "replicate", future), implementation="taps")
        params = conv.init(jax.random.key(0), x)
        assert convolutions(jax.make_jaxpr(conv.apply)(params, x)) == taps
