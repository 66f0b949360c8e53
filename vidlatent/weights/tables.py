"""Weights under other names, and weights of other models that a model can be initialised from.

A new model adds a line to each registry it has something for; nothing else needs to know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vidlatent.registry import Registry

__all__ = ["INIT_KINDS", "STARTS", "TABLES", "Start", "initialize_from"]

# Rows of ``weights.importer`` by the name of a naming. A model's own naming has the model's name.
TABLES = Registry("weights table")
_FSVIDEO = "vidlatent.models.tokenizers.fsvideo.names:"
TABLES.register("dcae", _FSVIDEO + "DCAE_TABLE")
TABLES.register("dcae_original", _FSVIDEO + "DCAE_ORIGINAL_TABLE")
TABLES.register("dcae_original_shuffle", _FSVIDEO + "DCAE_ORIGINAL_SHUFFLE_TABLE")
TABLES.register("fsae", _FSVIDEO + "FSAE_TABLE")
TABLES.register("ivvae", "vidlatent.models.tokenizers.ivvae.names:IVVAE_TABLE")
TABLES.register("reducio", "vidlatent.models.tokenizers.reducio.names:REDUCIO_TABLE")
TABLES.register("sd_vae", "vidlatent.models.tokenizers.reducio.names:SD_VAE_TABLE")
TABLES.register(
    "sd_vae_diffusers", "vidlatent.models.tokenizers.reducio.names:SD_VAE_DIFFUSERS_TABLE"
)
TABLES.register("ivvae_plain", "vidlatent.models.tokenizers.ivvae.names:PLAIN_TABLE")
_WAN_VAE = "vidlatent.models.tokenizers.wan_vae.names:"
TABLES.register("wan_vae", _WAN_VAE + "WAN_VAE_TABLE")
TABLES.register("wan_vae_diffusers21", _WAN_VAE + "WAN21_VAE_DIFFUSERS_TABLE")
TABLES.register("wan_vae_diffusers22", _WAN_VAE + "WAN22_VAE_DIFFUSERS_TABLE")
_FROZEN = "vidlatent.models.pretrained."
TABLES.register("lpips", _FROZEN + "lpips.names:LPIPS_TABLE")
TABLES.register("lpips_vgg_torchvision", _FROZEN + "lpips.names:LPIPS_VGG_TORCHVISION_TABLE")
TABLES.register("lpips_alex_torchvision", _FROZEN + "lpips.names:LPIPS_ALEX_TORCHVISION_TABLE")
_DINOV2 = _FROZEN + "dinov2.names:DINOV2_"
TABLES.register("dinov2", _DINOV2 + "TABLE")
TABLES.register("dinov2_transformers", _DINOV2 + "TRANSFORMERS_TABLE")
TABLES.register("dinov2_transformers_released", _DINOV2 + "TRANSFORMERS_RELEASED_TABLE")
TABLES.register("i3d", _FROZEN + "video.names:I3D_TABLE")
TABLES.register("c3d", _FROZEN + "video.names:C3D_TABLE")
TABLES.register("c3d_chainer", _FROZEN + "video.names:C3D_CHAINER_TABLE")
TABLES.register("videomae", _FROZEN + "video.names:VIDEOMAE_TABLE")
TABLES.register("t5_transformers", _FROZEN + "t5.names:T5_TRANSFORMERS_TABLE")
TABLES.register("umt5_wan", _FROZEN + "t5.names:UMT5_WAN_TABLE")
TABLES.register("clip_transformers", _FROZEN + "clip.names:CLIP_TRANSFORMERS_TABLE")
TABLES.register("clip_openclip", _FROZEN + "clip.names:CLIP_OPENCLIP_TABLE")
TABLES.register("clip_wan", _FROZEN + "clip.names:CLIP_WAN_TABLE")
TABLES.register("videoalign", "vidlatent.models.rewards.videoalign.names:VIDEOALIGN_TABLE")
TABLES.register("mps", "vidlatent.models.rewards.mps.names:MPS_TABLE")
TABLES.register("wan", "vidlatent.models.generators.wan.names:WAN_TABLE")
TABLES.register("wan_diffusers", "vidlatent.models.generators.wan.names:WAN_DIFFUSERS_TABLE")
TABLES.register(
    "latent_upsampler",
    "vidlatent.models.generators.latent_upsampler.names:LTX_UPSAMPLER_TABLE",
)
TABLES.register("latte", "vidlatent.models.generators.latte.names:LATTE_TABLE")
_COGVIDEOX = "vidlatent.models.generators.promag_dit.names:COGVIDEOX_DIFFUSERS_TABLE"
TABLES.register("cogvideox_diffusers", _COGVIDEOX)
# ProMAG's generator has CogVideoX's architecture, so one naming serves both.
TABLES.register("promag_dit", _COGVIDEOX)
TABLES.register("pixart", "vidlatent.models.generators.reducio_dit.names:PIXART_TABLE")
TABLES.register("reducio_dit", "vidlatent.models.generators.reducio_dit.names:REDUCIO_DIT_TABLE")

# Values of ``config.train.init_kind``: how parameters of another model become this model's,
# ``(source parameters, newly initialised parameters of this model) -> parameters``.
INIT_KINDS = Registry("train.init_kind")
_SURGERY = "vidlatent.models.tokenizers.fsvideo.init_from:"
INIT_KINDS.register("image", _SURGERY + "video_from_image")
INIT_KINDS.register("image_thw", _SURGERY + "video_from_image_time_first")
INIT_KINDS.register("standard", _SURGERY + "standard_from_base")
INIT_KINDS.register("lite", _SURGERY + "lite_from_standard")
_INFLATE = "vidlatent.models.tokenizers.ivvae.init_from:"
INIT_KINDS.register("ivvae_image", _INFLATE + "video_from_image")
INIT_KINDS.register("ivvae_image_causal", _INFLATE + "causal_from_image")
_GROWTH = "vidlatent.models.tokenizers.promag.growth:"
INIT_KINDS.register("grown", _GROWTH + "grown_from")
INIT_KINDS.register("first_frame", _GROWTH + "with_first_frame")
INIT_KINDS.register("promag_image", _GROWTH + "inflated_from_image")
_REDUCIO = "vidlatent.models.tokenizers.reducio.init_from:"
INIT_KINDS.register("reducio_image", _REDUCIO + "from_image")
INIT_KINDS.register("reducio_image_causal", _REDUCIO + "from_causal_image")
INIT_KINDS.register("pixart", "vidlatent.models.generators.reducio_dit.names:from_pixart")
INIT_KINDS.register("reducio_sizes", "vidlatent.models.generators.reducio_dit.names:with_sizes")
INIT_KINDS.register("wan_memory", "vidlatent.models.generators.wan.init_from:wan_memory")
INIT_KINDS.register("guidance", "vidlatent.models.generators.wan.init_from:with_guidance")


@dataclasses.dataclass(frozen=True)
class Start:
    """The weights that a kind of ``INIT_KINDS`` starts from, to refuse others by name.

    Attributes:
      about: what they are, in words.
      into: family of the models that start from them (``config.model.name`` or
        ``config.generator.name``).
      families: families of the runs that hold such weights.
      tables: namings of the files that hold them; () where no such file is published.
    """

    about: str
    into: str
    families: tuple[str, ...]
    tables: tuple[str, ...] = ()


_DCAE = Start(
    "DC-AE's image autoencoder (the paper's: dc-ae-f32c32-sana-1.0)",
    "fsae",
    ("dcae",),
    ("dcae", "dcae_original", "dcae_original_shuffle"),
)
_SD_VAE = Start("Stable Diffusion's VAE", "reducio", (), ("sd_vae", "sd_vae_diffusers"))
_IVVAE_IMAGE = Start("IV-VAE's image VAE", "ivvae", ("ivvae",), ("ivvae_plain",))
_PROMAG_IMAGE = Start("ProMAG's image autoencoder", "promag", ("promag",))
# A kind of a package of your own may have a row here; without one its own function must refuse.
STARTS: dict[str, Start] = {
    "image": _DCAE,
    "image_thw": _DCAE,
    "standard": Start("the causal FSAE", "fsae", ("fsae",), ("fsae",)),
    "lite": Start("FSAE-Standard", "fsae", ("fsae",), ("fsae",)),
    "ivvae_image": _IVVAE_IMAGE,
    "ivvae_image_causal": _IVVAE_IMAGE,
    "grown": Start("the ProMAG of the stage before", "promag", ("promag", "magvit2")),
    "first_frame": _PROMAG_IMAGE,
    "promag_image": _PROMAG_IMAGE,
    "reducio_image": _SD_VAE,
    "reducio_image_causal": _SD_VAE,
    "pixart": Start("PixArt-alpha", "reducio_dit", (), ("pixart",)),
    "reducio_sizes": Start(
        "the Reducio-DiT of the stage before", "reducio_dit", ("reducio_dit",), ("reducio_dit",)
    ),
    "wan_memory": Start("Wan2.1's transformer", "wan", ("wan",), ("wan", "wan_diffusers")),
}


def initialize_from(
    kind: str, source: Mapping[str, Any], fresh: Mapping[str, Any]
) -> dict[str, Any]:
    """Parameters of one model made from those of another, by ``INIT_KINDS[kind]``.

    Args:
      kind: ``'image'`` or ``'image_thw'`` (a video model from an image model, by their
        ``shortcut_order``), ``'standard'`` (FSAE-Standard from the
        causal FSAE), ``'lite'`` (FSAE-Lite from Standard), ``'ivvae_image'`` or
        ``'ivvae_image_causal'`` (IV-VAE's video model, group causal or causal, from its image VAE),
        ``'grown'`` (ProMAG from the stage before), ``'first_frame'`` (ProMAG with an image
        autoencoder's encoder for frame 0), ``'promag_image'`` (inflated from that autoencoder),
        ``'reducio_image'`` or ``'reducio_image_causal'``
        (Reducio-VAE, centred or causal, from Stable Diffusion's image VAE), ``'pixart'``
        (Reducio-DiT from PixArt-alpha), ``'reducio_sizes'`` (Reducio-DiT with embeddings of the
        frame's size from one without), ``'wan_memory'`` (layer memory from Wan2.1),
        ``'guidance'`` (a generator with a guidance scale as input from one without).
      source: parameters of the other model, nested dicts of arrays.
      fresh: newly initialised parameters of the target; what the source lacks is taken from here.

    Returns:
      Nested dicts with the structure and shapes of ``fresh``.

    Raises:
      VidlatentError: unknown ``kind``, or ``source`` is not the model that this kind starts from.
    """
    return INIT_KINDS.get(kind)(source, fresh)
