"""Softmax attention in the form that each platform runs best.

* ``xla``: plain matrix products, a block of queries at a time so that memory stays linear in the
  number of tokens. Any dtype, any mask, every platform; the reference.
* ``splash``: JAX's Pallas kernel for TPUs. It needs whole blocks, so lengths are padded here and
  the padding is masked by segment ids.
* ``cudnn``: cuDNN's fused kernel on GPUs, half precision only. Its backward pass refuses odd
  lengths, so these are padded here.

XLA's partitioner cannot split the fused kernels, so on a mesh they run inside ``shard_map``. Batch
and heads stay sharded. Tokens that are sharded over ``context`` are exchanged for heads by an
all-to-all and back (DeepSpeed Ulysses, Jacobs et al. 2023); where the heads do not divide, keys and
values are gathered instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from vidlatent.errors import VidlatentError
from vidlatent.kernels.dispatch import KernelForm, Names, choose, needs_manual
from vidlatent.parallel.sharding import split_axes, ways
from vidlatent.spec import check_shape

__all__ = ["attention", "attention_form", "map_query_blocks"]

_AUTO = {"tpu": "splash", "gpu": "cudnn", "default": "xla"}
# Attention scores that the plain form holds at once, in elements: 256 MiB of float32.
_SCORES = 1 << 26
# A block of queries of the plain form is a multiple of this, so that meshes divide it.
_SPLIT = 16
_LANES = 128  # of a TPU's vector register; blocks are whole multiples
# Largest blocks with which splash fits 16 MiB of vector memory, by the head's width in whole lanes
# and the bytes of a channel: the TPU compiler refuses larger ones on long sequences
# (docs/design_notes.md, "Kernels").
_LARGEST = {(128, 2): 1536, (128, 4): 1536, (256, 2): 1024, (256, 4): 768}
# Limits within such blocks: queries of a block in the backward pass, which holds more arrays, and
# keys that one matrix product takes at a time. Chosen so that the programs compile; not tuned.
_BLOCK_BACKWARD, _BLOCK_COMPUTE = 1024, 640
# With fewer queries splash would mostly multiply padding (a block has at least 128).
_FEW = 128


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: jax.Array | None = None,
    *,
    lengths: jax.Array | None = None,
    implementation: Names = "auto",
    platform: str | None = None,
    interpret: Any = False,
) -> jax.Array:
    """``softmax(q k^T / sqrt(d)) v``.

    Args:
      q: ``[B, N, K, d]``.
      k, v: ``[B, M, K, d]``.
      seen: bool ``[B, M]``, which keys exist; None for all. Each sample has at least one.
      lengths: int ``[B]``, how many keys exist, from the first on; instead of ``seen``.
      implementation: ``'auto'``, a form's name or several, see ``dispatch``.
      platform: in place of the current one, for ``'auto'``.
      interpret: run the Pallas form on any platform, slowly, for tests; true, or the
        ``InterpretParams`` of Pallas.

    Returns:
      ``[B, N, K, d]`` float32; the fused forms have rounded it to the dtype of ``v`` on the way.

    Raises:
      VidlatentError: an unknown form, or one named that cannot do this (``'auto'`` takes another).
    """
    sizes = check_shape(q, "B N K d")
    check_shape(k, "B M K d", **{name: sizes[name] for name in "BKd"})
    if seen is not None and lengths is not None:
        raise VidlatentError("attention takes seen or lengths, not both.")
    form = attention_form(q, seen, implementation=implementation, platform=platform)
    if form.name == "cudnn":
        return _spread(_cudnn, q, k, v, lengths).astype(jnp.float32)
    # Only cuDNN takes lengths; the other forms take a mask [B, M].
    if lengths is not None:
        seen = jnp.arange(k.shape[1]) < lengths[:, None]
    if form.name == "splash":
        local = functools.partial(_splash, interpret=interpret)
        return _spread(local, q, k, v, seen).astype(jnp.float32)
    return _xla(q, k, v, seen)


def attention_form(
    q: jax.Array,
    seen: jax.Array | None = None,
    *,
    implementation: Names = "auto",
    platform: str | None = None,
) -> KernelForm:
    """The form that ``attention`` takes for queries ``[B, N, K, d]``, and why.

    Raises:
      VidlatentError: the form named cannot do it.
    """
    lacks = functools.partial(_lacks, q=q, seen=seen)
    return choose("attention", implementation, _AUTO, platform=platform, lacks=lacks)


def _lacks(name: str, q: jax.Array, seen: jax.Array | None) -> str:
    """Why a form cannot (or should not) do this, or ''."""
    dim = q.shape[-1]
    if name == "splash":
        if q.dtype.itemsize > 4:
            return f"does not know {q.dtype}"
        if dim > 256:
            return f"has blocks for heads of at most 256 channels, not {dim}"
        if q.shape[1] < _FEW:
            return f"would pad {q.shape[1]} queries to {_LANES}"
    if name == "cudnn":
        if q.dtype not in (jnp.bfloat16, jnp.float16):
            return f"does not know {q.dtype}"
        if seen is not None:
            return "takes lengths, not a mask of single keys"
        here = _capability()
        if here is not None and here < (8, 0):
            return "needs an NVIDIA GPU of compute capability 8.0 or more"
        # As JAX itself checks: by the GPU at hand, and with a limit of 128 where there is none.
        widest = 256 if here is not None and here >= (9, 0) else 128
        if dim % 8 or dim > widest:
            wider = "" if widest == 256 else " (256 from compute capability 9.0 on)"
            return f"needs heads of a multiple of 8 channels, at most {widest}{wider}, not {dim}"
    return ""


def _capability() -> tuple[int, int] | None:
    """Compute capability of the GPU at hand; (0, 0) if it is not NVIDIA's, None without a GPU."""
    if jax.default_backend() != "gpu":
        return None
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version:
        return 0, 0
    major, minor = device.compute_capability.split(".")
    return int(major), int(minor)


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array | None) -> jax.Array:
    """The plain form: a block of queries at a time, so that few scores exist at once."""
    batch, queries, heads, dim = q.shape
    scale = dim**-0.5
    # -inf, not a large negative number: missing keys get a weight of exactly 0.
    bias = None if seen is None else jnp.where(seen, 0.0, -jnp.inf)[:, None, None, :]

    def attend(part):
        # part [B, n, K, d] -> scores [B, K, n, M]
        scores = jnp.einsum("nqhd,nkhd->nhqk", part, k, preferred_element_type=jnp.float32)
        scores = scores * scale if bias is None else scores * scale + bias
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return jnp.einsum("nhqk,nkhd->nqhd", weights, v, preferred_element_type=jnp.float32)

    blocks = -(-batch * heads * queries * k.shape[1] // _SCORES)
    if blocks <= 1:
        return attend(q)
    return map_query_blocks(attend, q, blocks)


def map_query_blocks(
    attend: Callable[[jax.Array], jax.Array], q: jax.Array, blocks: int
) -> jax.Array:
    """``attend(q)`` on a part of the queries ``[B, N, ...]`` at a time, in about ``blocks`` steps.

    Each iteration takes a strided subset, every ``blocks``-th query. The loop axis is then never
    the one that a mesh shards, so each device works through its own queries. With contiguous
    slices XLA would gather every slice, and every device would compute all of them. The backward
    pass recomputes each iteration, because its scores are the only large array here.

    Args:
      attend: ``[B, n, ...] -> [B, n, ...]``, independent for each query.

    Returns:
      ``[B, N, ...]``.
    """
    count = q.shape[1]
    size = -(-count // (blocks * _SPLIT)) * _SPLIT
    # Sizes were rounded up, so fewer blocks may be enough.
    blocks = -(-count // size)
    fill = [(0, 0), (0, blocks * size - count)] + [(0, 0)] * (q.ndim - 2)
    # [B, N, ...] -> [B, size, blocks, ...]: query i belongs to block i % blocks.
    parts = jnp.pad(q, fill).reshape(q.shape[0], size, blocks, *q.shape[2:])
    out = lax.map(jax.checkpoint(attend), jnp.moveaxis(parts, 2, 0))
    out = jnp.moveaxis(out, 0, 2)
    return out.reshape(q.shape[0], size * blocks, *out.shape[3:])[:, :count]


def _blocks(length: int, largest: int) -> tuple[int, int]:
    """Block size and padded length of an axis: least padding first, then the largest block."""
    fewest = -(-length // largest)
    choices = []
    # Up to three blocks more than necessary are tried: smaller ones may need less padding.
    for count in range(fewest, fewest + 4):
        block = -(-length // (count * _LANES)) * _LANES
        choices.append((-(-length // block) * block, -block))
    padded, block = min(choices)
    return -block, padded


def _part(size: int, limit: int) -> int:
    """Largest multiple of 128 up to ``limit`` that divides ``size``."""
    return max(part for part in range(_LANES, min(size, limit) + 1, _LANES) if size % part == 0)


def _splash(q, k, v, seen, interpret=False):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    count, heads, dim = q.shape[1:]
    largest = _LARGEST[-(-dim // _LANES) * _LANES, q.dtype.itemsize]
    block_q, total_q = _blocks(count, largest)
    block_k, total_k = _blocks(k.shape[1], largest)
    compute = _part(block_k, _BLOCK_COMPUTE)
    # Cut out of the padded length, which these smaller blocks must divide.
    back_q = _part(total_q, _BLOCK_BACKWARD)
    kernel = splash.make_splash_mha(
        # No mask here: padding and missing keys are hidden by segment ids below.
        splash.MultiHeadMask([splash.FullMask((total_q, total_k))] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_k,
            block_kv_compute=compute,
            block_q_dkv=back_q,
            block_kv_dkv=block_k,
            block_kv_dkv_compute=compute,
            block_q_dq=back_q,
            block_kv_dq=block_k,
        ),
        # Inside shard_map the kernel sees the heads and tokens of one device: no further split.
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    # splash does not scale by 1 / sqrt(d).
    q = (q.astype(jnp.float32) * dim**-0.5).astype(q.dtype)
    arrays = [_by_head(a, n) for a, n in ((q, total_q), (k, total_k), (v, total_k))]
    if seen is None and total_k == k.shape[1]:
        out = jax.vmap(lambda *one: kernel(*one))(*arrays)
    else:
        # Queries and real keys are segment 1, padded keys segment 0. Padded queries are cut below.
        there = jnp.ones(k.shape[:2], bool) if seen is None else seen
        there = jnp.pad(there, ((0, 0), (0, total_k - k.shape[1]))).astype(jnp.int32)
        ones = jnp.ones((q.shape[0], total_q), jnp.int32)
        run = jax.vmap(lambda *one: kernel(*one[:3], segment_ids=splash.SegmentIds(*one[3:])))
        out = run(*arrays, ones, there)
    return jnp.swapaxes(out, 1, 2)[:, :count]


def _by_head(x: jax.Array, length: int) -> jax.Array:
    """``[B, N, K, d] -> [B, K, length, d]``, padded with zeros at the end."""
    return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, length - x.shape[1]), (0, 0)))


def _cudnn(q, k, v, lengths):
    count, keys = q.shape[1], k.shape[1]
    if keys % 2 and lengths is None:
        lengths = jnp.full((q.shape[0],), keys)
    # A padded key must be hidden, hence lengths; a padded query is cut off at the end.
    q, k, v = (jnp.pad(a, ((0, 0), (0, a.shape[1] % 2), (0, 0), (0, 0))) for a in (q, k, v))
    lengths = None if lengths is None else lengths.astype(jnp.int32)
    queries = None if lengths is None else jnp.full_like(lengths, count)
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        query_seq_lengths=queries,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return out[:, :count]


def _spread(local: Any, q: jax.Array, k: jax.Array, v: jax.Array, rows: jax.Array | None) -> Any:
    """``local(q, k, v, rows)`` on every device's share; ``rows`` ``[B, ...]`` or None."""
    if not needs_manual():
        return local(q, k, v, rows)
    names = ("batch", "tokens", "heads")
    batch, tokens, heads = map(split_axes, names, q.shape[:3])
    own_heads = q.shape[2] // ways(heads)
    # Keys of another length (text) are not split like the queries: every device needs them all.
    swap = tokens and q.shape[1] == k.shape[1] and own_heads % ways(tokens) == 0

    def run(q, k, v, rows):
        if not swap:
            return local(q, k, v, rows)
        # Every device receives all tokens of some of its heads, and hands the results back.
        q, k, v = (lax.all_to_all(a, tokens, 2, 1, tiled=True) for a in (q, k, v))
        return lax.all_to_all(local(q, k, v, rows), tokens, 1, 2, tiled=True)

    mine = P(batch, tokens, heads)
    others = mine if swap else P(batch, None, heads)
    # check_vma is off: fused kernels do not say over which mesh axes their result varies.
    return jax.shard_map(
        run, in_specs=(mine, others, others, P(batch)), out_specs=mine, check_vma=False
    )(q, k, v, rows)
