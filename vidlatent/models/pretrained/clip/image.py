"""Preprocessing of images for CLIP: three published ways, which differ visibly.

There are two cubic kernels: a = -0.75 (torch's interpolation, border samples repeated) and a = -0.5
(Pillow, torchvision on PIL images, ``jax.image``; renormalised at the border). Resizing is linear,
so each axis is one matrix product; everything is float32.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained.resize import resize_matrix
from vidlatent.registry import did_you_mean
from vidlatent.spec import check_shape

__all__ = [
    "MEAN",
    "QUANTIZE",
    "RESIZINGS",
    "STD",
    "blurred_matrix",
    "center_seen",
    "pillow_matrix",
    "preprocess",
]

# Mean and standard deviation of CLIP's training images (openai/CLIP, clip/clip.py).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
RESIZINGS = ("whole", "blurred", "center")
QUANTIZE = ("none", "straight", "round")


def preprocess(images: jax.Array, side: int, kind: str, quantize: str = "none") -> jax.Array:
    """Normalised pixels ``[N, side, side, 3]`` of images ``[N, H, W, 3]`` in [-1, 1].

    Args:
      kind: ``'whole'``: stretched to the square, a = -0.75, nothing smoothed (Wan's own code).
        ``'blurred'``: stretched, a Gaussian blur first where it shrinks, corners aligned, a = -0.75
        (Reducio's feature extraction). ``'center'``: short side to ``side`` by Pillow's
        antialiased cubic, a = -0.5, the middle square, clipped to [-1, 1] (the image processors of
        transformers and open_clip).
      quantize: of 'center': ``'round'`` to 8 bits before and after each axis, as Pillow does, which
        leaves no gradient; ``'straight'``: the same, with the gradient of what is not rounded;
        ``'none'``.

    Raises:
      VidlatentError: unknown ``kind`` or ``quantize``; not ``[N, H, W, 3]``.
    """
    sizes = check_shape(images, "N H W C", C=3)
    height, width = sizes["H"], sizes["W"]
    if kind not in RESIZINGS:
        raise VidlatentError(f"unknown resizing {kind!r}: {did_you_mean(kind, RESIZINGS)}")
    if quantize not in QUANTIZE:
        raise VidlatentError(f"unknown rounding {quantize!r}: {did_you_mean(quantize, QUANTIZE)}")
    if kind == "whole":
        down, across = (resize_matrix(size, side, "bicubic") for size in (height, width))
    elif kind == "blurred":
        smooth = max(height, width) > side
        down, across = (blurred_matrix(size, side, smooth) for size in (height, width))
    else:
        down, across = (_center(size, min(height, width), side) for size in (height, width))
    images = jnp.asarray(images, jnp.float32)
    x = _resize_plainly(images, down, across)
    x = jnp.clip(x, -1, 1) if kind == "center" else x
    if kind == "center" and quantize != "none":
        rounded = _resize_rounding(images, down, across)
        x = rounded if quantize == "round" else x + lax.stop_gradient(rounded - x)
    # CLIP's statistics are those of pixels in [0, 1].
    return ((x + 1) / 2 - jnp.array(MEAN)) / jnp.array(STD)


def center_seen(height: int, width: int, side: int) -> np.ndarray:
    """The pixels that ``preprocess`` with ``'center'`` looks at, bool ``[H, W]``."""
    rows, columns = (
        _center(size, min(height, width), side).any(axis=0) for size in (height, width)
    )
    return rows[:, None] & columns


def _resize_plainly(images: jax.Array, down: np.ndarray, across: np.ndarray) -> jax.Array:
    # Rows by ``down`` [side, H] and columns by ``across`` [side, W] at once.
    return jnp.einsum("hy,wx,nyxc->nhwc", down, across, images, precision=lax.Precision.HIGHEST)


def _resize_rounding(images: jax.Array, down: np.ndarray, across: np.ndarray) -> jax.Array:
    """Columns first, whole levels of 0 to 255 before, between and after; in [-1, 1]."""
    x = _round((images + 1) * 127.5)
    for equation, matrix in (("wx,nyxc->nywc", across), ("hy,nywc->nhwc", down)):
        x = _round(jnp.einsum(equation, matrix, x, precision=lax.Precision.HIGHEST))
    return x / 127.5 - 1


def _round(levels: jax.Array) -> jax.Array:
    """To the nearest level, halves up, as Pillow's integers are rounded."""
    return jnp.clip(jnp.floor(levels + 0.5), 0, 255)


def _center(size: int, short: int, side: int) -> np.ndarray:
    """Rows of the central square; the long side and the crop's start are rounded down."""
    target = side if size == short else side * size // short
    first = (target - side) // 2
    return pillow_matrix(size, target)[first : first + side]


@functools.lru_cache(maxsize=64)
def pillow_matrix(size: int, target: int) -> np.ndarray:
    """``[target, size]`` float32 of Pillow's cubic: a = -0.5, widened for downsampling.

    Taps beyond the border are dropped, and the others are scaled to sum to 1. For equal sizes it is
    the identity.
    """
    step = size / target
    centres = (np.arange(target) + 0.5) * step - 0.5
    x = np.abs(np.arange(size) - centres[:, None]) / max(step, 1.0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = -0.5 * (((x - 5) * x + 8) * x - 4)
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    return np.float32(weights / weights.sum(axis=1, keepdims=True))


@functools.lru_cache(maxsize=64)
def blurred_matrix(size: int, target: int, smooth: bool) -> np.ndarray:
    """``[target, size]`` float32: Gaussian blur (border mirrored), then a = -0.75, corners aligned.

    The standard deviation is ``(factor - 1) / 2``, the window four of them wide, at least 3 and
    odd: the rule of kornia and of Stable Video Diffusion.

    Raises:
      VidlatentError: the picture is narrower than its blur.
    """
    # kornia skips the blur only if both sides keep their size. With one of them equal, its minimum
    # deviation of 0.001 makes the blur an identity anyway.
    sampled = np.float64(resize_matrix(size, target, "bicubic", corners=True))
    if not smooth:
        return np.float32(sampled)
    sigma = max((size / target - 1) / 2, 0.001)
    # | 1 makes it odd, so that the window has a middle.
    taps = int(max(4 * sigma, 3)) | 1
    if taps // 2 >= size:
        raise VidlatentError(f"a side of {size} pixels is too short to become {target}.")
    offsets = np.arange(taps) - taps // 2
    gauss = np.exp(-(offsets**2) / (2 * sigma**2))
    places = np.abs(np.arange(size)[:, None] + offsets)
    # Mirrored without repeating the border pixel, as kornia's 'reflect' does.
    places = np.where(places >= size, 2 * (size - 1) - places, places)
    blur = np.zeros((size, size))
    rows = np.broadcast_to(np.arange(size)[:, None], places.shape)
    np.add.at(blur, (rows, places), gauss / gauss.sum())
    return np.float32(sampled @ blur)
