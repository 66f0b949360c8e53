"""Frozen networks: what a training step uses but does not train.

Examples are a generator's tokenizer and the networks of perceptual losses. Their parameters are
arguments of the compiled step. They are sharded by the same rules as trained parameters
(``parallel.sharding``), so that no device holds a whole copy of a large network, and are read
directly onto their devices, from a weights file or from the workdir of a run.

A network declares the dtypes it is kept in by those of its abstract parameters:

* Tokenizer: parameters that layers cast to the compute dtype before any use, mostly kernels, are
  kept in that dtype, which changes no result (``hold_in``). Norms stay float32, and so do the
  layers next to the latent, which compute in float32 because latents are stored.
* Networks of loss terms (LPIPS, DINOv2): float32, since they compare features that differ little.
  The terms choose the compute dtype themselves (``config.loss.<term>.dtype``).
* Stored arrays, such as the states of an empty text: the dtype they are stored in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Var
from jax.sharding import Mesh

from vidlatent.parallel.sharding import shardings, with_shardings
from vidlatent.weights.files import load_params

__all__ = [
    "FrozenNetwork",
    "describe_frozen",
    "find_used",
    "freeze_run",
    "hold_in",
    "load_frozen",
]


class FrozenNetwork(NamedTuple):
    """A network that a task uses but does not train.

    Attributes:
      abstract: its parameters as ShapeDtypeStructs, in the dtypes they are kept in.
      load: ``load(abstract) -> parameters``; its argument is ``abstract`` with shardings. Raises
        ``VidlatentError`` if the weights are missing or do not fit.
    """

    abstract: Any
    load: Callable[[Any], Any]


def freeze_run(
    path: str | os.PathLike[str], abstract: Any, family: str, step: int = -1
) -> FrozenNetwork:
    """The averaged parameters of a run as a frozen network.

    Args:
      path: workdir.
      abstract: the parameters as ShapeDtypeStructs, in the dtypes they are kept in.
      family: name of its model.
      step: checkpoint; below 0 the newest sound one.
    """

    def load(wanted):
        return load_params(path, wanted, family=family, step=None if step < 0 else step)

    return FrozenNetwork(abstract, load)


def describe_frozen(networks: Mapping[str, FrozenNetwork], mesh: Mesh) -> dict[str, Any]:
    """Name -> parameters as ShapeDtypeStructs with their shardings on ``mesh``."""
    found = {name: network.abstract for name, network in networks.items()}
    return with_shardings(found, shardings(found, mesh))


def load_frozen(networks: Mapping[str, FrozenNetwork], mesh: Mesh) -> dict[str, Any]:
    """Name -> parameters on the devices of ``mesh``, as described by ``describe_frozen``.

    Raises:
      VidlatentError: weights are missing or do not fit.
    """
    wanted = describe_frozen(networks, mesh)
    return {name: networks[name].load(abstract) for name, abstract in wanted.items()}


def hold_in(dtype: Any, abstract: Any, compute: Callable[[Any], Any]) -> Any:
    """``abstract`` with ``dtype`` for the parameters that ``compute`` only uses cast to ``dtype``.

    Keeping those in ``dtype`` changes no result. Parameters that ``compute`` does not use keep
    their dtype.

    Args:
      dtype: the dtype to keep parameters in.
      abstract: parameters as ShapeDtypeStructs.
      compute: function of the parameters, as the step uses them; it is traced, not run.
    """
    leaves, structure = jax.tree.flatten(abstract)
    if all(leaf.dtype == jnp.dtype(dtype) for leaf in leaves):
        return abstract

    def hold(leaf, found):
        cast = bool(found) and all(use == jnp.dtype(dtype) for use in found)
        return jax.ShapeDtypeStruct(leaf.shape, dtype if cast else leaf.dtype)

    return jax.tree.unflatten(structure, list(map(hold, leaves, _find_uses(abstract, compute))))


def find_used(abstract: Any, compute: Callable[[Any], Any]) -> Any:
    """For each parameter, whether ``compute`` uses it; arguments as of ``hold_in``."""
    uses = _find_uses(abstract, compute)
    return jax.tree.unflatten(jax.tree.structure(abstract), list(map(bool, uses)))


def _find_uses(abstract: Any, compute: Callable[[Any], Any]) -> list[list[Any]]:
    """For each leaf, the uses that ``_collect_uses`` finds."""
    # The traced program says how each parameter is used, whatever layers it passes through.
    jaxpr = jax.make_jaxpr(compute)(abstract).jaxpr
    uses: dict[Var, list[Any]] = {}
    _collect_uses(jaxpr, {}, uses)
    return [uses.get(variable, []) for variable in jaxpr.invars]


def _collect_uses(jaxpr: Jaxpr, names: Mapping[Var, Var], uses: dict[Var, list[Any]]) -> None:
    """Add to ``uses``, for each variable and each use, the dtype it is cast to, or None.

    None stands for any use that is not a cast. ``names`` maps variables of an inner program to the
    outermost variables that are passed in for them; ``uses`` is keyed by the outermost ones.
    """
    for eqn in jaxpr.eqns:
        # Programs inside an equation are given closed (with constants) or open.
        inner = [p.jaxpr if hasattr(p, "jaxpr") else p for p in eqn.params.values()]
        inner = [p for p in inner if isinstance(p, Jaxpr)]
        same = len(inner) == 1 and len(inner[0].invars) == len(eqn.invars)
        if same:  # a call, a loop or a remat block: look inside at what happens to its arguments
            pairs = zip(inner[0].invars, eqn.invars, strict=True)
            known = {v: names.get(o, o) for v, o in pairs if isinstance(o, Var)}
            _collect_uses(inner[0], known, uses)
            continue
        cast = eqn.params["new_dtype"] if eqn.primitive.name == "convert_element_type" else None
        for variable in eqn.invars:
            if isinstance(variable, Var):
                uses.setdefault(names.get(variable, variable), []).append(cast)
    # What is returned is used as it is, without a cast.
    for variable in jaxpr.outvars:
        if isinstance(variable, Var):
            uses.setdefault(names.get(variable, variable), []).append(None)
