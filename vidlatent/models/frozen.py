"""Frozen networks: what a training step computes with and does not train.

A generator's tokenizer, the networks of perceptual losses, later teachers and rewards. They are
arguments of the compiled step. Each is split over the mesh by the rules that trained parameters
follow (``parallel.sharding``), so that no device holds a whole copy of a large one, and read
straight to its place: from a weights file, or from the workdir of a run of ours.

In which type they are kept, a network declares by the types of its abstract parameters:

* a tokenizer: what its layers cast to the compute type before they use it, kernels above all, is
  kept in that type, which changes no number (``hold_in``). Norms, and the layers beside the latent,
  which compute in float32 since latents are stored, stay float32;
* networks of loss terms (LPIPS, DINOv2): float32. They compare features that differ by little, and
  their terms choose the type to compute in themselves (``config.loss.<term>.dtype``);
* stored arrays, such as the states of an empty text: as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Var
from jax.sharding import Mesh

from vidlatent.parallel.sharding import shardings, with_shardings

__all__ = ["FrozenNetwork", "describe_frozen", "hold_in", "load_frozen"]


class FrozenNetwork(NamedTuple):
    """A network that a task computes with and does not train.

    Attributes:
      abstract: its parameters as ShapeDtypeStructs, in the types that they are kept in.
      load: ``load(abstract) -> parameters``, given the same with shardings. Raises
        ``VidlatentError`` where the weights are missing or do not fit.
    """

    abstract: Any
    load: Callable[[Any], Any]


def describe_frozen(networks: Mapping[str, FrozenNetwork], mesh: Mesh) -> dict[str, Any]:
    """Name -> parameters as ShapeDtypeStructs with their shardings on ``mesh``."""
    found = {name: network.abstract for name, network in networks.items()}
    return with_shardings(found, shardings(found, mesh))


def load_frozen(networks: Mapping[str, FrozenNetwork], mesh: Mesh) -> dict[str, Any]:
    """Name -> parameters on the devices of ``mesh``, as ``describe_frozen`` says.

    Raises:
      VidlatentError: weights are missing or do not fit.
    """
    wanted = describe_frozen(networks, mesh)
    return {name: networks[name].load(abstract) for name, abstract in wanted.items()}


def hold_in(dtype: Any, abstract: Any, compute: Callable[[Any], Any]) -> Any:
    """``abstract`` with ``dtype`` for the parameters that ``compute`` casts to it before all else.

    Keeping those in ``dtype`` changes no result. What ``compute`` does not use keeps its type.

    Args:
      dtype: to keep parameters in.
      abstract: parameters as ShapeDtypeStructs.
      compute: function of the parameters, as the step uses them; it is traced, not run.
    """
    leaves, structure = jax.tree.flatten(abstract)
    if all(leaf.dtype == jnp.dtype(dtype) for leaf in leaves):
        return abstract
    jaxpr = jax.make_jaxpr(compute)(abstract).jaxpr
    uses: dict[Var, list[Any]] = {}
    _collect_uses(jaxpr, {}, uses)

    def hold(leaf, variable):
        found = uses.get(variable, [])
        cast = bool(found) and all(use == jnp.dtype(dtype) for use in found)
        return jax.ShapeDtypeStruct(leaf.shape, dtype if cast else leaf.dtype)

    return jax.tree.unflatten(structure, list(map(hold, leaves, jaxpr.invars)))


def _collect_uses(jaxpr: Jaxpr, names: Mapping[Var, Var], uses: dict[Var, list[Any]]) -> None:
    """Notes under each variable what it is cast to, or None for another use.

    ``names`` are the variables of an inner program that stand for variables of the outer one; uses
    are noted under the outermost.
    """
    for eqn in jaxpr.eqns:
        inner = [p.jaxpr if hasattr(p, "jaxpr") else p for p in eqn.params.values()]
        inner = [p for p in inner if isinstance(p, Jaxpr)]
        same = len(inner) == 1 and len(inner[0].invars) == len(eqn.invars)
        if same:  # a call, a loop or a recomputed block: look at what it does with its arguments
            pairs = zip(inner[0].invars, eqn.invars, strict=True)
            known = {v: names.get(o, o) for v, o in pairs if isinstance(o, Var)}
            _collect_uses(inner[0], known, uses)
            continue
        cast = eqn.params["new_dtype"] if eqn.primitive.name == "convert_element_type" else None
        for variable in eqn.invars:
            if isinstance(variable, Var):
                uses.setdefault(names.get(variable, variable), []).append(cast)
    for variable in jaxpr.outvars:
        if isinstance(variable, Var):
            uses.setdefault(names.get(variable, variable), []).append(None)
