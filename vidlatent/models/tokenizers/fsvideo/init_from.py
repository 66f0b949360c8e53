"""Pure functions on parameters: image weights into the video model, a new innermost stage, and
the fine-tuned decoder forms from the ones before them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from absl import logging

from vidlatent.errors import VidlatentError
from vidlatent.layers.resample import group_mean
from vidlatent.nested import flatten

__all__ = [
    "centre_taps",
    "inflate",
    "lite_from_standard",
    "shortcut_stage",
    "standard_from_base",
    "video_from_image",
    "video_from_image_time_first",
]

Params = Mapping[str, Any]


def inflate(
    params: Mapping[str, Any],
    target_shapes: Mapping[str, Any],
    mode: str = "tail",
    order: str = "hwt",
) -> dict[str, Any]:
    """Image-model parameters as video-model parameters (FSVideo 2.2.1).

    Frame 0 and static clips are the image model's, with one exception: a shuffling down operation
    that halves time fills two channels of the image model from one, so each of its channels starts
    as the mean of those two. What follows such an operation is near the image model, not equal.

    Args:
      params: nested dict with temporal kernels of one tap.
      target_shapes: the video model's parameter shapes.
      mode: ``'tail'`` puts the kernel into the last tap (the present frame), zeros elsewhere;
        ``'mean'`` spreads it evenly.
      order: the two models' ``shortcut_order``, for shuffling up operations that double time.

    Raises:
      VidlatentError: the two trees or shapes do not correspond.
    """
    if mode not in ("tail", "mean"):
        raise VidlatentError(f"inflation mode {mode!r}: use 'tail' or 'mean'.")

    def walk(source: Any, target: Any, path: str) -> Any:
        if isinstance(target, Mapping):
            if not isinstance(source, Mapping) or set(source) != set(target):
                raise VidlatentError(f"image and video parameters differ at {path or 'the top'}.")
            return {key: walk(source[key], target[key], f"{path}/{key}") for key in target}
        if _RESAMPLING.fullmatch(path):
            source = _fill_channels(jnp.asarray(source), target.shape[-1], order)
        if tuple(source.shape) == tuple(target.shape):
            return source
        # Only kernels over time differ between the two models: one tap becomes several.
        taps = target.shape[0]
        if len(target.shape) != 5 or tuple(source.shape) != (1, *target.shape[1:]):
            raise VidlatentError(
                f"{path}: image shape {tuple(source.shape)} does not inflate to "
                f"{tuple(target.shape)}."
            )
        if mode == "mean":
            return jnp.repeat(jnp.asarray(source), taps, axis=0) / taps
        return jnp.pad(jnp.asarray(source), ((taps - 1, 0), *((0, 0),) * 4))

    return walk(params, target_shapes, "")


# Kernels and biases of down and up operations, whose channels become pixels if they shuffle.
_RESAMPLING = re.compile(r"/(encoder|decoder)/(\w+_blocks_\d+_\d+|conv_in|conv_out)/conv/\w+")


def _fill_channels(source: Any, channels: int, order: str) -> Any:
    """Output channels of a shuffling operation of 2x2 pixels for one of 2x2x2, if it is one."""
    if channels == 2 * source.shape[-1]:
        # Up: both frames that a channel group becomes are the image model's pixels.
        sizes = [{"h": 2, "w": 2, "t": 1}[axis] for axis in order]
        pixels = source.reshape(*source.shape[:-1], -1, *sizes)
        return jnp.repeat(pixels, 2, axis=order.index("t") - 3).reshape(*source.shape[:-1], -1)
    if 2 * channels == source.shape[-1]:
        logging.log_first_n(
            logging.WARNING,
            "the image model's shuffling down operations become ones that halve time too: each "
            "channel starts as the mean of two, near the image model but not equal to it",
            1,
        )
        return group_mean(source, channels)
    return source


def shortcut_stage(params: Mapping[str, Any], stage: int) -> dict[str, Any]:
    """Make the innermost ``stage`` start as a pure shortcut.

    Its blocks become identities (norms at the end of each branch set to 0), and the main paths of
    the operations around it, of the encoder's last and of the decoder's first convolution are set
    to 0. The model then averages into the new latent and duplicates out of it, which leaves the
    pretrained outer stages undisturbed.

    Args:
      params: the whole model's parameters, with affine norms.
      stage: index of the innermost stage, 1 or more.
    """
    # The norms that end branches: of blocks, of their attention, of their gated convolutions.
    block = rf"(encoder/down|decoder/up)_blocks_{stage}_\d+/.*norm(_out)?/(scale|bias)"
    # The down operation is the last entry of the stage outside it; the up operation the first.
    into = rf"encoder/down_blocks_{stage - 1}_\d+/conv/(kernel|bias)"
    out_of = rf"decoder/up_blocks_{stage - 1}_0/conv/(kernel|bias)"
    ends = r"(encoder/conv_out|decoder/conv_in)/(kernel|bias)"
    cleared = re.compile(f"{block}|{into}|{out_of}|{ends}")
    hits = 0

    def clear(path, leaf):
        nonlocal hits
        # Without affine norms the blocks could not be closed, hence the count.
        hits += bool(re.fullmatch(block, path))
        return jnp.zeros_like(leaf) if cleared.fullmatch(path) else leaf

    result = _map_with_path(clear, params)
    if not hits:
        raise VidlatentError(f"stage {stage} has no affine norms to clear: check the index.")
    return result


def centre_taps(decoder: Params) -> dict[str, Any]:
    """Causal decoder kernels (t-2, t-1, t) as centred ones (t-1, t, t+1): (w0 + w1, w2, 0).

    A static clip decodes to the same, and on a moving one the start is near: the oldest tap moves
    one frame up, nothing looks ahead yet (FSVideo 2.2.3 leaves the conversion open).

    Args:
      decoder: the ``decoder`` part of the parameters. Kernels without three time taps stay.
    """

    def fold(kernel):
        if kernel.ndim != 5 or kernel.shape[0] != 3:
            return kernel
        k = jnp.asarray(kernel)
        # The future tap starts at zero, and the two past taps read the frame before.
        return jnp.stack([k[0] + k[1], k[2], jnp.zeros_like(k[2])])

    return _map(fold, decoder)


def standard_from_base(params: Params, fresh: Params) -> dict[str, Any]:
    """Parameters of FSAE-Standard from the causal model's.

    Args:
      params: the causal model's, its decoder taps folded by ``centre_taps`` here.
      fresh: newly initialised ones of the Standard model, for the attention to frame 0, whose
        output matrices start at zero.
    """
    folded = {**params, "decoder": centre_taps(params["decoder"])}
    return _overlay(fresh, folded, r"decoder/first_frame_attn_\d+/.*")


def lite_from_standard(
    params: Params, fresh: Params, stages: tuple[int, ...] = (0, 1)
) -> dict[str, Any]:
    """Parameters of FSAE-Lite from FSAE-Standard's.

    Everything outside the narrow stages is copied: the taps of both forms are centred. The narrow
    stages and the tail start anew, their residual branches closed (norms at zero).

    Args:
      params: the Standard model's.
      fresh: newly initialised ones of the Lite model.
      stages: the narrow decoder stages; they must include stage 0.
    """
    numbers = "|".join(str(stage) for stage in stages)
    # Narrow stages and what follows them have other widths, so nothing can be copied.
    new = rf"decoder/((up_blocks|first_frame_attn)_({numbers})(_\d+)?|norm_out|conv_out)/.*"
    closed = re.compile(rf"decoder/up_blocks_({numbers})_\d+/(.*/)?norm(_out)?/(scale|bias)")
    start = _map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if closed.fullmatch(path) else leaf, fresh
    )
    return _overlay(start, params, new)


def video_from_image(params: Params, fresh: Params, order: str = "hwt") -> dict[str, Any]:
    """Parameters of the causal video model from an image model's, with a new stage if there is one.

    The image model's stages are inflated (``inflate``). If the video model has one stage more,
    that stage and the convolutions at the latent start as the pure shortcut of ``shortcut_stage``.

    Args:
      params: the image model's.
      fresh: newly initialised ones of the video model.
      order: the two models' ``shortcut_order``.
    """
    old, new = _stages(params), _stages(fresh)
    if old == new:
        return inflate(params, fresh, order=order)
    if new != old + 1:
        raise VidlatentError(
            f"an image model of {old} stages cannot start a video model of {new}: the latter has "
            "the same stages or one more."
        )
    # What only the new model has: its last stage, the operations into and out of it, the ends.
    down = f"down_blocks_{old - 1}_{_depth(params['encoder'], 'down', old - 1)}"
    added = [
        ("encoder", [n for n in fresh["encoder"] if n.startswith(f"down_blocks_{old}_")]),
        ("encoder", [down, "conv_out"]),
        ("decoder", [n for n in fresh["decoder"] if n.startswith(f"up_blocks_{old}_")]),
        ("decoder", [f"up_blocks_{old - 1}_0", "conv_in"]),
    ]
    # The old innermost decoder stage had no up operation: its blocks counted from 0.
    shifted = {**params, "decoder": _shift_stage(params["decoder"], old - 1)}
    parts = {side: dict(shifted[side]) for side in ("encoder", "decoder")}
    targets = {side: dict(fresh[side]) for side in ("encoder", "decoder")}
    # These parts have no counterpart, or one of another shape, so inflate must not see them.
    for side, names in added:
        for name in names:
            parts[side].pop(name, None)
            targets[side].pop(name)
    result = inflate(parts, targets, order=order)
    for side, names in added:
        result[side] |= {name: fresh[side][name] for name in names}
    return shortcut_stage(result, old)


def video_from_image_time_first(params: Params, fresh: Params) -> dict[str, Any]:
    """``video_from_image`` for models whose ``shortcut_order`` is ``'thw'``."""
    return video_from_image(params, fresh, order="thw")


def _stages(params: Params) -> int:
    return 1 + max(int(n.split("_")[2]) for n in params["encoder"] if n.startswith("down_blocks_"))


def _depth(side: Params, kind: str, stage: int) -> int:
    return sum(name.startswith(f"{kind}_blocks_{stage}_") for name in side)


def _shift_stage(decoder: Params, stage: int) -> dict[str, Any]:
    """Name the blocks of ``stage`` from 1 on, to make room for an up operation."""
    prefix = f"up_blocks_{stage}_"
    return {
        f"{prefix}{int(name.removeprefix(prefix)) + 1}" if name.startswith(prefix) else name: value
        for name, value in decoder.items()
    }


def _overlay(fresh: Params, params: Params, new: str) -> dict[str, Any]:
    """``params`` laid over ``fresh``, except at the paths ``new``; nothing may be left over."""
    # Everything else in `fresh` must come from `params`, and nothing of `params` may be lost.
    kept = re.compile(new)
    source = flatten(params)
    unused = {path for path in source if not kept.fullmatch(path)}
    wrong = []

    def pick(path, leaf):
        if kept.fullmatch(path):
            return leaf
        unused.discard(path)
        if path not in source or source[path].shape != leaf.shape:
            wrong.append(path)
            return leaf
        return source[path]

    result = _map_with_path(pick, fresh)
    if wrong or unused:
        names = ", ".join(sorted([*wrong, *unused])[:8])
        raise VidlatentError(
            f"the weights belong to another form: {len(wrong)} missing or misshaped, "
            f"{len(unused)} left over ({names})."
        )
    return result


def _map(f: Callable[[Any], Any], tree: Params) -> dict[str, Any]:
    return _map_with_path(lambda _, leaf: f(leaf), tree)


def _map_with_path(f: Callable[[str, Any], Any], tree: Params, prefix: str = "") -> dict[str, Any]:
    return {
        key: _map_with_path(f, value, f"{prefix}{key}/")
        if isinstance(value, Mapping)
        else f(prefix + key, value)
        for key, value in tree.items()
    }
