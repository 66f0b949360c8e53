"""What VideoAlign sees of a video: which frames, in which size, cut into which patches.

Everything is linear in the pixels but the clip (and the rounding, where it is asked for), so that
gradients reach the frames.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained.clip.image import MEAN, QUANTIZE, STD, pillow_matrix
from vidlatent.spec import check_shape

__all__ = ["FrameRule", "fit_size", "normalize", "patchify", "pick_frames", "resize"]

# A picture that is longer than this many times its height is refused by the published code.
_LONGEST = 200
PATCH, MERGE, PAIR = (
    14,
    2,
    2,
)  # pixels of a patch, patches of a token along a side, frames of a pair


@dataclasses.dataclass(frozen=True)
class FrameRule:
    """How videos become frames for the network; the defaults are the released reward's.

    Attributes:
      rate: frames a second that are looked at.
      least_frames, most_frames: bounds of their number.
      least_pixels, most_pixels: bounds of a frame's area after resizing: smaller videos are
        enlarged.
      quantize: ``'none'``; ``'round'``: pixels are rounded to 8 bits after resizing, as in the
        published scores, which stops all gradients; ``'straight'``: rounded, with the gradient of
        ``'none'``.
    """

    rate: float = 2.0
    least_frames: int = 4
    most_frames: int = 768
    least_pixels: int = 128 * 28 * 28
    most_pixels: int = 448 * 448
    quantize: str = "none"

    def __post_init__(self) -> None:
        if self.quantize not in QUANTIZE:
            raise VidlatentError(f"quantize={self.quantize!r}: use one of {', '.join(QUANTIZE)}.")
        bounds = (self.least_frames, self.most_frames), (self.least_pixels, self.most_pixels)
        if self.rate <= 0 or self.least_frames < PAIR or any(low > high for low, high in bounds):
            raise VidlatentError(
                f"VideoAlign cannot pick frames by {self}: it needs a positive rate, two frames or "
                "more, and bounds in order."
            )

    def frames(self, count: int, fps: float) -> np.ndarray:
        """Numbers of the frames it looks at; see ``pick_frames``."""
        return pick_frames(count, fps, self.rate, self.least_frames, self.most_frames)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing; see ``fit_size``."""
        return fit_size(height, width, self.least_pixels, self.most_pixels)

    def grid(self, count: int, height: int, width: int, fps: float) -> tuple[int, int, int]:
        """Video tokens in time, rows and columns."""
        return len(self.frames(count, fps)) // PAIR, *self.plane(height, width)

    def plane(self, height: int, width: int) -> tuple[int, int]:
        """Tokens of a frame or a picture, in rows and columns."""
        high, wide = self.size(height, width)
        return high // (PATCH * MERGE), wide // (PATCH * MERGE)

    def prepare(self, video: jax.Array, fps: float) -> jax.Array:
        """Normalised frames ``[B, n, h, w, 3]`` float32 of ``[B, T, H, W, 3]`` in [0, 1].

        Raises:
          VidlatentError: too few frames, an unknown frame rate, or a frame that is too narrow.
        """
        count = check_shape(video, "B T H W C", C=3)["T"]
        return self._fit(video[:, self.frames(count, fps)])

    def prepare_picture(self, picture: jax.Array) -> jax.Array:
        """A picture ``[B, H, W, 3]`` in [0, 1] as a pair of equal frames, ``[B, 2, h, w, 3]``."""
        check_shape(picture, "B H W C", C=3)
        return jnp.repeat(self._fit(picture[:, None]), PAIR, axis=1)

    def _fit(self, frames: jax.Array) -> jax.Array:
        x = resize(frames, *self.size(*frames.shape[2:4]))
        x = jnp.clip(x, 0, 1)
        if self.quantize == "round":
            x = jnp.round(x * 255) / 255
        elif self.quantize == "straight":
            x = x + lax.stop_gradient(jnp.round(x * 255) / 255 - x)
        return normalize(x)


def pick_frames(
    count: int, fps: float, rate: float = 2.0, least: int = 4, most: int = 768
) -> np.ndarray:
    """Numbers of the frames that a video of ``count`` frames is judged by, evenly spread.

    As many as ``rate`` asks for, to the nearest even number, within the bounds; at most all but
    one of an odd number.

    Raises:
      VidlatentError: fewer than two frames, or no frame rate.
    """
    if count < PAIR or fps <= 0:
        raise VidlatentError(
            f"VideoAlign cannot judge {count} frames at {fps:g} a second: it needs two frames or "
            "more and a known rate."
        )
    largest = min(most, count) // 2 * 2
    # The order of the bounds decides for videos that are shorter than ``least``.
    wanted = min(max(count / fps * rate, least), largest)
    number = min(PAIR * round(wanted / PAIR), count)
    return _spread(count - 1, number)


def _spread(last: int, number: int) -> np.ndarray:
    """``number`` whole numbers from 0 to ``last``, rounded as torch's float32 ``linspace`` is.

    It steps from both ends towards the middle; in between, halves are rounded to even numbers.
    """
    step = np.float32(last) / np.float32(number - 1)
    i = np.arange(number)
    # Products are exact in float64; torch rounds the fused product and sum once.
    up = np.float32(i * np.float64(step))
    down = np.float32(last - (number - 1 - i) * np.float64(step))
    return np.rint(np.where(i < number // 2, up, down)).astype(np.int64)


def fit_size(height: int, width: int, least: int, most: int) -> tuple[int, int]:
    """Multiples of 28 near ``height`` and ``width`` with an area from ``least`` to ``most`` pixels.

    The shape of the picture is kept up to this rounding.

    Raises:
      VidlatentError: one side is more than 200 times the other.
    """
    if max(height, width) > _LONGEST * min(height, width):
        raise VidlatentError(
            f"frames of {height}x{width} pixels: VideoAlign refuses a side of more than "
            f"{_LONGEST} times the other; crop them."
        )
    unit = PATCH * MERGE

    def near(size: float) -> int:
        return max(unit, unit * round(size / unit))

    high, wide = near(height), near(width)
    if high * wide > most:
        shrink = math.sqrt(height * width / most)
        high, wide = (unit * math.floor(size / shrink / unit) for size in (height, width))
    elif high * wide < least:
        grow = math.sqrt(least / (height * width))
        high, wide = (unit * math.ceil(size * grow / unit) for size in (height, width))
    return high, wide


def resize(x: jax.Array, height: int, width: int) -> jax.Array:
    """``[..., H, W, C] -> [..., height, width, C]`` float32: cubic, a = -0.5, antialiased."""
    rows, columns = pillow_matrix(x.shape[-3], height), pillow_matrix(x.shape[-2], width)
    return jnp.einsum(
        "hy,wx,...yxc->...hwc",
        rows,
        columns,
        x.astype(jnp.promote_types(x.dtype, jnp.float32)),
        precision=lax.Precision.HIGHEST,
    )


def normalize(x: jax.Array) -> jax.Array:
    """Pixels in [0, 1] by the mean and standard deviation of CLIP's training images."""
    return (x - jnp.array(MEAN, x.dtype)) / jnp.array(STD, x.dtype)


def patchify(frames: jax.Array) -> jax.Array:
    """Rows of patches ``[B, t, n, 1176]`` of frames ``[B, 2 t, h, w, 3]``, sides multiples of 28.

    A patch's values are in the order channel, frame, row, column. Patches of one token, 2x2, follow
    one another: row by row in the token, tokens row by row in the frame.
    """
    batch, count, height, width, channels = frames.shape
    t, h, w = count // PAIR, height // (PATCH * MERGE), width // (PATCH * MERGE)
    x = frames.reshape(batch, t, PAIR, h, MERGE, PATCH, w, MERGE, PATCH, channels)
    # -> [B, t, h, w, row and column in the token, C, frame, row and column in the patch]
    x = x.transpose(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)
    return x.reshape(batch, t, h * w * MERGE**2, channels * PAIR * PATCH**2)
