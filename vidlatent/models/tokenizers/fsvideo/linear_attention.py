"""ReLU linear attention over the positions of one frame (EfficientViT)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidlatent.layers.conv import Conv
from vidlatent.layers.dense import GroupedPointwise, Kernel
from vidlatent.layers.norms import ChannelNorm
from vidlatent.spec import check_parts

__all__ = ["MultiScaleLinearAttention", "relu_linear_attention"]


def relu_linear_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, eps: float = 1e-15
) -> jax.Array:
    """``o_p = sum_s v_s (k_s . q_p) / (sum_s k_s . q_p + eps)`` with ReLU on q and k.

    The sums over positions are one ``d x (d + 1)`` matrix per head, hence the linear cost. Sums and
    quotient are float32: in half precision ``eps`` would be 0, and a query that matches no key must
    give 0, not NaN.

    Args:
      q, k, v: ``[F, N, K, d]`` (F independent frames), or ``[F, H, W, K, d]``. Pass the latter on a
        mesh: rows stay sharded only while they are an axis of their own.

    Returns:
      The shape of ``q``, float32.
    """
    q, k, v = (a.astype(jnp.float32) for a in (q, k, v))
    q, k = jax.nn.relu(q), jax.nn.relu(k)
    # A column of ones beside v: the same sum then gives the denominator.
    ones = jnp.ones((*v.shape[:-1], 1), v.dtype)
    at = "n" if q.ndim == 4 else "yx"
    state = jnp.einsum(f"f{at}hd,f{at}he->fhde", k, jnp.concatenate([v, ones], axis=-1))
    out = jnp.einsum(f"f{at}hd,fhde->f{at}he", q, state)
    return out[..., :-1] / (out[..., -1:] + eps)


class MultiScaleLinearAttention(nn.Module):
    """Linear attention per frame, with extra heads from locally mixed projections.

    The three projections and their depthwise-mixed copies are joined on channels and cut into
    runs of ``3 * head_dim``: each run is one head's q, k and v. (So ``to_q``, ``to_k`` and
    ``to_v`` are thirds of one projection by name only; this is how the published weights are.)

    Attributes:
      head_dim: channels per head.
      kernels: sizes of the depthwise windows; one more set of heads for each.
    """

    head_dim: int
    kernels: tuple[int, ...] = (5,)
    norm_eps: float = 1e-5
    norm_affine: bool = True
    norm_scale: float = 1.0
    dtype: Any = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, T, H, W, C] -> [B, T, H, W, C]``, with its residual."""
        batch, time, height, width, channels = x.shape
        check_parts("config.model.head_dim", self.head_dim, "the width", channels)
        thirds = [Kernel((channels, channels), name=name)() for name in ("to_q", "to_k", "to_v")]
        # One product [C, 3C]; heads are cut only after its mixed copies have been joined to it.
        kernel = jnp.concatenate(thirds, axis=1).astype(self.dtype)
        base = jnp.einsum("...i,io->...o", x.astype(self.dtype), kernel)
        sets = [base]
        for i, size in enumerate(self.kernels):
            mix = _LocalMix(
                size, self.head_dim, self.dtype, self.implementation, name=f"to_qkv_multiscale_{i}"
            )
            sets.append(mix(base))
        heads = jnp.concatenate(sets, axis=-1)
        # [F, H, W, heads, (q, k, v), d]
        heads = heads.reshape(batch * time, height, width, -1, 3, self.head_dim)
        out = relu_linear_attention(heads[..., 0, :], heads[..., 1, :], heads[..., 2, :])
        # The heads of all sets side by side: [B, T, H, W, (1 + kernels) C].
        out = out.astype(self.dtype).reshape(batch, time, height, width, -1)
        kernel = Kernel((out.shape[-1], channels), name="to_out")().astype(self.dtype)
        y = jnp.einsum("...i,io->...o", out, kernel)
        norm = ChannelNorm(
            self.norm_eps, self.norm_affine, self.norm_scale, self.dtype, name="norm_out"
        )
        return x + norm(y)


class _LocalMix(nn.Module):
    """Depthwise window, then a product inside each group of ``head_dim`` channels."""

    size: int
    head_dim: int
    dtype: Any
    implementation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = Conv(
            x.shape[-1],
            (1, self.size, self.size),
            depthwise=True,
            use_bias=False,
            dtype=self.dtype,
            implementation=self.implementation,
            name="proj_in",
        )
        return GroupedPointwise(self.head_dim, self.dtype, name="proj_out")(conv(x)[0])
