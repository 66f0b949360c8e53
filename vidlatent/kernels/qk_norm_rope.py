"""Queries and keys: RMS norm over the full width, split into heads, rotary positions, in one pass.

XLA:TPU passes such a tensor through memory about twenty times, because rotating neighbouring lanes
is the slowest shuffle that a TPU has. The Pallas form reads and writes the tensor once. It rotates
channel ``j`` of a head together with ``j + d / 2``; weights that were trained with neighbouring
pairs are permuted once, when they are imported (layout ``halves``).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from vidlatent.kernels.dispatch import Names, choose, needs_manual
from vidlatent.parallel.sharding import split_axes, ways
from vidlatent.spec import check_shape

__all__ = ["qk_norm_rope", "rotate", "rotate_halves"]

_AUTO = {"tpu": "pallas", "default": "xla"}
_LANES = 128  # of a TPU's vector register
# Tokens of a block, forward and backward: [128, 5120] float32 is 2.5 MiB, and the backward pass
# holds twice as many such arrays.
_ROWS, _ROWS_BACKWARD = 128, 64
# Bytes of vector memory that the kernel may use, above the compiler's default of 16 MiB: v5p and
# TPU7x have 64 MiB a core, v5e and v6e 128.
_SCRATCH = 48 << 20


def qk_norm_rope(
    x: jax.Array,
    scale: jax.Array,
    tables: tuple[jax.Array, jax.Array],
    heads: int,
    eps: float = 1e-6,
    *,
    implementation: Names = "auto",
    interpret: bool | pltpu.InterpretParams = False,
) -> jax.Array:
    """``rotate(x / rms(x) * scale)`` by heads (Wan2.1).

    Args:
      x: ``[B, N, D]``.
      scale: ``[D]`` float32.
      tables: cosines and sines ``[N, d / 2]`` float32; they get no gradient.
      heads: ``K``; ``d = D / K``.
      eps: added to the mean square.
      implementation: ``'auto'``, ``'xla'``, ``'pallas'`` or several, see ``dispatch``;
        ``'pallas'`` is for heads of a multiple of 128 channels whose width is whole on every
        device.
      interpret: run the Pallas form on any platform, slowly, for tests.

    Returns:
      ``[B, N, K, d]`` in the dtype of ``x``; the normalised tensor is rounded to it before the
      rotation, as Wan2.1's code does.

    Raises:
      VidlatentError: the form named does not support this (``'auto'`` takes the other).
    """
    sizes = check_shape(x, "B N D")
    check_shape(scale, "D", D=sizes["D"])
    lacks = functools.partial(_lacks, dim=sizes["D"] // heads, heads=heads)
    if choose("qk_norm_rope", implementation, _AUTO, lacks=lacks).name == "xla":
        return _xla(x, scale, tables, heads, eps)
    tables = lax.stop_gradient(tuple(jnp.asarray(table, jnp.float32) for table in tables))
    run = functools.partial(_run_fused, heads, eps, interpret)
    if not needs_manual():
        return run(x, scale, *tables)
    # Samples and tokens are split, but never the width: the norm needs all of it.
    batch, tokens = split_axes("batch", sizes["B"]), split_axes("tokens", sizes["N"])
    return jax.shard_map(
        run,
        in_specs=(P(batch, tokens), P(), P(tokens), P(tokens)),
        out_specs=P(batch, tokens),
        check_vma=False,
    )(x, scale, *tables)


def _lacks(name: str, dim: int, heads: int) -> str:
    if name == "xla":
        return ""
    if dim % _LANES:
        return f"needs heads of a multiple of {_LANES} channels, not {dim}"
    if needs_manual() and ways(split_axes("heads", heads)) > 1:
        return "needs the whole width on a device, but config.mesh.tensor splits the heads"
    return ""


def rotate(
    a: jax.Array, b: jax.Array, cos: jax.Array, sin: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Points ``(a, b)`` rotated about the origin; four arrays of shapes that broadcast."""
    return a * cos - b * sin, a * sin + b * cos


def rotate_halves(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate channels ``(j, j + d / 2)`` of ``[B, N, K, d]`` by each token's angles, in float32.

    ``tables`` are cosines and sines ``[N, d / 2]``, or ``[B, N, d / 2]`` where samples differ.
    """
    cos, sin = (jnp.asarray(table)[..., None, :] for table in tables)
    a, b = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    return jnp.concatenate(rotate(a, b, cos, sin), axis=-1).astype(x.dtype)


def _xla(x, scale, tables, heads, eps):
    h = x.astype(jnp.float32)
    h = h * lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + eps) * scale
    return rotate_halves(h.astype(x.dtype).reshape(*x.shape[:2], heads, -1), tables)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _run_fused(heads, eps, interpret, x, scale, cos, sin):
    return _forward(heads, eps, interpret, x, scale, cos, sin)[0]


def _forward(heads, eps, interpret, x, scale, cos, sin):
    batch, count, width = x.shape
    dim = width // heads
    cosines, sines = _double_tables(cos, sin)

    def body(x_ref, scale_ref, cos_ref, sin_ref, out_ref):
        h = x_ref[0].astype(jnp.float32)
        h = h * lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + eps) * scale_ref[0]
        h = h.astype(out_ref.dtype).astype(jnp.float32)  # rounds as the plain form does
        cos, sin = cos_ref[...], sin_ref[...]
        # A head is a whole number of registers wide, so cutting it out moves no lanes.
        for head in range(heads):
            t = h[:, head * dim : (head + 1) * dim]
            # Rolling by half a head swaps the two channels of every pair (j, j + d / 2).
            rotated = t * cos + pltpu.roll(t, dim // 2, 1) * sin
            out_ref[0, head] = rotated.astype(out_ref.dtype)

    rows = _ROWS
    # Written as [B, K, N, d]: a TPU tiles the last two axes, and a head's [rows, d] fills tiles.
    out = pl.pallas_call(
        body,
        grid=(batch, pl.cdiv(count, rows)),
        in_specs=_inputs(rows, width, dim),
        out_specs=pl.BlockSpec((1, heads, rows, dim), lambda b, i: (b, 0, i, 0)),
        out_shape=jax.ShapeDtypeStruct((batch, heads, count, dim), x.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=_SCRATCH
        ),
        cost_estimate=_cost(x, 2),
        interpret=interpret,
    )(x, scale[None].astype(jnp.float32), cosines, sines)
    return jnp.swapaxes(out, 1, 2), (x, scale, cos, sin)


def _backward(heads, eps, interpret, kept, cotangent):
    x, scale, cos, sin = kept
    batch, count, width = x.shape
    dim, rows = width // heads, _ROWS_BACKWARD
    cosines, sines = _double_tables(cos, sin)

    def body(x_ref, scale_ref, cos_ref, sin_ref, grad_ref, dx_ref, dscale_ref, unrotated):
        # All blocks add to one gradient of the scale, so only the very first clears it.
        first = (pl.program_id(0) == 0) & (pl.program_id(1) == 0)
        # The last block reaches beyond the last token, and what it reads there is not data.
        place = pl.program_id(1) * rows + lax.broadcasted_iota(jnp.int32, (rows, 1), 0)
        real = place < count
        cos, sin = cos_ref[...], sin_ref[...]
        for head in range(heads):
            g = jnp.where(real, grad_ref[0, head].astype(jnp.float32), 0.0)
            # The transpose of a rotation is the rotation by the opposite angle.
            back = g * cos + pltpu.roll(g * sin, dim // 2, 1)
            unrotated[:, head * dim : (head + 1) * dim] = jnp.where(real, back, 0.0)
        h = jnp.where(real, x_ref[0].astype(jnp.float32), 0.0)
        inverse = lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + eps)
        unit = h * inverse
        g = unrotated[...] * scale_ref[0]
        # Derivative of x / rms(x): what points along x itself drops out.
        dx = inverse * (g - unit * jnp.mean(g * unit, axis=-1, keepdims=True))
        dx_ref[0] = dx.astype(dx_ref.dtype)

        @pl.when(first)
        def _():
            dscale_ref[...] = jnp.zeros_like(dscale_ref)

        dscale_ref[...] += jnp.sum(unrotated[...] * unit, axis=0, keepdims=True)

    dx, dscale = pl.pallas_call(
        body,
        grid=(batch, pl.cdiv(count, rows)),
        in_specs=[
            *_inputs(rows, width, dim),
            pl.BlockSpec((1, heads, rows, dim), lambda b, i: (b, 0, i, 0)),
        ],
        out_specs=[
            pl.BlockSpec((1, rows, width), lambda b, i: (b, i, 0)),
            pl.BlockSpec((1, width), lambda b, i: (0, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((1, width), jnp.float32),
        ],
        # The unrotated heads side by side: the norm's derivative needs the full width.
        scratch_shapes=[pltpu.VMEM((rows, width), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            # Not parallel: all blocks add to the same gradient of the scale.
            dimension_semantics=("arbitrary", "arbitrary"),
            vmem_limit_bytes=_SCRATCH,
        ),
        cost_estimate=_cost(x, 3),
        interpret=interpret,
    )(x, scale[None].astype(jnp.float32), cosines, sines, jnp.swapaxes(cotangent, 1, 2))
    # Tables are constants, see qk_norm_rope.
    return dx, dscale[0].astype(scale.dtype), jnp.zeros_like(cos), jnp.zeros_like(sin)


_run_fused.defvjp(_forward, _backward)


def _double_tables(cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tables ``[N, d]`` with which the rotation is ``t * cos + roll(t, d / 2) * sin``."""
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def _inputs(rows: int, width: int, dim: int) -> list[Any]:
    table = pl.BlockSpec((rows, dim), lambda b, i: (i, 0))
    return [
        pl.BlockSpec((1, rows, width), lambda b, i: (b, i, 0)),
        pl.BlockSpec((1, width), lambda b, i: (0, 0)),
        table,
        table,
    ]


def _cost(x: jax.Array, passes: int) -> pl.CostEstimate:
    return pl.CostEstimate(
        flops=4 * passes * x.size,
        transcendentals=x.shape[0] * x.shape[1],
        bytes_accessed=passes * x.size * x.dtype.itemsize,
    )
