"""Convolution over time, height and width, in several forms that compute the same.

No single lowering is good everywhere. XLA:CPU runs a 5-D convolution three to four times slower
than the same sum written as 2-D convolutions, and a depthwise one some thirty times slower than
shifted multiplies; XLA:TPU wraps 5-D convolutions in layout copies that disappear when the time
taps are folded into the channels of one 2-D convolution. All forms compute the same function from
the same kernel and agree to rounding (``tests/kernels/test_conv3d.py``); ``benchmarks/conv3d.py``
times them on the machine at hand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.kernels.dispatch import Names, list_wanted, pick, say_once
from vidlatent.parallel.sharding import constrain, has_few_rows, keep_rows
from vidlatent.spec import check_shape

__all__ = ["DENSE_FORMS", "DEPTHWISE_FORMS", "conv3d", "conv_frames"]

Padding = Sequence[tuple[int, int]]

DENSE_FORMS = ("native", "taps", "fold2d")
DEPTHWISE_FORMS = ("shifts", "native", "rows")
_AUTO_DENSE = {"cpu": "taps", "tpu": "fold2d", "default": "native"}
_AUTO_DEPTHWISE = {"cpu": "rows", "tpu": "native", "default": "shifts"}
_KINDS = {  # forms, those of the other kind, and what 'auto' means
    "dense": (DENSE_FORMS, DEPTHWISE_FORMS, _AUTO_DENSE),
    "depthwise": (DEPTHWISE_FORMS, DENSE_FORMS, _AUTO_DEPTHWISE),
}
# With fewer channels than this XLA:CPU is faster with the time taps folded into the channels
# (benchmarks/conv3d.py).
_FEW_CHANNELS = 16


def conv3d(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int] = (1, 1, 1),
    padding: Padding = ((0, 0), (0, 0), (0, 0)),
    feature_group_count: int = 1,
    *,
    implementation: Names = "auto",
    platform: str | None = None,
) -> jax.Array:
    """Cross-correlate ``x`` with ``kernel``, padding with zeros.

    Args:
      x: ``[B, T, H, W, I]``.
      kernel: ``[kt, kh, kw, I / groups, O]``, same dtype as ``x``.
      strides: steps along T, H, W.
      padding: explicit ``(low, high)`` counts along T, H, W.
      feature_group_count: channel groups; equal to ``I`` and ``O`` for a depthwise convolution.
      implementation: ``'auto'``, or ``'native'`` (one 5-D convolution), ``'taps'`` (a sum of one
        2-D convolution per time tap), ``'fold2d'`` (time taps as channels of one 2-D
        convolution); for a depthwise kernel ``'native'``, ``'shifts'`` (a sum of shifted
        products) or ``'rows'`` (the same, with the kernel's gradient summed row by row; no
        forward-mode derivative; stride 1); or several names, see ``dispatch``. One setting serves
        dense and depthwise kernels alike: a name that only the other kind has is ignored, a
        kernel left without a name is at ``'auto'``, and the log says so once. With a single tap
        ``'taps'`` and ``'fold2d'`` are the same 2-D convolution.
      platform: in place of the current one, for ``'auto'``.

    Returns:
      ``[B, T', H', W', O]`` in the dtype of ``x``.

    Raises:
      VidlatentError: an unknown form, channels that do not fit the kernel, or a named form that
        cannot do this convolution.
    """
    check_shape(x, "B T H W C")
    group_in, features = kernel.shape[3:]
    if x.shape[-1] != group_in * feature_group_count:
        raise VidlatentError(
            f"convolution input has {x.shape[-1]} channels, but the kernel {kernel.shape} with "
            f"{feature_group_count} groups reads {group_in * feature_group_count}."
        )
    if few := has_few_rows(x.shape[2], kernel.shape[1]):
        x, kernel = keep_rows(x), _keep_whole(kernel)
    # Depthwise: one filter per channel. Of larger groups only the dense form 'native' knows.
    if feature_group_count > 1 and feature_group_count == features == x.shape[-1]:
        y = _depthwise(x, kernel, strides, padding, implementation, platform)
    else:
        y = _dense(x, kernel, strides, padding, feature_group_count, implementation, platform)
    return keep_rows(y) if few else y


def _keep_whole(kernel: jax.Array) -> jax.Array:
    """Constrain a kernel to be whole on each device."""
    return constrain(kernel, ("channel",) * kernel.ndim)


def conv_frames(
    frames: Sequence[jax.Array],
    kernel: jax.Array,
    strides: Sequence[int] = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    feature_group_count: int = 1,
    *,
    implementation: Names = "auto",
    platform: str | None = None,
) -> jax.Array:
    """Convolution whose time taps are given one by one.

    ``frames[k]`` ``[B, T, H, W, I]`` is the input of tap ``k`` for every output frame. Any rule for
    the neighbours of a frame can be written this way; the group-causal one cannot be written as
    padding.

    Args:
      frames: ``kt`` arrays of one shape.
      kernel: ``[kt, kh, kw, I / groups, O]``.
      strides, padding: along H and W.
      feature_group_count: 1, or the number of channels (depthwise).
      implementation: as for ``conv3d``. A 5-D convolution cannot take its taps one by one, so
        ``'native'`` means ``'fold2d'`` here, and the log says so once.
      platform: in place of the current one, for ``'auto'``.

    Returns:
      ``[B, T, H', W', O]``.
    """
    if len(frames) != kernel.shape[0]:
        raise VidlatentError(f"{len(frames)} tap inputs for a kernel of {kernel.shape[0]} taps.")
    if feature_group_count > 1:
        pad = ((0, 0), *padding)
        parts = (
            conv3d(
                f,
                kernel[k : k + 1],
                (1, *strides),
                pad,
                feature_group_count,
                implementation=implementation,
                platform=platform,
            )
            for k, f in enumerate(frames)
        )
        return sum(parts)
    named, form = _chosen(implementation, "dense", platform)
    if named and form == "native":
        say_once(
            "conv3d: the form 'native' was asked for; convolutions whose taps come one by one have "
            "none and take 'fold2d'"
        )
    if few_rows := has_few_rows(frames[0].shape[2], kernel.shape[1]):
        frames, kernel = [keep_rows(f) for f in frames], _keep_whole(kernel)
    few = not named and frames[0].shape[-1] < _FEW_CHANNELS
    y = _join_taps(frames, kernel, strides, ((0, 0), *padding), form == "taps" and not few)
    return keep_rows(y) if few_rows else y


def _join_taps(frames, kernel, strides, pad, apart):
    """Planes of the taps ``apart``, added; or one plane with the taps folded into the channels."""
    if apart:
        return sum(
            _plane(f, kernel[k : k + 1], (1, *strides), pad, 1) for k, f in enumerate(frames)
        )
    kt, kh, kw, group_in, features = kernel.shape
    folded = jnp.moveaxis(kernel, 0, 2).reshape(1, kh, kw, kt * group_in, features)
    return _plane(jnp.concatenate(frames, axis=-1), folded, (1, *strides), pad, 1)


def _dense(x, kernel, strides, padding, groups, implementation, platform):
    kt = kernel.shape[0]

    def lacks(name):
        if groups == 1 or name == "native":
            return ""
        return f"does not know {groups} groups of channels (kernel {kernel.shape})"

    named, form = _chosen(implementation, "dense", platform, lacks)
    # A single tap needs no neighbours, so frames that the stride skips are never convolved.
    if kt == 1 and padding[0] == (0, 0) and not (named and form == "native"):
        return _plane(x[:, :: strides[0]], kernel, strides, padding, groups)
    if form == "native":
        return _native(x, kernel, strides, padding, groups)
    few = not named and x.shape[-1] < _FEW_CHANNELS
    # This pays only where padding would add zero frames, and it counts on neighbouring frames
    # (stride 1 in time).
    if form == "taps" and strides[0] == 1 and padding[0] != (0, 0) and not few:
        return _real_taps(x, kernel, strides, padding)
    frames = _time_slices(x, kt, strides[0], padding[0])
    # Passed on by name only if it was named: conv_frames has its own rule for few channels.
    form = form if named else "auto"
    return conv_frames(
        frames, kernel, strides[1:], padding[1:], implementation=form, platform=platform
    )


def _chosen(
    implementation: Names,
    kind: str,
    platform: str | None,
    lacks: Callable[[str], str] = lambda name: "",
) -> tuple[bool, str]:
    """Whether the form of a ``'dense'`` or ``'depthwise'`` kernel was named, and the form.

    A name that only the other kind has does not count.
    """
    known, other, auto = _KINDS[kind]
    names = list_wanted("conv3d", implementation)
    # A name that neither kind knows stays in, so that pick can refuse it.
    own = tuple(name for name in names if name in known or name not in other)
    form = pick(f"conv3d ({kind})", own, known, auto, platform, lacks).name
    if names and not own:
        say_once(
            f"conv3d: the form {', '.join(map(repr, names))} was asked for; {kind} kernels have "
            f"none and take the usual {form!r}"
        )
    return bool(own), form


def _native(x, kernel, strides, padding, groups):
    return lax.conv_general_dilated(
        x,
        kernel,
        tuple(strides),
        tuple(padding),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=groups,
    )


def _plane(x, kernel, strides, padding, groups):
    """2-D convolution of every frame: time is folded into the batch."""
    batch, time = x.shape[:2]
    y = lax.conv_general_dilated(
        x.reshape(batch * time, *x.shape[2:]),
        kernel[0],
        tuple(strides[1:]),
        tuple(padding[1:]),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return y.reshape(batch, time, *y.shape[1:])


def _real_taps(x, kernel, strides, padding):
    """The sum of the time taps, each only over the frames that it meets.

    Padding with zero frames would cost as much as real frames do: compared with two of them this
    takes 0.87 of the time at 16 frames and 0.68 at 4.
    """
    taps, (low, high) = kernel.shape[0], padding[0]
    frames = x.shape[1]
    outputs = frames + low + high - taps + 1
    total = None
    for tap in range(taps):
        shift = tap - low  # output i meets input i + shift
        first, end = max(0, -shift), min(outputs, frames - shift)
        # A tap that would meet padding alone is left out.
        if first < end:
            met = x[:, first + shift : end + shift]
            y = _plane(met, kernel[tap : tap + 1], strides, padding, 1)
            # Zeros for the output frames that this tap does not reach.
            y = jnp.pad(y, ((0, 0), (first, outputs - end), *((0, 0),) * 3))
            total = y if total is None else total + y
    return total


def _span(size: int, tap: int, taps: int, stride: int) -> slice:
    """The input positions that ``tap`` meets, one for each output position."""
    outputs = (size - taps) // stride + 1
    # Ends right after the last position, so that the slices of all taps have one length.
    return slice(tap, tap + (outputs - 1) * stride + 1, stride)


def _time_slices(x, taps, stride, pad):
    if pad != (0, 0):
        x = jnp.pad(x, ((0, 0), pad, (0, 0), (0, 0), (0, 0)))
    return [x[:, _span(x.shape[1], k, taps, stride)] for k in range(taps)]


def _depthwise(x, kernel, strides, padding, implementation, platform):

    def lacks(name):
        if name != "rows" or tuple(strides) == (1, 1, 1):
            return ""
        return f"has stride 1, not {tuple(strides)} (kernel {kernel.shape})"

    _, form = _chosen(implementation, "depthwise", platform, lacks)
    if form == "native":
        return _native(x, kernel, strides, padding, x.shape[-1])
    if form == "rows":
        return _rows(x, kernel, tuple(tuple(pad) for pad in padding))
    return _shifts(x, kernel, strides, padding)


def _shifts(x, kernel, strides, padding):
    """Depthwise convolution as one fused loop of multiply-adds over shifted views.

    The running sum is float32: up to 27 terms would lose bits in bfloat16, and inside the fused
    loop the wider sum costs nothing.
    """
    kt, kh, kw = kernel.shape[:3]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    _, frames, height, width, _ = x.shape
    y = None
    for a in range(kt):
        rows_t = _span(frames, a, kt, strides[0])
        for b in range(kh):
            rows_h = _span(height, b, kh, strides[1])
            for c in range(kw):
                view = x[:, rows_t, rows_h, _span(width, c, kw, strides[2])]
                term = view.astype(jnp.float32) * kernel[a, b, c, 0].astype(jnp.float32)
                y = term if y is None else y + term
    return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows(x, kernel, padding):
    """``_shifts`` with stride 1 and a kernel gradient that stays in the cache.

    The gradient of one tap is a sum over all positions. Taken for all taps at once over one row
    of the image it rereads a few kilobytes instead of the whole array.
    """
    return _shifts(x, kernel, (1, 1, 1), padding)


def _rows_forward(x, kernel, padding):
    return _rows(x, kernel, padding), (x, kernel)


def _rows_backward(padding, saved, grad):
    x, kernel = saved
    taps = kernel.shape[:3]
    # The gradient of the input is a convolution with the mirrored kernel. Each side is padded by
    # what the forward padding lacks of a full overlap.
    mirrored = tuple(
        (k - 1 - low, k - 1 - high) for k, (low, high) in zip(taps, padding, strict=True)
    )
    dx = _shifts(grad, kernel[::-1, ::-1, ::-1], (1, 1, 1), mirrored)
    return dx, _rows_kernel_gradient(x, grad, taps, padding).reshape(kernel.shape).astype(
        kernel.dtype
    )


def _rows_kernel_gradient(x, grad, taps, padding):
    kt, kh, kw = taps
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    frames, height, width, channels = grad.shape[1:]

    def add_row(total, row):
        # near: the kh input rows that this output row meets, [B, T, kh, W, C]; line: the row
        # itself, [B, T', W', C].
        near = lax.dynamic_slice_in_dim(x, row, kh, axis=2).astype(jnp.float32)
        line = lax.dynamic_slice_in_dim(grad, row, 1, axis=2)[:, :, 0].astype(jnp.float32)
        sums = [
            jnp.sum(near[:, a : a + frames, b, c : c + width] * line, axis=(0, 1, 2))
            for a in range(kt)
            for b in range(kh)
            for c in range(kw)
        ]
        return total + jnp.stack(sums), None

    # float32, because each entry is a sum over all positions of the batch.
    start = jnp.zeros((kt * kh * kw, channels), jnp.float32)
    return lax.scan(add_row, start, jnp.arange(height))[0]


_rows.defvjp(_rows_forward, _rows_backward)
