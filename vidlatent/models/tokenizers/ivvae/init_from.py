"""A video model that starts as an image VAE in each of its branches (IV-VAE, supplement 2.2).

The paper does not say how the weights between the branches start. Here each branch starts as the
image VAE (weights across branches zero, biases and norms copied), so three equalities are exact:

1. For an image both halves of the latent are the image VAE's, and so is the reconstruction.
2. For a video, half A of a group's latent is the image latent of the group's first frame; half B
   that of its last frame (``keep=1``) or of its first (``keep=0``).
3. The first decoded frame of a group is the image reconstruction of that frame, the others that of
   the frame half B kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from vidlatent.errors import VidlatentError
from vidlatent.models.tokenizers.ivvae.model import IVVAE
from vidlatent.models.tokenizers.ivvae.variants import (
    VARIANTS,
    Variant,
    list_decoder_ops,
    list_encoder_ops,
)

__all__ = ["causal_from_image", "inflate", "model_of_params", "video_from_image"]

_HALF = {"conv_2d": 0, "conv_3d_key": 0, "conv_3d": 1}
_COPIED = {
    "Attention_2d": "attention",
    "Attention_3d": "attention",
    "resample_2d": "resample",
    "resample_3d": "resample",
}


def inflate(
    image_params: Mapping[str, Any],
    image: IVVAE,
    video: IVVAE,
    template: Mapping[str, Any],
    keep: int = 1,
) -> dict[str, Any]:
    """Parameters of ``video`` from those of ``image``.

    3x3 kernels go into the middle temporal tap of group causal convolutions and into the last one
    (the present frame) of causal ones; temporal resampling starts as keeping and repeating frames.
    Where the image VAE has no counterpart (attention of a plain VAE, dilated convolutions beside
    its output convolution) the new parts start without effect.

    Args:
      image_params: nested dict of the variant ``'image'`` or ``'image_plain'``, with the width of
        one branch and the latent channels of one branch.
      image, video: the two modules.
      template: parameters of ``video`` as initialised, for the parts that stay free.
      keep: which frame of each pair the temporal down operations of half B pass on, 0 or 1.

    Raises:
      VidlatentError: the two models do not correspond.
    """
    source, target = image.layer_config, video.layer_config
    if source.variant.time != "none":
        raise VidlatentError(f"variant {image.variant!r} is not an image VAE to inflate from.")
    if keep not in (0, 1):
        raise VidlatentError(f"keep={keep}: a pair has frames 0 and 1.")
    share = video.latent_channels // target.variant.branches
    same = (
        source.widths == target.widths
        and source.blocks == target.blocks
        and source.latent_channels == share
        and (target.variant.rich or not source.variant.rich)
    )
    if not same:
        raise VidlatentError(
            f"image VAE of widths {source.widths}, {source.blocks} blocks and "
            f"{source.latent_channels} latent channels does not inflate to {video.variant!r} with "
            f"{target.widths}, {target.blocks} and {share} a branch: make them agree."
        )
    names = {}
    for part, ops in (("downsamples", list_encoder_ops), ("upsamples", list_decoder_ops)):
        names |= _counterparts(part, ops(source), ops(target), source.variant.rich)
    return _Inflation(image_params, target, names, source.variant.rich, keep).walk(template, ())


def video_from_image(params: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """``inflate`` into a group causal model, its sizes read from the parameters."""
    image, video = model_of_params(params), model_of_params(fresh)
    return inflate(params, image, video, fresh)


def causal_from_image(params: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """``inflate`` into a causal model, its sizes read from the parameters."""
    image, video = model_of_params(params), model_of_params(fresh, "causal")
    return inflate(params, image, video, fresh)


def model_of_params(params: Mapping[str, Any], time: str = "group") -> IVVAE:
    """The module that ``params`` belong to; ``time`` is not visible in a video model's shapes."""
    encoder = params["encoder"]
    blocks = [encoder[f"downsamples_{i}"] for i in range(sum("downs" in key for key in encoder))]
    # Down operations end the levels and have their widths.
    downs = [block for block in blocks if any("resample" in key for key in block)]
    branches = 2 if "resample_2d" in downs[0] else 1
    name = "resample_2d" if branches == 2 else "resample"
    widths = [block[name]["bias"].size for block in downs]
    widths.append(encoder["middle_0"]["residual_0"]["gamma"].size // branches)
    head = encoder["head_2"]
    # One temporal tap in a model with one branch: an image VAE.
    if branches == 1 and encoder["conv1"]["kernel"].shape[0] == 1:
        time = "none"
    key = "volume" if "conv_3d_key" in encoder["conv1"] else "plane"
    kind = Variant(branches, key, time, "PAC_conv" in head)
    variant = next((name for name, known in VARIANTS.items() if known == kind), None)
    if variant is None:
        raise VidlatentError(f"these parameters belong to no known variant ({kind}).")
    quant = encoder["quant"]
    fields: dict[str, Any] = {}
    if kind.rich:
        reaches = (key.removeprefix("PAC_") for key in head)
        fields["pac_dilations"] = tuple(sorted(int(reach) for reach in reaches if reach.isdigit()))
    return IVVAE(
        latent_channels=quant["conv_2d"]["bias"].size if branches == 2 else quant["bias"].size // 2,
        width=widths[0],
        variant=variant,
        multipliers=tuple(width // widths[0] for width in widths),
        # The first down operation follows the blocks of level 0.
        blocks=next(i for i, block in enumerate(blocks) if name in block),
        temporal_down=tuple(i for i, block in enumerate(downs) if "time_conv" in block),
        **fields,
    )


def _counterparts(part: str, source: list, target: list, rich: bool) -> dict[str, str]:
    """Module name in the video model -> in the image model, '' where it has none."""
    # Attention that a plain image VAE lacks is passed over when modules are paired.
    left = [i for i, op in enumerate(source) if rich or op.kind != "attn"]
    names, place = {}, 0
    for i, op in enumerate(target):
        if op.kind == "attn" and not rich:
            names[f"{part}_{i}"] = ""
        else:
            names[f"{part}_{i}"] = f"{part}_{left[place]}"
            place += 1
    return names


class _Inflation:
    """One walk over the video model's parameter tree."""

    def __init__(self, params, coder, names, rich, keep):
        self.params, self.config, self.names, self.rich, self.keep = (
            params,
            coder,
            names,
            rich,
            keep,
        )
        # The present frame's tap.
        self.tap = -1 if coder.variant.time == "causal" else 1

    def walk(self, tree: Any, path: tuple[str, ...]) -> Any:
        if isinstance(tree, Mapping):
            return {key: self.walk(value, (*path, key)) for key, value in tree.items()}
        leaf = self._leaf(path, tree)
        if leaf.shape != tree.shape:
            raise VidlatentError(
                f"{'/'.join(path)}: the image VAE gives {leaf.shape}, wanted {tree.shape}."
            )
        return leaf

    def _leaf(self, path, free):
        side, module, *rest, kind = path
        module = self.names.get(module, module)
        if not module:
            # No counterpart: a zero output projection makes the attention start without effect.
            return jnp.zeros_like(free) if "proj" in rest else free
        if "time_conv" in rest:
            return self._temporal(side, free)
        if module == "head_2" and side == "encoder" and self.config.variant.rich and not self.rich:
            return self._output(rest[0], kind, free)
        half = next((_HALF[name] for name in rest if name in _HALF), None)
        copied = any(name in _COPIED for name in rest)
        rest = [_COPIED.get(name, name) for name in rest if name not in _HALF]
        value = self._find((side, module, *rest, kind))
        if half is not None:
            return value if kind == "bias" else self._half_kernel(value, free, half)
        if copied or self.config.variant.branches == 1 or "attention" in rest:
            return self._taps(value, free)
        # Norms and biases twice, kernels side by side: the branches do not mix yet.
        return jnp.tile(value, 2) if kind != "kernel" else _block_diagonal(value)

    def _find(self, path):
        node = self.params
        for key in path:
            if not isinstance(node, Mapping) or key not in node:
                raise VidlatentError(f"the image VAE has no parameter {'/'.join(path)}.")
            node = node[key]
        return jnp.asarray(node)

    def _half_kernel(self, value, free, half):
        """Kernel that reads its own half of the input only, in the present frame's tap."""
        inputs = value.shape[-2]
        if free.shape[-2] != inputs:
            pad = [(0, 0)] * value.ndim
            # Zeros where it would read the other branch.
            pad[-2] = (0, inputs) if half == 0 else (inputs, 0)
            value = jnp.pad(value, pad)
        return self._taps(value, free)

    def _taps(self, value, free):
        if value.ndim != 5 or value.shape[0] == free.shape[0]:
            return value
        return jnp.zeros(free.shape, value.dtype).at[self.tap].set(value[0])

    def _temporal(self, side, free):
        """Keep one frame of a pair; repeat a frame."""
        if free.ndim == 1:
            return jnp.zeros_like(free)
        width = free.shape[-2]
        if side == "encoder":
            # The causal window begins with the frame before the pair; the baseline keeps frame 0.
            tap = 1 if self.config.variant.branches == 1 else self.keep
            return jnp.zeros_like(free).at[tap, 0, 0].set(jnp.eye(width))
        # [C, 2C]: both frames that are made of one are copies of it.
        twice = jnp.tile(jnp.eye(width), (1, 2))
        return twice if free.ndim == 2 else jnp.zeros_like(free).at[-1, 0, 0].set(twice)

    def _output(self, view, kind, free):
        """A plain output convolution as the view of dilation 1; the 1x1 selects that view."""
        if view == "PAC_conv":
            if kind == "bias":
                return jnp.zeros_like(free)
            count = len(self.config.pac_dilations)
            size = free.shape[-1] // 2
            # [dilations, share, share]: the identity at dilation 1, zeros elsewhere.
            pick = jnp.zeros((count, size, size)).at[self.config.pac_dilations.index(1)]
            return _block_diagonal(pick.set(jnp.eye(size)).reshape(count * size, size))
        if view != "PAC_1":
            return free
        value = self._find(("encoder", "head_2", kind))
        return jnp.tile(value, 2) if kind == "bias" else _block_diagonal(value)


def _block_diagonal(kernel):
    """``[..., I, O] -> [..., 2I, 2O]``: each branch by itself."""
    zeros = jnp.zeros_like(kernel)
    rows = [jnp.concatenate(row, axis=-1) for row in ((kernel, zeros), (zeros, kernel))]
    return jnp.concatenate(rows, axis=-2)
