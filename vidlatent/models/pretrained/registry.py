"""The pretrained networks by name, with their published files."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.parallel.compilation import quick_options
from vidlatent.registry import Registry

__all__ = [
    "NETWORKS",
    "Definition",
    "Network",
    "init_network",
    "network_apply",
    "network_shapes",
    "random_params",
]

NETWORKS = Registry("frozen network")
_HERE = "vidlatent.models.pretrained."
NETWORKS.register("lpips_vgg", _HERE + "lpips.model:VGG")
NETWORKS.register("lpips_alex", _HERE + "lpips.model:ALEX")
NETWORKS.register("lpips_tiny", _HERE + "lpips.model:TINY")
NETWORKS.register("dinov2_vits14", _HERE + "dinov2.model:VITS14")
NETWORKS.register("dinov2_vitb14", _HERE + "dinov2.model:VITB14")
NETWORKS.register("dinov2_vitl14", _HERE + "dinov2.model:VITL14")
NETWORKS.register("dinov2_vitg14", _HERE + "dinov2.model:VITG14")
NETWORKS.register("dinov2_tiny", _HERE + "dinov2.model:TINY")
NETWORKS.register("i3d_kinetics400", _HERE + "video.i3d:KINETICS400")
NETWORKS.register("i3d_tiny", _HERE + "video.i3d:TINY")
NETWORKS.register("c3d_ucf101", _HERE + "video.c3d:UCF101")
NETWORKS.register("c3d_tiny", _HERE + "video.c3d:TINY")
NETWORKS.register("videomae_g", _HERE + "video.videomae:GIANT_SSV2")
NETWORKS.register("videomae_tiny", _HERE + "video.videomae:TINY")
NETWORKS.register("t5_v10_small", _HERE + "t5.model:V10_SMALL")
NETWORKS.register("t5_v10_base", _HERE + "t5.model:V10_BASE")
NETWORKS.register("t5_v10_large", _HERE + "t5.model:V10_LARGE")
NETWORKS.register("flan_t5_small", _HERE + "t5.model:FLAN_SMALL")
NETWORKS.register("flan_t5_base", _HERE + "t5.model:FLAN_BASE")
NETWORKS.register("flan_t5_large", _HERE + "t5.model:FLAN_LARGE")
NETWORKS.register("flan_t5_xl", _HERE + "t5.model:FLAN_XL")
NETWORKS.register("t5_v11_xxl", _HERE + "t5.model:V11_XXL")
NETWORKS.register("umt5_xxl", _HERE + "t5.model:UMT5_XXL")
NETWORKS.register("t5_tiny", _HERE + "t5.model:TINY")
NETWORKS.register("umt5_tiny", _HERE + "t5.model:UMT5_TINY")
NETWORKS.register("clip_vith14", _HERE + "clip.model:VITH14")
NETWORKS.register("clip_vith14_wan", _HERE + "clip.model:VITH14_WAN")
NETWORKS.register("clip_vitl14", _HERE + "clip.model:VITL14")
NETWORKS.register("clip_tiny", _HERE + "clip.model:TINY")
NETWORKS.register("mps", "vidlatent.models.rewards.mps.model:VITH14")
NETWORKS.register("mps_tiny", "vidlatent.models.rewards.mps.model:TINY")
NETWORKS.register("sd_vae", _HERE + "sd_vae:FT_EMA")
NETWORKS.register("sd_vae_tiny", _HERE + "sd_vae:TINY")
_REWARDS = "vidlatent.models.rewards."
NETWORKS.register("videoalign", _REWARDS + "videoalign.definitions:RELEASED")
NETWORKS.register("videoalign_tiny", _REWARDS + "videoalign.definitions:TINY")


@dataclasses.dataclass(frozen=True)
class Definition:
    """A pretrained network, and where its weights are published.

    Attributes:
      module: makes the Linen module from ``dtype=``.
      inputs: shapes of pixels (or tokens) with which its parameters can be initialised.
      tables: namings (``weights.tables.TABLES``) under which it can be read; files are written
        under the first.
      files: the published files, in the order in which the convert command takes them.
      source: where they are published; empty for a tiny network, of which there are none.
      prepare: brings the tensors of the published files into the shapes that the tables expect.
      fit: brings the parameters' shapes to what a file's tensors (after ``prepare``) may choose.
      template: ``(file, tokenizer) -> tensors`` that are stored beside the weights: the text around
        a prompt as token numbers; None for networks that read no such text.
      input_dtype: of all ``inputs``, or a tuple with one for each.
      keeps_dtype: parameters stay in the file's dtype; text encoders are large.
    """

    module: Callable[..., nn.Module]
    inputs: tuple[tuple[int, ...], ...]
    tables: tuple[str, ...]
    files: tuple[str, ...] = ()
    source: str = ""
    prepare: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = dict
    fit: Callable[[Any, Mapping[str, np.ndarray]], Any] = lambda shapes, tensors: shapes
    template: Callable[[str, str], Mapping[str, np.ndarray]] | None = None
    input_dtype: Any = jnp.float32
    keeps_dtype: bool = False

    def typed_inputs(self) -> list[tuple[tuple[int, ...], Any]]:
        """Shape and dtype of each of ``inputs``."""
        one = not isinstance(self.input_dtype, tuple)
        dtypes = (self.input_dtype,) * len(self.inputs) if one else self.input_dtype
        return list(zip(self.inputs, dtypes, strict=True))


class Network(NamedTuple):
    """A network with its weights.

    Attributes:
      apply: ``apply(params, *pixels)``, pure.
      params: nested dict of float32 arrays (text encoders: in the dtype of the file).
      name: in ``NETWORKS``.
      label: the name, with the seed if the weights are random; part of the names of scores.
    """

    apply: Callable[..., Any]
    params: Any
    name: str
    label: str


@functools.cache
def network_apply(name: str, dtype: Any = jnp.float32) -> Callable[..., Any]:
    """The pure function of a network; the same object at every call, so that ``jit`` caches it.

    ``lpips_*``: ``apply(params, x, y) -> [N]`` distances of images ``[N, H, W, 3]``.
    ``dinov2_*``: ``apply(params, images) -> [N, h, w, C]`` patch tokens of images ``[N, H, W, 3]``,
    which it resizes first (``models.pretrained.dinov2.model.input_size``).
    ``i3d_*``, ``videomae_*``, ``c3d_*``: ``apply(params, video)`` of ``[B, T, H, W, 3]`` gives
    ``features`` and ``logits`` ``[B, ...]``, C3D ``probabilities`` too; the first two need frames
    of their training size (``metrics.fvd``).
    ``t5_*``, ``flan_t5_*``, ``umt5_*``: ``apply(params, tokens, mask) -> [B, N, D]`` states of
    token numbers and their mask ``[B, N]`` (``data.text.rules``).
    ``clip_*``: ``apply(params, images)`` of images ``[N, H, W, 3]`` of any size; by default it
    returns what the system of that name needs, ``output=`` selects another form
    (``models.pretrained.clip.model``).
    ``videoalign*``: ``apply(params, frames, tokens) -> [B, 3]`` scores of prepared frames
    ``[B, T, H, W, 3]`` and token numbers ``[B, L]`` (``models.rewards.videoalign``).
    ``mps*``: ``apply(params, images, tokens, condition)`` scores images ``[B, H, W, 3]``; the parts
    of it are methods, ``method=`` (``models.rewards.mps.model``).
    ``sd_vae*``: ``apply(params, images[, noise]) -> [N, H / 8, W / 8, 4]`` latents of images
    ``[N, H, W, 3]``, not scaled: the posterior's means, or samples with ``noise``.

    All other pixels lie in [-1, 1]. ``dtype`` is the compute dtype; float32 products are exact on
    every backend (no TF32).

    Raises:
      VidlatentError: unknown name.
    """
    module = NETWORKS.get(name).module(dtype=dtype)

    def apply(params, *pixels, **options):
        return module.apply({"params": params}, *pixels, **options)

    return apply


def network_shapes(name: str) -> Any:
    """The parameters of a network as ShapeDtypeStructs; nothing is computed."""
    return jax.eval_shape(functools.partial(init_network, name), jax.random.key(0))


def random_params(name: str, seed: int = 0) -> Any:
    """Random parameters as NumPy arrays, for tests and smoke runs."""
    # Run once, so compiling fast matters more than running fast.
    init = jax.jit(functools.partial(init_network, name), compiler_options=quick_options(level=0))
    return jax.tree.map(np.asarray, init(jax.random.key(seed)))


def init_network(name: str, key: jax.Array) -> Any:
    """Random parameters of a network, traceable."""
    definition = NETWORKS.get(name)
    pixels = [jnp.zeros(shape, dtype) for shape, dtype in definition.typed_inputs()]
    return definition.module(dtype=jnp.float32).init(key, *pixels)["params"]
