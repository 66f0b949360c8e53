"""What a tokenizer is: the protocol that every mode asks, and a base class with its defaults.

A tokenizer is a Linen module that is registered in ``models.tokenizers.MODELS``. It subclasses
``TokenizerModule`` and writes ``latent_spec``, ``encode`` and ``decode``; that is enough to train,
score, serve and plan it: videos are then coded whole or in chunks. What else it can do it says by
the other members of ``Tokenizer``.

``models.tokenizers.check.check_tokenizer`` tries a module on a tiny clip and says what it gets
wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.cutting import FrameCoder, SpaceWay, TimeWay
from vidlatent.spec import LatentSpec, check_shape

__all__ = [
    "LOGVAR_RANGE",
    "Patch",
    "Posterior",
    "Tokenizer",
    "TokenizerModule",
    "check_clip",
    "choose_latent",
    "decode_checked",
    "encode_checked",
    "refuse_condition",
]

LOGVAR_RANGE = (-30.0, 20.0)  # beyond it exp() loses its meaning in float32

ConditionKind = Literal["none", "first", "content"]


class Posterior(NamedTuple):
    """Latent distribution.

    Attributes:
      mean: ``[B, t, h, w, c]`` float32.
      logvar: same shape, or None for a deterministic tokenizer.
    """

    mean: jax.Array
    logvar: jax.Array | None = None

    def draw(self, noise: jax.Array) -> jax.Array:
        """``mean + exp(logvar / 2) * noise``; the mean itself for a deterministic tokenizer.

        Args:
          noise: standard normal, the shape of ``mean``. Fix it to compare with another code.
        """
        if self.logvar is None:
            return self.mean
        return self.mean + jnp.exp(0.5 * jnp.clip(self.logvar, *LOGVAR_RANGE)) * noise

    def sample(self, key: jax.Array) -> jax.Array:
        """``draw`` with fresh noise."""
        return self.draw(jax.random.normal(key, self.mean.shape, self.mean.dtype))

    def mode(self) -> jax.Array:
        """The latent that is the same in every call: the mean."""
        return self.mean


class Patch(NamedTuple):
    """A part of a decoded video that equals the same part of the whole.

    Attributes:
      video: ``[B, T, H, W, 3]``, from frame 0 on.
      top, left: pixel position of its corner in the whole frame; may be traced.
    """

    video: jax.Array
    top: Any
    left: Any


class Tokenizer(Protocol):
    """What codec, training, evaluation, latents, sampling and plan ask of a tokenizer.

    Parameters are found by ``init`` and used by ``apply``, as of any Linen module. Methods marked
    "without parameters" can be called as ``model.apply({}, ..., method=...)``.
    """

    @property
    def latent_spec(self) -> LatentSpec:
        """The latent's identity: name, channels, compression factors, legal clip lengths."""
        ...

    @property
    def streams(self) -> bool:
        """Whether ``encode`` and ``decode`` can continue from a cache, exactly."""
        ...

    @property
    def condition_kind(self) -> ConditionKind:
        """What the decoder reads beside the latent.

        ``'none'``: nothing. ``'first'``: the first frame of the video. ``'content'``: one frame of
        each clip of ``latent_spec.rule.step`` frames.
        """
        ...

    @property
    def encoder_paths(self) -> tuple[str, ...]:
        """Path expressions (``parallel.paths``) of the parameters that ``encode`` uses.

        Tokenizers that agree in them, in ``encoder_fields`` and in ``latent_spec`` code the same
        latents, and one's decoder may decode the other's. Empty: all parameters.
        """
        ...

    @property
    def encoder_fields(self) -> tuple[str, ...]:
        """Names of the module's fields that change ``encode`` and show in no parameter's shape."""
        ...

    def init(self, rngs: Any, video: jax.Array) -> Any:
        """Random parameters ``{'params': ...}``; they do not depend on the video's size."""
        ...

    def apply(self, variables: Any, *args: Any, method: Any = None, **kwargs: Any) -> Any:
        """``method`` (default: ``__call__``) of the module with these parameters."""
        ...

    def __call__(self, video: jax.Array) -> tuple[jax.Array, Posterior]:
        """Reconstruction ``[B, T, H, W, 3]`` float32 and the posterior.

        Training calls this. With a rng stream ``latent`` a draw from the posterior is decoded,
        else its mean.
        """
        ...

    def encode(self, video: jax.Array, *, cache: Any = None) -> tuple[Posterior, Any]:
        """Compress a clip, or the next piece of a stream.

        Args:
          video: ``[B, T, H, W, 3]`` in [-1, 1]. T follows ``latent_spec.rule`` at the start of a
            stream; later pieces have a multiple of ``latent_spec.rule.step`` frames.
          cache: what the previous piece's call returned; None at the start.

        Returns:
          ``Posterior`` of ``[B, t, h, w, c]`` float32, and the cache that continues the stream
          (None or empty where nothing is remembered).

        Raises:
          VidlatentError: a size that does not fit, naming the nearest legal ones.
        """
        ...

    def decode(
        self, latent: jax.Array, *, condition: Any = None, cache: Any = None
    ) -> tuple[jax.Array, Any]:
        """Restore a clip, or the next piece of a stream.

        Args:
          latent: ``[B, t, h, w, c]``, as ``encode`` gives it (not scaled for a generator).
          condition: what ``condition`` or ``encode_condition`` made; None where
            ``condition_kind`` is ``'none'``, and for later pieces where it is ``'first'``.
          cache: what the previous piece's call returned; None at the start.

        Returns:
          Video ``[B, T, H, W, 3]`` float32 (not clipped), and the cache.
        """
        ...

    def pick_content_frames(self, video: jax.Array) -> jax.Array:
        """The frames of ``[B, T, H, W, 3]`` that the decoder reads, ``[B * n, H, W, 3]``.

        Without parameters; of any type, since a codec keeps these frames as uint8. ``n`` is 1, or
        the number of clips for ``'content'``.
        """
        ...

    def encode_condition(self, frames: jax.Array) -> Any:
        """What ``decode`` takes as ``condition``, from content frames in [-1, 1]."""
        ...

    def make_condition(self, video: jax.Array) -> Any:
        """What ``decode`` takes as ``condition``, from a whole video; None if it takes nothing."""
        ...

    def list_time_ways(self) -> tuple[TimeWay, ...]:
        """In which ways a long video can be cut, the best first (``config.codec.time``)."""
        ...

    def list_space_ways(self) -> tuple[SpaceWay, ...]:
        """In which ways large frames can be cut, besides not at all (``config.codec.space``)."""
        ...

    def make_frame_coder(self) -> FrameCoder:
        """The functions that code whole frames."""
        ...

    @property
    def patch_cell(self) -> int:
        """Pixels of a cell, the unit in which ``decode_patch`` counts; 0: it cannot be used."""
        ...

    def decode_patch(
        self,
        params: Any,
        latent: jax.Array,
        start: tuple[Any, Any],
        size: tuple[int, int],
        *,
        frames: int | None = None,
        condition: Any = None,
        rngs: Any = None,
    ) -> Patch:
        """Decode a crop exactly, to train on sizes whose whole decoding does not fit.

        Args:
          params: the tokenizer's parameters, without ``apply`` around the call.
          latent: ``[B, t, h, w, c]``, whole.
          start: first row and column of the crop in cells; may be traced.
          size: rows and columns of cells.
          frames: latent frames to decode, from the first on; None for all.
          condition: as of ``decode``.
          rngs: random streams, such as ``{'noise': key}``.

        Returns:
          The part of the crop that equals decoding the whole latent.
        """
        ...


class TokenizerModule(nn.Module):
    """Base of tokenizers: what ``Tokenizer`` asks for, with defaults for all that can have one.

    A subclass gives ``latent_spec``, ``encode`` and ``decode``. By default it does not continue
    from caches, its decoder reads nothing but the latent, and frames are not cut.
    """

    @property
    def streams(self) -> bool:
        return False

    @property
    def condition_kind(self) -> ConditionKind:
        return "none"

    @property
    def encoder_paths(self) -> tuple[str, ...]:
        return ()

    @property
    def encoder_fields(self) -> tuple[str, ...]:
        return ()

    def __call__(self, video: jax.Array) -> tuple[jax.Array, Posterior]:
        """Reconstruction ``[B, T, H, W, 3]`` float32 and the posterior, see ``Tokenizer``."""
        posterior, _ = encode_checked(self, self.encode, video)
        latent, condition = choose_latent(self, posterior), self.make_condition(video)
        return decode_checked(self, self.decode, latent, condition)[0], posterior

    def make_condition(self, video: jax.Array) -> Any:
        """The decoder's condition from ``[B, T, H, W, 3]`` in [-1, 1]; None if it takes none."""
        if self.condition_kind == "none":
            return None
        return self.encode_condition(self.pick_content_frames(video))

    def pick_content_frames(self, video: jax.Array) -> jax.Array:
        """First frames ``[B, H, W, 3]``; a tokenizer of kind ``'content'`` says which ones."""
        if self.condition_kind == "none":
            raise VidlatentError(f"the decoder of {self.latent_spec.name} reads no frame.")
        return video[:, 0]

    def encode_condition(self, frames: jax.Array) -> Any:
        """Content frames as they are, for a decoder that reads pixels."""
        return frames

    @nn.nowrap
    def list_time_ways(self) -> tuple[TimeWay, ...]:
        chunks = TimeWay("chunks", exact=False)
        return (TimeWay("stream", exact=True), chunks) if self.streams else (chunks,)

    @nn.nowrap
    def list_space_ways(self) -> tuple[SpaceWay, ...]:
        return ()

    @nn.nowrap
    def make_frame_coder(self) -> FrameCoder:
        return FrameCoder(self)

    @property
    def patch_cell(self) -> int:
        return 0

    @nn.nowrap
    def decode_patch(self, params, latent, start, size, **options) -> Patch:
        """Refused; a tokenizer that can do it says so by ``patch_cell``."""
        raise VidlatentError(f"{self.latent_spec.name} cannot decode patches exactly.")


def check_clip(spec: LatentSpec, video: jax.Array, first: bool) -> None:
    """Raise unless ``video`` ``[B, T, H, W, 3]`` starts (``first``) or continues a stream."""
    size = check_shape(video, "B T H W C", C=3)
    frames = size["T"]
    if not first:
        if frames == 0 or frames % spec.t:
            raise VidlatentError(
                f"a later chunk of {frames} frames does not fit: it needs a multiple of {spec.t}; "
                f"only the first chunk has {spec.rule} frames."
            )
        # With its length settled, a later chunk has the same rules as a legal first one.
        frames = spec.rule.first
    spec.check_video(frames, size["H"], size["W"])


def choose_latent(module: nn.Module, posterior: Posterior) -> jax.Array:
    """What a tokenizer decodes: a draw if there is a rng stream ``latent``, else the mean."""
    if module.has_rng("latent"):
        return posterior.sample(module.make_rng("latent"))
    return posterior.mode()


def refuse_condition(condition: Any) -> None:
    """Raise if a decoder that reads nothing but the latent is given a condition."""
    if condition is not None:
        raise VidlatentError("this decoder takes no condition: pass condition=None.")


def encode_checked(
    model: Any, encode: Callable[..., Any], video: jax.Array, cache: Any = None
) -> tuple[Any, Any]:
    """``encode(video, cache=cache)`` of ``model``, whose result must be what ``Tokenizer`` asks.

    Only types and shapes are looked at: inside ``jax.jit`` this costs nothing at run time.

    Raises:
      VidlatentError: no ``Posterior``, of another shape or type, or a cache that does not continue
        the stream.
    """
    spec = model.latent_spec
    # Without arrays in it a cache cannot tell the module that a stream goes on.
    no_memory = cache is not None and not jax.tree.leaves(cache)
    # A module without a memory mostly fails on the length of a later piece. Name the cause.
    try:
        result = encode(video, cache=cache)
    except VidlatentError as error:
        if not no_memory or not model.streams:
            raise
        raise VidlatentError(
            f"{spec.name} claims to stream, but encode returned an empty cache and then refused "
            f"the next piece ({str(error).rstrip('.')}): return what the next piece needs, or let "
            "streams be False."
        ) from error
    # Exactly a tuple: a Posterior alone is a tuple of two as well.
    if type(result) is not tuple or len(result) != 2:
        raise VidlatentError(
            f"encode of {spec.name} must return (Posterior, cache), not {_describe(result)}."
        )
    posterior, after = result
    # By attribute, not by class: Reducio's posterior is a class of its own.
    if not hasattr(posterior, "logvar"):
        raise VidlatentError(
            f"encode of {spec.name} must return (Posterior, cache), but the first of the two is "
            f"{_describe(posterior)}: wrap it, Posterior(mean)."
        )
    batch, frames, height, width, _ = video.shape
    # Only the first piece begins with frames that are no whole group of t.
    if cache is None:
        shape = spec.whole.latent_shape((frames, height, width))
    else:
        shape = (frames // spec.t, height // spec.h, width // spec.w, spec.channels)
    for name in ("mean", "logvar"):
        leaf = getattr(posterior, name)
        if leaf is not None:
            _check_array(leaf, (batch, *shape), f"encode of {spec.name}: the posterior's {name}")
    # With pieces of one length (Reducio) None is a cache, too: nothing has to carry over.
    if model.streams and after is None and spec.rule.first != spec.rule.step:
        raise VidlatentError(
            f"{spec.name} claims to stream, but encode returned None as its cache, with which the "
            f"next piece would be coded as the first of {spec.rule} frames: return a cache, or let "
            "streams be False."
        )
    return posterior, after


def decode_checked(
    model: Any,
    decode: Callable[..., Any],
    latent: jax.Array,
    condition: Any = None,
    cache: Any = None,
) -> tuple[jax.Array, Any]:
    """As ``encode_checked``, for ``decode(latent, condition=condition, cache=cache)``.

    Raises:
      VidlatentError: no ``(video, cache)``, or a video of another shape or type.
    """
    spec = model.latent_spec
    result = decode(latent, condition=condition, cache=cache)
    if type(result) is not tuple or len(result) != 2:
        raise VidlatentError(
            f"decode of {spec.name} must return (video, cache), not {_describe(result)}."
        )
    batch, length, rows, columns, _ = latent.shape
    frames = length * spec.t
    # The first latent frames of a stream stand for rule.first frames, not for whole groups.
    if cache is None:
        frames += spec.rule.first - max(1, spec.rule.first // spec.t) * spec.t
    shape = (batch, frames, rows * spec.h, columns * spec.w, 3)
    piece = "first" if cache is None else "later"
    what = f"decode of {spec.name}: the video of a {piece} piece of {length} latent frames"
    _check_array(result[0], shape, what)
    return result


def _check_array(x: Any, shape: tuple[int, ...], what: str) -> None:
    if getattr(x, "shape", None) != shape or x.dtype != jnp.float32:
        raise VidlatentError(f"{what} must be float32 {list(shape)}, not {_describe(x)}.")


def _describe(x: Any) -> str:
    """``x`` in a message: arrays by type and shape."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{x.dtype} {list(x.shape)}"
    return f"{type(x).__name__}"
