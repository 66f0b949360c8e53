"""Every form of the convolution computes the same function and the same gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.forms import check
from vidlatent.errors import VidlatentError
from vidlatent.kernels.conv3d import conv3d, conv_frames
from vidlatent.kernels.dispatch import current_platform, prefer, say_once
from vidlatent.kernels.upconv import subpixel_conv
from vidlatent.layers.resample import nearest

# input [B, T, H, W, I], kernel, outputs, strides, padding, groups
DENSE = [
    ((2, 5, 7, 6, 3), (3, 3, 3), 4, (1, 1, 1), ((0, 0), (1, 1), (1, 1)), 1),
    ((1, 7, 9, 8, 20), (3, 3, 3), 6, (2, 2, 2), ((2, 0), (1, 1), (1, 1)), 1),
    ((1, 5, 6, 5, 4), (3, 3, 3), 3, (2, 1, 1), ((1, 1), (0, 1), (1, 0)), 1),
    ((2, 3, 5, 5, 4), (1, 3, 3), 4, (1, 2, 2), ((0, 0), (1, 1), (1, 1)), 1),
    ((1, 4, 5, 5, 4), (2, 2, 2), 4, (1, 1, 1), ((1, 0), (1, 0), (0, 1)), 1),
    ((1, 4, 5, 5, 17), (3, 3, 3), 4, (1, 1, 1), ((1, 1), (1, 1), (1, 1)), 1),
    ((1, 1, 5, 5, 17), (3, 3, 3), 4, (1, 1, 1), ((2, 1), (1, 1), (1, 1)), 1),
]
DEPTHWISE = [
    ((2, 4, 5, 7, 6), (3, 3, 3), 6, (1, 1, 1), ((2, 0), (1, 1), (1, 1)), 6),
    ((1, 2, 7, 6, 5), (1, 5, 5), 5, (1, 1, 1), ((0, 0), (2, 2), (2, 2)), 5),
    ((1, 5, 7, 6, 4), (3, 3, 3), 4, (2, 2, 2), ((0, 0), (1, 1), (1, 1)), 4),
]
CASES = [
    *((case, form) for case, form in itertools.product(DENSE, ("taps", "fold2d", "auto"))),
    *((case, form) for case, form in itertools.product(DEPTHWISE, ("shifts", "auto"))),
    *((case, "rows") for case in DEPTHWISE if case[3] == (1, 1, 1)),
]


def _arrays(case):
    shape, taps, features, _, _, groups = case
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    kernel = rng.normal(size=(*taps, shape[-1] // groups, features)).astype(np.float32)
    return x, kernel


def _form(case, form):
    _, _, _, strides, padding, groups = case
    return lambda x, kernel: conv3d(x, kernel, strides, padding, groups, implementation=form)


def _relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize(("case", "form"), CASES)
def test_forms_agree_with_native(case, form):
    check(_form(case, form), _form(case, "native"), _arrays(case))


@pytest.mark.parametrize(
    ("case", "form"),
    [
        (DENSE[0], "taps"),
        (DENSE[0], "fold2d"),
        (DEPTHWISE[0], "shifts"),
        (DEPTHWISE[0], "rows"),
        pytest.param(DENSE[0], "native", marks=pytest.mark.slow),
        pytest.param(DENSE[5], "taps", marks=pytest.mark.slow),
        pytest.param(DENSE[1], "fold2d", marks=pytest.mark.slow),
        pytest.param(DEPTHWISE[2], "shifts", marks=pytest.mark.slow),
    ],
)
def test_bfloat16_stays_near_float32(case, form):
    check(_form(case, form), _form(case, "native"), _arrays(case), "bfloat16")


def test_forms_under_vmap():
    """Each form over a further axis of clips and of kernels, as an ensemble has them."""
    for case, form in ((DENSE[0], "taps"), (DENSE[0], "fold2d"), (DEPTHWISE[0], "rows")):
        inputs = [np.stack([a, 2 * a[..., ::-1]]) for a in _arrays(case)]
        got = jax.jit(jax.vmap(_form(case, form)))(*inputs)
        want = [_form(case, form)(*one) for one in zip(*inputs, strict=True)]
        np.testing.assert_allclose(got, np.stack(want), atol=1e-4)


def test_rows_has_second_derivatives():
    padding = ((1, 0), (0, 1), (1, 1))
    x, kernel = _arrays(((2, 3, 5, 4, 3), (2, 2, 2), 3, None, None, 3))

    def penalty(form):
        def score(x):
            y = conv3d(x, kernel, (1, 1, 1), padding, 3, implementation=form)
            return jnp.sum(jnp.sin(y))

        return jax.jit(jax.grad(lambda x: jnp.sum(jax.grad(score)(x) ** 2)))(x)

    np.testing.assert_allclose(penalty("rows"), penalty("shifts"), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("form", ["taps", "fold2d"])
def test_frames_given_tap_by_tap(form):
    x, kernel = _arrays(DENSE[0])
    frames = [x[:, k : k + 3] for k in range(3)]
    got = conv_frames(frames, kernel, padding=((1, 1), (1, 1)), implementation=form)
    want = conv3d(x, kernel, padding=((0, 0), (1, 1), (1, 1)), implementation="native")
    assert _relative(np.asarray(got), np.asarray(want)) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_subpixel_equals_nearest_then_convolution(dtype):
    """Gradients too: of the kernel, whose taps are summed before they meet anything."""

    def fast(x, kernel):
        return subpixel_conv(lambda k, pad: conv3d(x, k, padding=((0, 0), *pad)), kernel)

    def same(x, kernel):
        return conv3d(nearest(x), kernel, padding=((0, 0), (1, 1), (1, 1)))

    check(fast, same, _arrays(((2, 5, 4, 3, 6), (3, 3, 3), 5, None, None, 1)), dtype)


def test_platform_comes_from_the_mesh():
    devices = np.asarray(jax.devices()[:1])
    mesh = jax.sharding.Mesh(devices, ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert current_platform() == "cpu"


def test_a_named_form_runs_or_is_refused():
    x, kernel = _arrays(DEPTHWISE[2])
    with pytest.raises(VidlatentError, match=r"stride 1, not \(2, 2, 2\).*take 'shifts' or 'auto'"):
        conv3d(x, kernel, (2, 2, 2), feature_group_count=4, implementation="rows")
    x, kernel = _arrays(((1, 3, 4, 4, 4), (3, 3, 3), 4, None, None, 2))
    with pytest.raises(VidlatentError, match="'taps' does not know 2 groups.*take 'native'"):
        conv3d(x, kernel, feature_group_count=2, implementation="taps")
    for form in ("auto", ("taps", "native")):
        y = conv3d(x, kernel, feature_group_count=2, implementation=form)
        assert y.shape == (1, 1, 2, 2, 4)
    # One tap: 'native' is one convolution over three axes, not one over two.
    x, kernel = _arrays(DENSE[3])
    text = str(jax.make_jaxpr(lambda *a: conv3d(*a, implementation="native"))(x, kernel))
    assert "reshape" not in text and "reshape" in str(jax.make_jaxpr(conv3d)(x, kernel))


def test_one_setting_for_a_model_of_both_kinds_is_said(caplog):
    say_once.cache_clear()
    x, kernel = _arrays(DEPTHWISE[0])
    dense = _arrays(DENSE[0])
    frames = [dense[0][:, k : k + 3] for k in range(3)]
    with caplog.at_level("INFO", logger="absl"):
        for _ in range(2):
            conv3d(x, kernel, feature_group_count=6, implementation="fold2d")
            with prefer(conv3d="rows"):
                conv3d(*dense)
            conv_frames(frames, dense[1], implementation="native")
        conv3d(*dense, implementation="auto")
    assert [record.getMessage() for record in caplog.records] == [
        "conv3d: the form 'fold2d' was asked for; depthwise kernels have none and take the usual "
        "'rows'",
        "conv3d: the form 'rows' was asked for; dense kernels have none and take the usual 'taps'",
        "conv3d: the form 'native' was asked for; convolutions whose taps come one by one have "
        "none and take 'fold2d'",
    ]
    # Taps of a depthwise kernel that come one by one take the form that was named, too.
    parts = [x[:, k : k + 2] for k in range(3)]

    def primitives(form):
        run = functools.partial(conv_frames, feature_group_count=6, implementation=form)
        return str(jax.make_jaxpr(run)(parts, kernel))

    assert "conv_general_dilated" in primitives("native")
    assert "conv_general_dilated" not in primitives("shifts")


def test_wrong_names_and_channels_are_named():
    x, kernel = _arrays(DENSE[0])
    with pytest.raises(VidlatentError, match="did you mean 'fold2d'"):
        conv3d(x, kernel, implementation="fold2")
    with pytest.raises(VidlatentError, match="has 2 channels"):
        conv3d(x[..., :2], kernel)
