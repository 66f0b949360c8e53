"""Does a tokenizer keep the contract? ``check_tokenizer`` tries it on a tiny random clip."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.base import decode_checked, encode_checked
from vidlatent.parallel.compilation import quick_options
from vidlatent.spec import LatentSpec

__all__ = ["check_tokenizer"]


def check_tokenizer(
    module: Any,
    params: Any = None,
    *,
    size: tuple[int, int] | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> None:
    """Raise unless ``module`` does what ``base.Tokenizer`` asks of ``encode`` and ``decode``.

    Looked at are types and shapes for the first and for later pieces of a video. Where ``streams``
    is true, pieces must also give what the whole clip gives, and later frames must not change
    earlier latents. It takes seconds for a small module: give large ones few channels.

    Args:
      module: the tokenizer.
      params: its parameters; None: random ones.
      size: height and width of the clip in pixels; None: two latent rows and columns.
      tolerance: largest difference between pieces and whole, as a share of the largest value; a
        module that computes in bfloat16 needs about 0.05.
      seed: of the clip and of the parameters.

    Raises:
      VidlatentError: one sentence with what is wrong and what the contract asks.
    """
    if not isinstance(module.latent_spec, LatentSpec):
        raise VidlatentError(
            f"latent_spec of {type(module).__name__} must be a LatentSpec, not "
            f"{type(module.latent_spec).__name__}."
        )
    spec = module.latent_spec
    keys = jax.random.split(jax.random.key(seed), 3)
    height, width = size or (2 * spec.h, 2 * spec.w)
    # Two later pieces, because the second shows whether the cache is renewed.
    shape = (1, spec.rule.first + 2 * spec.rule.step, height, width, 3)
    video = jax.random.uniform(keys[0], shape, minval=-1.0, maxval=1.0)
    if params is None:
        params = _draw_params(module, video[:, : spec.rule.first], keys[1])
    trial = _Trial(module, params, tolerance)
    trial.check_whole(video)
    # The shortest clip too: for many tokenizers one frame is an image, a case of its own.
    trial.check_whole(video[:, : spec.rule.first])
    if module.streams:
        trial.check_look_ahead(video, keys[2])
        trial.check_pieces(video)


def _draw_params(module: Any, video: jax.Array, key: jax.Array) -> Any:
    """Random parameters; those that start at zero too, so that every layer has a say."""
    init = jax.jit(module.init, compiler_options=quick_options(0))
    leaves, structure = jax.tree.flatten(init(key, video)["params"])
    # A tokenizer may have no parameters at all.
    keys = jax.random.split(key, max(1, len(leaves)))
    moved = [
        x + 0.05 * jax.random.normal(k, x.shape, x.dtype)
        for k, x in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(structure, moved)


class _Trial:
    """The functions of a tokenizer with its parameters, compiled, and what is asked of them."""

    def __init__(self, module: Any, params: Any, tolerance: float):
        self.module, self.spec, self.tolerance = module, module.latent_spec, tolerance

        def method(name):
            def call(*args, **kwargs):
                return module.apply({"params": params}, *args, method=name, **kwargs)

            return call

        def encode(video, cache):
            return encode_checked(module, method("encode"), video, cache)

        def decode(latent, condition, cache):
            return decode_checked(module, method("decode"), latent, condition, cache)

        options = quick_options(0)
        self.encode = jax.jit(encode, compiler_options=options)
        self.decode = jax.jit(decode, compiler_options=options)
        self.make_condition = jax.jit(method("make_condition"), compiler_options=options)

    def check_whole(self, video: jax.Array) -> None:
        posterior, _ = self.encode(video, None)
        latent = posterior.mode()
        restored, _ = self.decode(latent, self.make_condition(video), None)
        for what, x in (("encode", latent), ("decode", restored)):
            if not bool(jnp.isfinite(x).all()):
                raise VidlatentError(
                    f"{what} of {self.spec.name} gives values that are not finite for a random "
                    "clip in [-1, 1]: give it parameters of a sound size, or mend the module."
                )

    def check_look_ahead(self, video: jax.Array, key: jax.Array) -> None:
        """Latents of the first piece must not change with frames after it."""
        first = self.spec.rule.first
        noise = jax.random.uniform(key, video.shape, minval=-1.0, maxval=1.0)
        other = jnp.concatenate([video[:, :first], noise[:, first:]], axis=1)
        length = max(1, first // self.spec.t)
        one, two = (self.encode(x, None)[0].mode()[:, :length] for x in (video, other))
        if (error := _relative(one, two)) > self.tolerance:
            raise VidlatentError(
                f"{self.spec.name} claims to stream, but later frames change the latents of the "
                f"first {first} by {error:.2g} of the largest value: encode must not look ahead, "
                "or streams must be False."
            )

    def check_pieces(self, video: jax.Array) -> None:
        """A first piece and two later ones must give what the whole clip gives."""
        first, step = self.spec.rule.first, self.spec.rule.step
        ends = (first, first + step, first + 2 * step)
        clips = [video[:, a:b] for a, b in zip((0, *ends[:-1]), ends, strict=True)]
        whole = self.encode(video, None)[0]
        cache, latents = None, []
        for clip in clips:
            posterior, cache = self.encode(clip, cache)
            latents.append(posterior.mode())
        self._compare("encode", whole.mode(), latents, cache)
        restored, _ = self.decode(whole.mode(), self.make_condition(video), None)
        cache, videos = None, []
        for number, (clip, latent) in enumerate(zip(clips, latents, strict=True)):
            # Kind 'first' keeps the condition in its cache; 'content' needs a frame of every piece.
            reads = number == 0 or self.module.condition_kind == "content"
            condition = self.make_condition(clip) if reads else None
            part, cache = self.decode(latent, condition, cache)
            videos.append(part)
        self._compare("decode", restored, videos, cache)

    def _compare(self, what: str, whole: jax.Array, pieces: list[jax.Array], cache: Any) -> None:
        error = _relative(whole, jnp.concatenate(pieces, axis=1))
        if error > self.tolerance:
            empty = "" if jax.tree.leaves(cache) else " (it is empty)"
            raise VidlatentError(
                f"{self.spec.name} claims to stream, but {what} in pieces differs from the whole "
                f"clip by {error:.2g} of the largest value: the cache{empty} must carry all that "
                "later frames need of earlier ones, or streams must be False."
            )


def _relative(expected: jax.Array, found: jax.Array) -> float:
    """Largest difference as a share of the largest value."""
    # Not 0, so that a module that returns zeros gets no NaN.
    scale = jnp.maximum(jnp.abs(expected).max(), 1e-30)
    return float(jnp.abs(expected - found).max() / scale)
