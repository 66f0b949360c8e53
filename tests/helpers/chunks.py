"""Chunks joined at once, and the arithmetic of their frames: what the package is held to."""

import jax.numpy as jnp

from vidlatent.models.tokenizers.chunks import compute_fade
from vidlatent.spec import check_shape


def join_chunks(chunks, plan):
    """``[B, n, chunk, H, W, C] -> [B, T, H, W, C]``: fade, then cut the padding off."""
    size = check_shape(chunks, "B n t H W C", n=len(plan.starts), t=plan.chunk)
    if size["n"] == 1:
        return chunks[:, 0, : plan.frames]
    shared, step = plan.overlap, plan.chunk - plan.overlap
    weight = jnp.asarray(compute_fade(shared), chunks.dtype)[:, None, None, None]
    starts = chunks[:, 1:, :shared] * weight + chunks[:, :-1, step:] * (1 - weight)
    starts = jnp.concatenate([chunks[:, :1, :shared], starts], axis=1)
    body = jnp.concatenate([starts, chunks[:, :, shared:step]], axis=2)
    body = body.reshape(size["B"], -1, *body.shape[3:])
    return jnp.concatenate([body, chunks[:, -1, step:]], axis=1)[:, : plan.frames]


def latent_span(index, factor):
    """First and last frame that latent frame ``index`` of a chunk stands for."""
    return (0, 0) if index == 0 else (factor * (index - 1) + 1, factor * index)


def key_frames(frames, factor):
    """Frames whose 4x latents a model of compression ``factor`` starts from (8: every 2nd)."""
    return list(range(0, frames, factor // 4))
