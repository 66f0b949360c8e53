"""Low-rank adapters (LoRA, Hu et al. 2021): a kernel ``W`` becomes ``W + scale A B``.

``W`` stays as it is and ``A`` and ``B`` are trained: a small share of the parameters, of the
optimizer's moments and of the averaged parameters. ``B`` starts at 0, so that the first step is
exactly that of ``W``. Adapters are a tree of their own, with the paths of their kernels::

    {"blocks": {"ffn": {"fc1": {"kernel": {"lora_a": [L, I, r], "lora_b": [L, r, O]}}}}}

The axes of a kernel mean what ``parallel.sharding`` says: layers of a stack come first and have
factors each; the window of a convolution belongs to its inputs, as in PEFT.

Beside adapters some parameters can be trained in full, and of others some rows, such as those of a
few tokens in an embedding (VideoAlign trains its vision tower, head and three tokens so). Their
leaves are what is added to them, so that the weights themselves stay as they are, too::

    {"head": {"kernel": {"lora_full": [I, O]}}, "embedding": {"kernel": {"lora_rows": [rows, O]}}}
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.parallel.paths import match_path, path_name
from vidlatent.parallel.sharding import (
    HEADS,
    WHOLE,
    constrain_param,
    shardings,
    with_shardings,
)

__all__ = ["Lora", "describe_adapters", "init_adapters", "merge_adapters", "merge_kernel"]

_A, _B, _ROWS = "lora_a", "lora_b", "lora_rows"
_KEY = "config.optim.lora"


class Lora(NamedTuple):
    """The options of adapters, as ``config.optim.lora`` has them.

    Attributes:
      rank: of ``A B``; a kernel with fewer inputs or outputs has a rank of so many.
      alpha: the factor times ``rank``; 0 stands for ``rank``, a factor of 1.
      targets: path expression of the adapted kernels.
      full: path expression of parameters that are trained in full, kernels or not; they get no
        adapter.
      rows: (path expression, row numbers) pairs of parameters of which these rows are trained, and
        nothing else.
      dropout: share of an adapter's inputs that are left out in training.
    """

    rank: int
    alpha: float
    targets: str
    full: str = ""
    rows: tuple[tuple[str, tuple[int, ...]], ...] = ()
    dropout: float = 0.0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Lora:
        """From ``config.optim.lora``, or from JSON, which has lists and may be older."""
        rows = tuple((pattern, tuple(numbers)) for pattern, numbers in options.get("rows", ()))
        return cls(**{**options, "rows": rows})

    @property
    def scale(self) -> float:
        """The factor of ``A B``."""
        return (self.alpha or self.rank) / self.rank


def init_adapters(key: jax.Array, params: Any, lora: Lora) -> dict[str, Any]:
    """Adapters at step 0, float32: ``A`` uniform within ``1 / sqrt(inputs)``, ``B`` 0.

    The bounds are PEFT's. What a kernel draws depends on its path, not on the other targets. What
    is added to parameters and rows that are trained in full is 0.

    Args:
      key: of the draw.
      params: the parameters or their shapes; values are not read.
      lora: the options.

    Raises:
      VidlatentError: ``targets`` matches no kernel, ``full`` or an expression of ``rows`` no
        parameter, or a row is not there.
    """
    adapters = _init_added(params, lora)
    # Before any kernel is drawn: what is trained in full has no adapter.
    targets = [pair for pair in _find_targets(params, lora) if not _is_added(pair[0], lora)]
    for name, leaf in targets:
        axes = _Axes.of(name, leaf.shape)
        rank = min(lora.rank, math.prod(axes.fan_in), math.prod(axes.outputs))
        bound = 1.0 / math.sqrt(math.prod(axes.fan_in))
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        shape = (*axes.stack, *axes.fan_in, rank)
        inner = _enter(adapters, name)
        inner[_A] = jax.random.uniform(own, shape, jnp.float32, -bound, bound)
        inner[_B] = jnp.zeros((*axes.stack, rank, *axes.outputs), jnp.float32)
    if not targets:
        last = ", ".join([name for name, _ in _list_kernels(params)][-3:])
        raise VidlatentError(
            f"{_KEY}.targets {lora.targets!r} matches no kernel of this model that is not trained "
            f"in full; its last ones are {last}."
        )
    return adapters


def _enter(tree: dict[str, Any], name: str) -> dict[str, Any]:
    for part in name.split("/"):
        tree = tree.setdefault(part, {})
    return tree


def _init_added(params: Any, lora: Lora) -> dict[str, Any]:
    """What is added to parameters and rows that are trained in full: zeros."""
    added: dict[str, Any] = {}
    shapes = {
        path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for pattern, rows in ((lora.full, None), *lora.rows):
        found = [name for name in shapes if match_path(pattern, name, f"{_KEY}.full and rows")]
        if pattern and not found:
            raise VidlatentError(f"{_KEY}: {pattern!r} of full or rows matches no parameter.")
        for name in found:
            shape = shapes[name]
            if rows is None:
                _enter(added, name)[WHOLE] = jnp.zeros(shape, jnp.float32)
            elif max(rows, default=-1) >= shape[0] or len(set(rows)) < len(rows) or not rows:
                raise VidlatentError(
                    f"{_KEY}.rows names the rows {rows} of {name}, which has {shape[0]}: give "
                    "numbers from 0 on, each once."
                )
            else:
                _enter(added, name)[_ROWS] = jnp.zeros((len(rows), *shape[1:]), jnp.float32)
    return added


def _is_added(name: str, lora: Lora) -> bool:
    return any(match_path(pattern, name) for pattern in (lora.full, *(p for p, _ in lora.rows)))


def describe_adapters(abstract: Any, lora: Lora) -> Any:
    """``init_adapters`` as ShapeDtypeStructs, on the mesh of ``abstract`` if that has one."""
    found = jax.eval_shape(lambda: init_adapters(jax.random.key(0), abstract, lora))
    places = [leaf.sharding for leaf in jax.tree.leaves(abstract)]
    if places and isinstance(places[0], jax.sharding.NamedSharding):
        return with_shardings(found, shardings(found, places[0].mesh))
    return found


def merge_adapters(params: Any, adapters: Any, lora: Lora, key: jax.Array | None = None) -> Any:
    """The parameters with ``W + scale A B`` for every adapted kernel, each in its dtype.

    To others is added what is trained of them in full.

    Differentiable in both, and usable inside a sharded step: merged kernels lie where their ``W``
    does.

    Args:
      key: of the dropout in training. Adapters then lie beside their kernels as ``lora``, where
        ``layers.dense.Linear`` reads them: what they see cannot be merged. None: without dropout.

    Raises:
      VidlatentError: there is an adapter of a kernel that the parameters do not have.
    """
    return _merge(params, adapters, lora, "", key)


def _merge(params: Any, adapters: Any, lora: Lora, path: str, key: jax.Array | None) -> Any:
    if _A in adapters:
        merged = merge_kernel(
            params, adapters[_A], adapters[_B], lora.scale, _Axes.of(path, params.shape).subscripts
        )
        return constrain_param(merged, path)
    if WHOLE in adapters:
        return constrain_param(_add(params, adapters[WHOLE]), path)
    if _ROWS in adapters:
        rows = jnp.asarray(_find_rows(path, lora.rows))
        merged = params.at[rows].set(_add(params[rows], adapters[_ROWS]))
        return constrain_param(merged, path)
    if unknown := [name for name in adapters if name not in params]:
        where = f"{path}/{unknown[0]}" if path else unknown[0]
        raise VidlatentError(
            f"there is an adapter of {where}, a parameter that this model does not have: name the "
            "model that was adapted."
        )
    inner = {}
    for name, tree in adapters.items():
        where = f"{path}/{name}" if path else name
        if key is not None and _A in tree:
            inner["lora"] = _lay_beside(params[name], tree, lora, where, key)
        else:
            inner[name] = _merge(params[name], tree, lora, where, key)
    return {**params, **inner}


def _lay_beside(
    kernel: Any, adapter: Mapping[str, Any], lora: Lora, path: str, key: jax.Array
) -> dict[str, jax.Array]:
    """What ``layers.dense.Linear`` reads beside a kernel; each layer of a stack has its own key."""
    stack = _Axes.of(path, kernel.shape).stack
    own = jax.random.fold_in(key, zlib.crc32(path.encode()))
    keys = jax.random.key_data(jax.random.split(own, math.prod(stack)))
    return {
        "a": adapter[_A],
        "b": lora.scale * adapter[_B],
        "key": keys.reshape(*stack, *keys.shape[1:]),
        "keep": jnp.full(stack, 1.0 - lora.dropout, jnp.float32),
    }


def _add(params: jax.Array, added: jax.Array) -> jax.Array:
    params = jnp.asarray(params)
    wide = jnp.promote_types(params.dtype, jnp.float32)
    return (params.astype(wide) + added).astype(params.dtype)


def _find_rows(path: str, rows: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[int, ...]:
    return next(numbers for pattern, numbers in rows if match_path(pattern, path))


def merge_kernel(
    kernel: Any, a: Any, b: Any, scale: float, subscripts: str = "ir,ro->io"
) -> jax.Array:
    """``kernel + scale a b``, summed in at least float32, in the dtype of ``kernel``.

    Args:
      kernel: ``[I, O]``.
      a, b: ``[I, r]`` and ``[r, O]``. For torch's ``weight [O, I]`` give PEFT's ``lora_B`` as
        ``a`` and ``lora_A`` as ``b``.
      scale: PEFT's ``alpha / r``.
      subscripts: of the product, for kernels with more axes.
    """
    kernel = jnp.asarray(kernel)
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    # Products of float32 would be rounded to bfloat16 on TPUs otherwise.
    product = jnp.einsum(
        subscripts, jnp.asarray(a, wide), jnp.asarray(b, wide), precision=lax.Precision.HIGHEST
    )
    return (kernel.astype(wide) + scale * product).astype(kernel.dtype)


class _Axes(NamedTuple):
    """The axes of a kernel, by what they mean: layers, window and inputs, outputs."""

    stack: tuple[int, ...]
    fan_in: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, path: str, shape: tuple[int, ...]) -> _Axes:
        outputs = 2 if match_path(HEADS, path) else 1
        # Five axes are a convolution, wherever it is; a sixth in front is a stack of them.
        fan_in = 4 if len(shape) - outputs >= 4 else 1
        stack = len(shape) - fan_in - outputs
        return cls(shape[:stack], shape[stack : stack + fan_in], shape[stack + fan_in :])

    @property
    def subscripts(self) -> str:
        """Of ``einsum`` for ``A B``."""
        stack, fan_in, outputs = (
            "".join(letters[: len(axes)])
            for letters, axes in zip(("stuv", "ijkl", "opq"), self, strict=True)
        )
        return f"{stack}{fan_in}r,{stack}r{outputs}->{stack}{fan_in}{outputs}"


def _list_kernels(params: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if (name := path_name(path)).split("/")[-1] == "kernel":
            yield name, leaf


def _find_targets(params: Mapping[str, Any], lora: Lora) -> list[tuple[str, Any]]:
    return [
        (name, leaf)
        for name, leaf in _list_kernels(params)
        if match_path(lora.targets, name, f"{_KEY}.targets")
    ]
