"""Operations of a traced program: those of its matrix products and convolutions.

They are counted before compilation. The body of a loop counts as often as it runs, a Pallas kernel
as its cost estimate says, and products with padding or with the zeros of a dilated input do not
count. The sum is over all devices.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jax.extend import core

__all__ = ["count_flops"]


def count_flops(jaxpr: Any) -> int:
    """Multiplications and additions of a (closed) jaxpr; a multiply-add counts as 2.

    Of a ``cond`` the most expensive branch counts; a loop whose length depends on data counts once.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _count_product(equation)
    if name == "conv_general_dilated":
        return _count_convolution(equation)
    if name == "pallas_call":
        if params["cost_estimate"] is not None:
            return int(params["cost_estimate"].flops)
        # A kernel without an estimate: its body runs once for each cell of the grid.
        return count_flops(params["jaxpr"]) * math.prod(params["grid_mapping"].grid)
    inner = [count_flops(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if not inner:
        return 0
    if name == "cond":
        return max(inner)
    if name == "scan":
        return sum(inner) * params["length"]
    if name == "shard_map":
        # The body is one device's share along the manual axes. Other axes are still whole here,
        # since the compiler splits them later.
        axes = next(value for key, value in params.items() if key.endswith("manual_axes"))
        return sum(inner) * math.prod(params["mesh"].shape[axis] for axis in axes)
    return sum(inner)


def _inner_jaxprs(params: dict[str, Any]):
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (core.Jaxpr, core.ClosedJaxpr)):
                yield item


def _count_product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[axis] for axis in contracted)
    # Each element of the result is a sum of `depth` products.
    return 2 * depth * math.prod(equation.outvars[0].aval.shape)


def _count_convolution(equation: Any) -> int:
    params = equation.params
    left, right = (v.aval.shape for v in equation.invars)
    out = equation.outvars[0].aval.shape
    numbers = params["dimension_numbers"]
    products = 1
    for axis, (low, _) in enumerate(params["padding"]):
        # Axes are independent, so their pairs of output and tap multiply.
        products *= _count_pairs(
            left[numbers.lhs_spec[axis + 2]],
            right[numbers.rhs_spec[axis + 2]],
            out[numbers.out_spec[axis + 2]],
            params["window_strides"][axis],
            low,
            params["lhs_dilation"][axis],
            params["rhs_dilation"][axis],
        )
    batch, features = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
    # The kernel's inputs are those of one group, so grouped convolutions are counted right.
    return 2 * batch * features * right[numbers.rhs_spec[1]] * products


def _count_pairs(
    size: int, taps: int, outputs: int, stride: int, low: int, spread: int, reach: int
) -> int:
    """Along one axis, the pairs of output and tap that read an input value, not a zero.

    Args:
      size: of the input.
      taps: of the kernel.
      outputs: size of the output.
      stride: of the window.
      low: padding before the input.
      spread: dilation of the input, above 1 in a transposed convolution.
      reach: dilation of the kernel.
    """
    # [outputs, taps]: position in the dilated input; real values lie at multiples of `spread`.
    place = np.arange(outputs)[:, None] * stride + np.arange(taps)[None] * reach - low
    real = (place >= 0) & (place <= (size - 1) * spread) & (place % spread == 0)
    return int(real.sum())
