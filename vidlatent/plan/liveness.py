"""Peak memory of a traced program by its order alone: nothing is compiled.

Equations run one after another; a value is held from the equation that makes it to the last one
that reads it. A compiler fuses operations and reuses buffers within them, so that it needs less,
and pads and tiles, so that it needs more: an estimate, good for comparing two forms of a program.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from jax.extend import core

__all__ = ["peak_bytes"]


def peak_bytes(jaxpr: Any) -> int:
    """Bytes that are held at most at once beside the inputs of a (closed) jaxpr.

    Of a ``cond`` the branch with the larger peak counts; of a loop one turn, whose states are
    there before and after it.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    last, given = _find_last_uses(jaxpr), {*jaxpr.invars, *jaxpr.constvars}
    held, most = 0, 0
    for number, equation in enumerate(jaxpr.eqns):
        made = sum(_size(v) for v in equation.outvars if v in last)
        most = max(most, held + made + _inside(equation))
        held += made
        freed = {v for v in _variables(equation.invars) if last[v] == number}
        freed |= {v for v in equation.outvars if v in last and last[v] == number}
        held -= sum(_size(v) for v in freed - given)
    return most


def _find_last_uses(jaxpr: Any) -> dict[Any, int]:
    """Variable -> number of the last equation that reads it; results live to the end."""
    last: dict[Any, int] = {}
    for number, equation in enumerate(jaxpr.eqns):
        last.update(dict.fromkeys(_variables(equation.invars), number))
    return last | dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns))


def _inside(equation: Any) -> int:
    """Bytes that an equation holds while it runs beside its inputs and results."""
    inner = list(_inner_jaxprs(equation.params))
    if not inner:
        return 0
    # A loop's turn has its own copy of the state and of what it is given; the results of the last
    # one are those of the equation.
    loops = equation.primitive.name in ("scan", "while")
    states = sum(_size(v) for v in inner[-1].outvars) if loops else 0
    return states + max(map(peak_bytes, inner))


def _inner_jaxprs(params: dict[str, Any]) -> Iterable[Any]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _variables(items: Iterable[Any]) -> list[Any]:
    return [item for item in items if isinstance(item, core.Var)]


def _size(item: Any) -> int:
    aval = item.aval
    if not hasattr(aval, "shape") or not hasattr(aval.dtype, "itemsize"):
        return 0
    return math.prod(aval.shape) * aval.dtype.itemsize
