"""Low-rank adapters (LoRA, Hu et al. 2021): a kernel ``W`` becomes ``W + scale A B``.

``W`` stays as it is and ``A`` and ``B`` are trained: a small share of the parameters, of the
optimizer's moments and of the averaged parameters. ``B`` starts at 0, so that the first step is
exactly that of ``W``. Adapters are a tree of their own, with the paths of their kernels::

    {"blocks": {"ffn": {"fc1": {"kernel": {"lora_a": [L, I, r], "lora_b": [L, r, O]}}}}}

The axes of a kernel mean what ``parallel.sharding`` says: layers of a stack come first and have
factors each; the window of a convolution belongs to its inputs, as in PEFT.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.parallel.paths import match_path, path_name
from vidlatent.parallel.sharding import HEADS, constrain_param, shardings, with_shardings

__all__ = ["Lora", "describe_adapters", "init_adapters", "merge_adapters", "merge_kernel"]

_A, _B = "lora_a", "lora_b"
_KEY = "config.optim.lora.targets"


class Lora(NamedTuple):
    """The options of adapters, as ``config.optim.lora`` has them.

    Attributes:
      rank: of ``A B``; a kernel with fewer inputs or outputs has a rank of so many.
      alpha: the factor times ``rank``; 0 stands for ``rank``, a factor of 1.
      targets: path expression of the adapted kernels.
    """

    rank: int
    alpha: float
    targets: str

    @property
    def scale(self) -> float:
        """The factor of ``A B``."""
        return (self.alpha or self.rank) / self.rank


def init_adapters(key: jax.Array, params: Any, lora: Lora) -> dict[str, Any]:
    """Adapters at step 0, float32: ``A`` uniform within ``1 / sqrt(inputs)``, ``B`` 0.

    The bounds are PEFT's. What a kernel draws depends on its path, not on the other targets.

    Args:
      key: of the draw.
      params: the parameters or their shapes; values are not read.
      lora: the options.

    Raises:
      VidlatentError: ``targets`` matches no kernel.
    """
    adapters: dict[str, Any] = {}
    for name, leaf in _find_targets(params, lora):
        axes = _Axes.of(name, leaf.shape)
        rank = min(lora.rank, math.prod(axes.fan_in), math.prod(axes.outputs))
        bound = 1.0 / math.sqrt(math.prod(axes.fan_in))
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        shape = (*axes.stack, *axes.fan_in, rank)
        inner = adapters
        for part in name.split("/"):
            inner = inner.setdefault(part, {})
        inner[_A] = jax.random.uniform(own, shape, jnp.float32, -bound, bound)
        inner[_B] = jnp.zeros((*axes.stack, rank, *axes.outputs), jnp.float32)
    if not adapters:
        raise VidlatentError(
            f"{_KEY} {lora.targets!r} matches no kernel of this model; its last ones are "
            f"{', '.join([name for name, _ in _list_kernels(params)][-3:])}."
        )
    return adapters


def describe_adapters(abstract: Any, lora: Lora) -> Any:
    """``init_adapters`` as ShapeDtypeStructs, on the mesh of ``abstract`` if that has one."""
    found = jax.eval_shape(lambda: init_adapters(jax.random.key(0), abstract, lora))
    places = [leaf.sharding for leaf in jax.tree.leaves(abstract)]
    if places and isinstance(places[0], jax.sharding.NamedSharding):
        return with_shardings(found, shardings(found, places[0].mesh))
    return found


def merge_adapters(params: Any, adapters: Any, lora: Lora) -> Any:
    """The parameters with ``W + scale A B`` for every adapted kernel, each in its dtype.

    Differentiable in both, and usable inside a sharded step: merged kernels lie where their ``W``
    does.

    Raises:
      VidlatentError: there is an adapter of a kernel that the parameters do not have.
    """
    return _merge(params, adapters, lora.scale, "")


def _merge(params: Any, adapters: Any, scale: float, path: str) -> Any:
    if _A in adapters:
        merged = merge_kernel(
            params, adapters[_A], adapters[_B], scale, _Axes.of(path, params.shape).subscripts
        )
        return constrain_param(merged, path)
    if unknown := [name for name in adapters if name not in params]:
        where = f"{path}/{unknown[0]}" if path else unknown[0]
        raise VidlatentError(
            f"there is an adapter of {where}, a parameter that this model does not have: name the "
            "model that was adapted."
        )
    inner = {
        name: _merge(params[name], tree, scale, f"{path}/{name}" if path else name)
        for name, tree in adapters.items()
    }
    return {**params, **inner}


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
        (name, leaf) for name, leaf in _list_kernels(params) if match_path(lora.targets, name, _KEY)
    ]
