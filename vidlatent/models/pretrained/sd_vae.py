"""The encoder of Stable Diffusion's image autoencoder (Rombach et al. 2022).

Reducio-DiT reads the content frame as such a latent (Reducio): four channels, an
eighth of the image's sides, unscaled; the generator scales it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidlatent.errors import VidlatentError
from vidlatent.layers.dense import exact
from vidlatent.models.pretrained.registry import Definition
from vidlatent.models.tokenizers.base import Posterior
from vidlatent.models.tokenizers.reducio.blocks import Dense
from vidlatent.models.tokenizers.reducio.coder import FeatureEncoder
from vidlatent.models.tokenizers.reducio.variants import ReducioConfig, plan_resampling
from vidlatent.spec import check_shape

__all__ = ["SdEncoder", "fields_from_diffusers"]


class SdEncoder(nn.Module):
    """Images to latents; the defaults are those of SD 1, SD 2 and SDXL.

    Attributes:
      latent_channels: of the latent.
      widths: channels per level; sides are halved between levels.
      blocks: residual blocks per level.
      groups: of the group norms.
      dtype: compute dtype; moments are float32.
    """

    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2
    groups: int = 32
    dtype: Any = jnp.float32

    @property
    def factor(self) -> int:
        """Pixels a side for one position of the latent."""
        return 2 ** (len(self.widths) - 1)

    def setup(self) -> None:
        self.encoder = _Moments(self.make_layer_config(), 2 * self.latent_channels)

    def make_layer_config(self) -> ReducioConfig:
        levels = len(self.widths)
        return ReducioConfig(
            widths=self.widths,
            blocks=self.blocks,
            steps=plan_resampling(levels, 0, levels - 1),
            volume=False,
            causal=False,
            groups=self.groups,
            # As published; Reducio's own encoders have eight.
            heads=1,
            window=(0, 0),
            residual_scale=1.0,
            up_form="nearest",
            remat=False,
            implementation="auto",
            dtype=self.dtype,
        )

    def __call__(self, images: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """Latents ``[N, H / 8, W / 8, c]`` float32 of images ``[N, H, W, 3]`` in [-1, 1].

        Args:
          noise: standard normal of the latents' shape, to sample the posterior; None for its mean.

        Raises:
          VidlatentError: sides that are no multiples of ``factor``.
        """
        posterior = self.posterior(images)
        return posterior.mean if noise is None else posterior.draw(noise)

    def posterior(self, images: jax.Array) -> Posterior:
        """Mean and log-variance of the latents, ``[N, H / 8, W / 8, c]`` float32 each."""
        sizes = check_shape(images, "N H W C", C=3)
        if sizes["H"] % self.factor or sizes["W"] % self.factor:
            raise VidlatentError(
                f"a picture of {sizes['H']}x{sizes['W']} pixels: this image autoencoder takes "
                f"multiples of {self.factor}."
            )
        # As in all pretrained networks, float32 products are exact on every device.
        with jax.default_matmul_precision(exact(self.dtype).name.lower()):
            # An image is a clip of one frame: [N, H, W, 3] -> [N, 1, H, W, 3]
            moments = self.encoder(images[:, None])[:, 0]
        return Posterior(*jnp.split(moments.astype(jnp.float32), 2, axis=-1))


class _Moments(nn.Module):
    """The encoder and the 1x1 convolution behind it, under one name as in the weights' tables."""

    config: ReducioConfig
    moments: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        network = FeatureEncoder(self.config, self.moments)
        nn.share_scope(self, network)
        return Dense(self.moments, name="quant")(network(x)[0])


def fields_from_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``SdEncoder`` from the ``config.json`` of Diffusers' ``AutoencoderKL``."""
    return {
        "latent_channels": config["latent_channels"],
        "widths": tuple(config["block_out_channels"]),
        "blocks": config["layers_per_block"],
        "groups": config["norm_num_groups"],
    }


def _encoding_half(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The encoder's tensors of an autoencoder, or of a Stable Diffusion file that holds one."""
    inner = "first_stage_model."
    if any(name.startswith(inner) for name in tensors):
        tensors = {
            name.removeprefix(inner): x for name, x in tensors.items() if name.startswith(inner)
        }
    ours = {name: x for name, x in tensors.items() if name.startswith(("encoder.", "quant_conv."))}
    # Nothing of an encoder: the reader names what the file does hold.
    return ours or dict(tensors)


def _definition(files: tuple[str, ...], source: str, **fields: Any) -> Definition:
    module = functools.partial(SdEncoder, **fields)
    side = module().factor
    return Definition(
        module=module,
        inputs=((1, side, side, 3),),
        tables=("sd_vae_diffusers", "sd_vae"),
        files=files,
        source=source,
        prepare=_encoding_half,
    )


# Reducio's script uses ft-ema; the paper names SD 2.1's, which has the same layout and works, too.
FT_EMA = _definition(
    ("diffusion_pytorch_model.safetensors",), "stabilityai/sd-vae-ft-ema on huggingface.co"
)
TINY = _definition((), "", widths=(4, 4, 8, 8), blocks=1, groups=2)
