"""8-bit floating-point weights (FP8) of other code, as float32.

Such files hold ``layer.weight`` in E4M3 or E5M2 and mostly a scale beside it, by which the stored
values are multiplied. Three names are common:

    layer.scale_weight      ComfyUI's "scaled fp8", with a marker ``scaled_fp8``
    layer.weight_scale      compressed-tensors, ModelOpt, and ComfyUI's newer files
    layer.weight_scale_inv  DeepSeek's, one for each block of 128 x 128; despite the name a factor

A scale is one number, one for each output channel (axis 0), or one for each square block of a
matrix. Scales of activations and markers are left out: weights need none of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from vidlatent.errors import VidlatentError

__all__ = ["FP8_TYPES", "restore_fp8"]

# Names of the safetensors format.
FP8_TYPES = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_SCALES = ("weight_scale", "scale_weight", "weight_scale_inv")
_LEFT_OUT = ("scale_input", "input_scale", "scaled_fp8", "comfy_quant")
_BLOCKS = (128, 64, 32, 256)  # sides of blocks, the usual one first


def restore_fp8(tensors: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """FP8 tensors as float32, multiplied by their scales; the other tensors as they are.

    Args:
      tensors: by name; FP8 ones have the dtypes of ``ml_dtypes``.
      where: the file, for errors.

    Raises:
      VidlatentError: a scale does not fit its tensor, or belongs to one of another 8-bit kind.
    """
    if not any(_is_fp8(tensor) for tensor in tensors.values()):
        _refuse_other_kinds(tensors, where)
        return dict(tensors)
    restored, used = {}, set()
    for name, tensor in tensors.items():
        if not _is_fp8(tensor):
            continue
        values = tensor.astype(np.float32)
        if scale := _find_scale(name, tensors):
            values = values * _spread(tensors[scale], values.shape, f"{where}: {scale}")
            used.add(scale)
        restored[name] = values
    _refuse_other_kinds({k: v for k, v in tensors.items() if k not in used}, where)
    ends = {name: name.rpartition(".")[2] for name in tensors}
    return {
        name: restored.get(name, tensor)
        for name, tensor in tensors.items()
        if name not in used and ends[name] not in _LEFT_OUT
    }


def _is_fp8(tensor: np.ndarray) -> bool:
    return tensor.dtype in FP8_TYPES.values()


def _find_scale(name: str, tensors: Mapping[str, np.ndarray]) -> str:
    """The name of a tensor's scale; '' if it has none."""
    layer, _, last = name.rpartition(".")
    start = f"{layer}." if layer else ""
    # ``weight`` in the names of scales is the tensor's own name.
    names = [start + scale.replace("weight", last) for scale in _SCALES]
    found = [scale for scale in names if scale in tensors]
    return found[0] if found else ""


def _refuse_other_kinds(tensors: Mapping[str, np.ndarray], where: str) -> None:
    """Raise if whole numbers come with a scale: read as they are they would be wrong weights."""
    for name, tensor in tensors.items():
        if tensor.dtype.kind in "iu" and (scale := _find_scale(name, tensors)):
            raise VidlatentError(
                f"{where}: {name} is {tensor.dtype} with the scale {scale}, a quantised weight; "
                "only FP8 (F8_E4M3, F8_E5M2) and unquantised weights are read."
            )


def _spread(scale: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    """A scale in a shape that multiplies a tensor of ``shape``."""
    scale = scale.astype(np.float32)
    if not np.isfinite(scale).all():
        raise VidlatentError(f"{what} is not finite: fetch the file again.")
    if scale.size == 1:
        return scale.reshape(())
    # [out] or [out, 1, ...]: one for each output channel.
    if shape and scale.size == scale.shape[0] == shape[0]:
        return scale.reshape(-1, *(1,) * (len(shape) - 1))
    if scale.ndim == len(shape) == 2:
        for side in _BLOCKS:
            if scale.shape == (-(-shape[0] // side), -(-shape[1] // side)):
                rows = np.repeat(scale, side, axis=0)[: shape[0]]
                return np.repeat(rows, side, axis=1)[:, : shape[1]]
    raise VidlatentError(
        f"{what} of shape {list(scale.shape)} does not fit a weight of shape {list(shape)}: one "
        "number, one for each output channel, or one for each square block is read."
    )
