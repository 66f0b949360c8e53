"""Shape legend, frame arithmetic, and ``LatentSpec``, which identifies a tokenizer's latents.

Letters used in every docstring of the package; arrays are channel-last::

    B batch    T frames   H height   W width    C channels     video  [B, T, H, W, C]
               t frames   h height   w width    c channels     latent [B, t, h, w, c]
    N tokens   D width    K heads    L layers                  tokens [B, N, D]

Pixels are uint8 until they reach a device and lie in [-1, 1] there.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from vidlatent.errors import VidlatentError
from vidlatent.files import dump_json

__all__ = ["ChunkRule", "FrameRule", "LatentSpec", "check_parts", "check_shape"]


@dataclasses.dataclass(frozen=True)
class FrameRule:
    """Legal clip lengths ``T = first + step * k`` with ``k >= 0``.

    ``FrameRule(1, 4)`` is the causal tokenizers' 1+4k (a single image is legal);
    ``FrameRule(16, 16)`` is Reducio's fixed window.
    """

    first: int
    step: int

    def legal(self, frames: int) -> bool:
        return frames >= self.first and (frames - self.first) % self.step == 0

    def check(self, frames: int) -> None:
        """Raise unless a length is legal, naming the nearest legal ones."""
        if not self.legal(frames):
            low, high = self.nearest(frames)
            near = f"{low} or {high}" if low != high else f"{low}"
            raise VidlatentError(f"{frames} frames do not fit the rule {self}: use {near} frames.")

    def groups(self, frames: int) -> int:
        """Number ``k`` of groups after the first; raises on an illegal length."""
        self.check(frames)
        return (frames - self.first) // self.step

    def floor(self, frames: int) -> int:
        """Longest legal length not above ``frames`` (the shortest legal one at least)."""
        return self.first + max(0, (frames - self.first) // self.step) * self.step

    def ceil(self, frames: int) -> int:
        """Shortest legal length not below ``frames``."""
        # -(-a // b) is a / b rounded up, in whole numbers.
        return self.first + max(0, -(-(frames - self.first) // self.step)) * self.step

    def nearest(self, frames: int) -> tuple[int, int]:
        """The legal lengths just below and above."""
        return self.floor(frames), self.ceil(frames)

    def __str__(self) -> str:
        return f"{self.first}+{self.step}k"


@dataclasses.dataclass(frozen=True)
class ChunkRule(FrameRule):
    """Legal lengths when clips are coded in chunks, of ``step`` new frames each.

    Attributes:
      picture: a single frame, which is not a chunk, is legal too.
    """

    picture: bool = False

    def legal(self, frames: int) -> bool:
        return super().legal(frames) or (self.picture and frames == 1)

    def floor(self, frames: int) -> int:
        return 1 if self.picture and frames < self.first else super().floor(frames)

    def ceil(self, frames: int) -> int:
        return 1 if self.picture and frames <= 1 else super().ceil(frames)

    def __str__(self) -> str:
        return f"1 or {super().__str__()}" if self.picture else super().__str__()


@dataclasses.dataclass(frozen=True)
class LatentSpec:
    """Identity of a tokenizer's latents, by which latents of another tokenizer are refused.

    Stored with checkpoints, latent data sets and exports; whoever joins two of them compares
    ``hash``.

    Attributes:
      name: the tokenizer's registry name, with its variant.
      channels: latent channels ``c``.
      t, h, w: compression factors of time, height and width.
      rule: legal clip lengths.
      scale, shift: the generator sees ``(latent - shift) * scale``.
      dtype: dtype the latent is stored in.
      chunks: ``(frames, overlap_frames)`` if clips are cut into chunks that are coded
        independently, their latents one after the other in time (ProMAG, appendix D); None: clips
        are coded whole.
      moments: mean and deviation of each channel, where the tokenizer is released with those in
        place of one scale and shift: the generator sees ``(latent - mean) / std``.
    """

    name: str
    channels: int
    t: int
    h: int
    w: int
    rule: FrameRule
    scale: float = 1.0
    shift: float = 0.0
    dtype: str = "float32"
    chunks: tuple[int, int] | None = None
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def to_json(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        for name in ("chunks", "moments"):
            if fields[name] is None:  # left out, so that hashes written before they existed hold
                del fields[name]
        return fields

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LatentSpec:
        """The spec that ``to_json`` gave; of a file, so it is checked.

        Raises:
          VidlatentError: a field is missing, unknown, of another type or absurd.
        """
        try:
            fields = {**data, "rule": FrameRule(**data["rule"])}
            if fields.get("chunks") is not None:
                # JSON made a list of it, and a list is neither hashable nor equal to the tuple.
                fields["chunks"] = tuple(data["chunks"])
            if fields.get("moments") is not None:
                fields["moments"] = tuple(map(tuple, data["moments"]))
            spec = cls(**fields)
            wrong = spec._find_absurd()
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise VidlatentError(
                f"this is no description of latents ({type(error).__name__}: {error}): make the "
                "file again."
            ) from error
        if wrong:
            raise VidlatentError(
                f"this is no description of latents, since its {wrong} is "
                f"{str(getattr(spec, wrong))[:80]}: make the file again."
            )
        return spec

    def _find_absurd(self) -> str:
        """The first field that no tokenizer has; '' if all could be."""

        def whole(value: Any, low: int, high: int) -> bool:
            return type(value) is int and low <= value <= high

        def finite(value: Any) -> bool:
            return type(value) in (int, float) and abs(value) < 1e30

        right = {
            "name": type(self.name) is str,
            "channels": whole(self.channels, 1, 1 << 16),
            "t": whole(self.t, 1, 1 << 10),
            "h": whole(self.h, 1, 1 << 10),
            "w": whole(self.w, 1, 1 << 10),
            "rule": whole(self.rule.first, 1, 1 << 20) and whole(self.rule.step, 1, 1 << 20),
            "scale": finite(self.scale) and self.scale != 0,
            "shift": finite(self.shift),
            "dtype": self.dtype in ("float32", "bfloat16", "float16"),
        }
        if self.chunks is not None:
            pair = len(self.chunks) == 2 and whole(self.chunks[0], 2, 1 << 20)
            right["chunks"] = pair and whole(self.chunks[1], 0, self.chunks[0] - 1)
        if self.moments is not None:
            counts = [len(values) for values in self.moments]
            numbers = all(finite(value) for values in self.moments for value in values)
            right["moments"] = (
                counts == [self.channels] * 2 and numbers and min(self.moments[1]) > 0
            )
        return next((name for name, is_right in right.items() if not is_right), "")

    @property
    def hash(self) -> str:
        """Hex SHA-256 of the canonical JSON form."""
        # Keys in order and no spaces: equal specs give equal text.
        canonical = dump_json(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def whole(self) -> LatentSpec:
        """The spec of the same tokenizer with clips coded whole."""
        return dataclasses.replace(self, chunks=None)

    @property
    def lengths(self) -> FrameRule:
        """Legal lengths of clips: ``rule``; with chunks, lengths that whole chunks fill."""
        if self.chunks is None:
            return self.rule
        # Each chunk after the first adds the frames that it does not share with the one before.
        frames, overlap = self.chunks
        return ChunkRule(frames, frames - overlap, self.rule.legal(1))

    def in_chunks(self, chunks: Sequence[int], key: str) -> LatentSpec:
        """The spec of the same tokenizer with clips coded in chunks.

        Args:
          chunks: ``(frames, overlap_frames)``; empty: coded whole.
          key: config key that ``chunks`` comes from, for messages.

        Raises:
          VidlatentError: no legal clip length, or an overlap of more than half a chunk, so that
            three chunks would share a frame.
        """
        if not len(chunks):
            return self.whole
        if len(chunks) != 2 or any(int(n) != n for n in chunks):
            raise VidlatentError(f"{key}={tuple(chunks)}: give (frames, overlap_frames) or ().")
        frames, overlap = (int(n) for n in chunks)
        if frames < 2 or not self.rule.legal(frames):
            low, high = self.rule.nearest(max(frames, 2))
            # One frame is a picture and no chunk, so it is not offered as the nearest length.
            low = high if low < 2 else low
            near = f"{low} or {high}" if low != high else f"{low}"
            raise VidlatentError(
                f"{key}={tuple(chunks)}: chunks of {frames} frames are no clips of {self.name}, "
                f"which takes {self.rule}: use {near}."
            )
        if not 0 <= overlap <= frames // 2:
            raise VidlatentError(
                f"{key}={tuple(chunks)}: chunks of {frames} frames cannot share {overlap}: use 0 "
                f"to {frames // 2}."
            )
        return dataclasses.replace(self, chunks=(frames, overlap))

    @property
    def compression(self) -> float:
        """RGB values per latent value for a long clip (FSVideo eq. 1): 384 for FSAE."""
        return self.t * self.h * self.w * 3 / self.channels

    def check_video(self, frames: int, height: int, width: int) -> None:
        """Raise unless a video of this size can be encoded, naming the nearest legal sizes."""
        self.lengths.check(frames)
        for side, size, factor in (("height", height, self.h), ("width", width, self.w)):
            if size < factor or size % factor:
                low = max(factor, size // factor * factor)
                high = max(factor, -(-size // factor) * factor)
                near = f"{low} or {high}" if low != high else f"{low}"
                raise VidlatentError(
                    f"{side} {size} is not a multiple of {factor} ({self.name}): use {near}."
                )

    def latent_shape(self, video: tuple[int, int, int]) -> tuple[int, int, int, int]:
        """``(T, H, W) -> (t, h, w, c)``; raises as ``check_video`` does."""
        self.check_video(*video)
        frames, height, width = video
        # All chunks of a clip have the same latent length, shared frames included.
        if self.chunks is not None and frames > 1:
            one = self.whole.latent_shape((self.chunks[0], height, width))
            return ((1 + self.lengths.groups(frames)) * one[0], *one[1:])
        # A rule 1+4k has one latent for its first frame, a window of 16 has 16 / t of them.
        first = max(1, self.rule.first // self.t)
        groups = self.rule.groups(frames) * (self.rule.step // self.t)
        return (first + groups, height // self.h, width // self.w, self.channels)


def check_parts(
    key: str, parts: int, name: str, width: int, *, step: int = 1, least: int = 1
) -> None:
    """Raise unless ``parts`` (heads, groups) divide a width, naming the nearest sizes that do.

    Args:
      key: of ``parts``, such as ``config.generator.heads``.
      parts: their number.
      name: of the width.
      width: number of channels.
      step, least: each part has a multiple of ``step`` channels, and at least ``least``.
    """

    def fits(number: int) -> bool:
        size, rest = divmod(width, number)
        return not rest and size % step == 0 and size >= least

    if parts >= 1 and fits(parts):
        return
    numbers = [number for number in range(1, width + 1) if fits(number)]
    near = [*[n for n in numbers if n < parts][-1:], *[n for n in numbers if n > parts][:1]]
    remedies = [f"{key} {' or '.join(map(str, near))}"] if near else []
    if parts >= 1:
        unit = parts * step
        smallest = unit * -(-least // step)
        widths = sorted(
            {max(smallest, width // unit * unit), max(smallest, -(-width // unit) * unit)}
        )
        remedies.append(f"{name} {' or '.join(map(str, widths))}")
    beyond = f" into parts of a multiple of {step} channels" if step > 1 else ""
    beyond += f", at least {least}" if least > step else ""
    raise VidlatentError(
        f"{key} {parts} does not divide {name} {width}{beyond}: use {', or '.join(remedies)}."
    )


def check_shape(x: Any, pattern: str, **sizes: int) -> dict[str, int]:
    """Match ``x.shape`` against named axes and return their sizes.

    ``check_shape(video, 'B T H W C', C=3)`` returns ``{'B': …, …}``. A name used twice or given in
    ``sizes`` must agree; ``_`` matches anything.
    """
    names = pattern.split()
    if len(names) != len(x.shape):
        raise VidlatentError(
            f"expected an array [{pattern}], got shape {tuple(x.shape)} ({len(x.shape)} axes)."
        )
    found = dict(sizes)
    for name, size in zip(names, x.shape, strict=True):
        if name != "_" and found.setdefault(name, size) != size:
            raise VidlatentError(
                f"axis {name} of [{pattern}] should be {found[name]}, "
                f"but the shape is {tuple(x.shape)}."
            )
    return found
