"""Pure functions on parameters: image weights into the video model, a new innermost stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from vidlatent.typing import VidlatentError

__all__ = ["inflate", "shortcut_stage"]


def inflate(
    params: Mapping[str, Any], target_shapes: Mapping[str, Any], mode: str = "tail"
) -> dict[str, Any]:
    """Image-model parameters as video-model parameters (FSVideo 2.1).

    Args:
      params: nested dict with temporal kernels of one tap.
      target_shapes: the video model's parameter shapes.
      mode: ``'tail'`` puts the kernel into the last tap (the present frame), zeros elsewhere;
        ``'mean'`` spreads it evenly. Under both, frame 0 and static clips are the image model's.

    Raises:
      VidlatentError: the two trees or shapes do not correspond.
    """
    if mode not in ("tail", "mean"):
        raise VidlatentError(f"inflation mode {mode!r}: use 'tail' or 'mean'.")

    def walk(source: Any, target: Any, path: str) -> Any:
        if isinstance(target, Mapping):
            if not isinstance(source, Mapping) or set(source) != set(target):
                raise VidlatentError(f"image and video parameters differ at {path or 'the top'}.")
            return {key: walk(source[key], target[key], f"{path}/{key}") for key in target}
        if tuple(source.shape) == tuple(target.shape):
            return source
        taps = target.shape[0]
        if len(target.shape) != 5 or tuple(source.shape) != (1, *target.shape[1:]):
            raise VidlatentError(
                f"{path}: image shape {tuple(source.shape)} does not inflate to "
                f"{tuple(target.shape)}."
            )
        if mode == "mean":
            return jnp.repeat(jnp.asarray(source), taps, axis=0) / taps
        return jnp.pad(jnp.asarray(source), ((taps - 1, 0), *((0, 0),) * 4))

    return walk(params, target_shapes, "")


def shortcut_stage(params: Mapping[str, Any], stage: int) -> dict[str, Any]:
    """Make the innermost ``stage`` start as a pure shortcut.

    Its blocks become identities (norms at the end of each branch set to 0), and the main paths of
    the operations around it, of the encoder's last and of the decoder's first convolution are set
    to 0. The model then averages into the new latent and duplicates out of it, which leaves the
    pretrained outer stages undisturbed.

    Args:
      params: the whole model's parameters, with affine norms.
      stage: index of the innermost stage, 1 or more.
    """
    block = rf"(encoder/down|decoder/up)_blocks_{stage}_\d+/.*norm(_out)?/(scale|bias)"
    # The down operation is the last entry of the stage outside it; the up operation the first.
    into = rf"encoder/down_blocks_{stage - 1}_\d+/conv/(kernel|bias)"
    out_of = rf"decoder/up_blocks_{stage - 1}_0/conv/(kernel|bias)"
    ends = r"(encoder/conv_out|decoder/conv_in)/(kernel|bias)"
    cleared = re.compile(f"{block}|{into}|{out_of}|{ends}")
    hits = 0

    def walk(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        nonlocal hits
        result = {}
        for key, value in tree.items():
            path = prefix + key
            if isinstance(value, Mapping):
                result[key] = walk(value, path + "/")
            elif cleared.fullmatch(path):
                hits += bool(re.fullmatch(block, path))
                result[key] = jnp.zeros_like(value)
            else:
                result[key] = value
        return result

    result = walk(params, "")
    if not hits:
        raise VidlatentError(f"stage {stage} has no affine norms to clear: check the index.")
    return result
