"""The contract of video generators, and defaults for its optional parts."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from vidlatent.models.generators.conditions import Conditions, Drop

__all__ = ["Generator", "GeneratorDefaults"]


class Generator(Protocol):
    """A diffusion transformer over a tokenizer's latents, as a Linen module.

    Training, sampling, evaluation and plans use nothing else of it. A module derives from
    ``GeneratorDefaults`` and ``nn.Module``, in this order; the former has defaults for everything
    optional. (``vidlatent.Generator`` is such a module with its weights, sampler and tokenizer.)

    Attributes:
      latent_channels: channels ``c`` of the noisy latent.
      patch: latents per token in time, rows and columns; latents are cut by whole patches.
      dtype: compute dtype; parameters are float32.
      reads: names of the conditions it reads, of

        * ``label``: class numbers, int32 ``[B]``, -1 for none;
        * ``text``: ``{'states' [B, N, D], 'length' [B]}`` of the text encoder;
        * ``image``: semantic tokens ``[B, I, D]`` of a picture (CLIP);
        * ``first``: standardised latent of the first frame, ``[B, 1, h, w, c]``;
        * ``content``: image latent of the content frame, ``[B, h', w', c']``.
      learned_variance: whether the output has ``2 c`` channels, the noise's and then the
        variance's (Nichol & Dhariwal 2021), instead of ``c``.
      caches_conditions: whether ``cache_conditions`` saves work.
      label_classes: classes that it knows, where it reads ``label``.
      text_length, text_dim: tokens of a text that it reads and their width, where it reads
        ``text``; longer texts are cut.
      image_tokens, image_dim: semantic tokens of a picture and their width, where it reads
        ``image``.
      content_factor, content_channels: rows of the content frame's latent for each row of the
        video's, and its channels, where it reads ``content``.
      residual_dtype: name of the dtype of the states between its layers; '' where there is no
        choice.
      memory: whether it has a layer memory (FSVideo 2.3.1), so that ``memory_weights`` answers.
      guidance_embed: whether the guidance scale is an input, ``conditions['guidance']`` ``[B]``
        (``train.tasks.distill_guidance``).
    """

    latent_channels: int
    patch: tuple[int, int, int]
    dtype: Any
    label_classes: int
    text_length: int
    text_dim: int
    image_tokens: int
    image_dim: int
    content_factor: int
    content_channels: int
    caches_conditions: bool
    residual_dtype: str
    memory: bool
    guidance_embed: bool

    def init(self, rngs: Any, *args: Any, method: Any = None, **kwargs: Any) -> Any:
        """Linen's: ``{'params': ...}`` of a new model, whose output is 0."""
        ...

    def apply(self, variables: Any, *args: Any, method: Any = None, **kwargs: Any) -> Any:
        """Linen's: runs ``method``, such as ``'denoise'``, with ``{'params': ...}``."""
        ...

    @property
    def reads(self) -> tuple[str, ...]: ...

    @property
    def learned_variance(self) -> bool: ...

    def denoise(
        self,
        noisy: jax.Array,
        time: jax.Array,
        conditions: Conditions,
        drop: Drop = None,
        condition_cache: Any = None,
    ) -> jax.Array:
        """Noise or velocity, ``[B, t, h, w, c]`` or ``[B, t, h, w, 2 c]`` float32.

        Args:
          noisy: ``[B, t, h, w, c]``.
          time: ``[B]``, as the diffusion's schedule numbers it.
          conditions: by name, every name of ``reads``; None means no condition.
          drop: by name, ``[B]`` bool: where it is true, the sample's condition is replaced by what
            the model has for none (classifier-free guidance).
          condition_cache: from ``cache_conditions``, in place of the conditions that it holds.

        Raises:
          VidlatentError: a condition is absent, or the latent is not cut by whole patches.
        """
        ...

    def with_residual_dtype(self, dtype: Any) -> Generator:
        """This generator with the states between its layers in ``dtype``, if it has the choice."""
        ...

    def cache_conditions(self, conditions: Conditions, drop: Drop = None) -> Any:
        """What depends on the conditions alone, computed once instead of at every sampling step.

        Returns:
          A pytree with the batch first in every leaf, such as each block's keys and values.
        """
        ...

    def memory_weights(
        self,
        noisy: jax.Array,
        time: jax.Array,
        conditions: Conditions,
        drop: Drop = None,
        rows: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Largest and mean weight that each layer gives to each earlier state, two ``[L, L]``.

        Args:
          rows: ``[B]``, 0 for samples that do not count.
        """
        ...


class GeneratorDefaults:
    """Defaults of a generator: no conditions, no cache, no layer memory. A base class of modules.

    A field of the same name in the module replaces the attribute here.
    """

    reads: Any = ()
    learned_variance: Any = False
    caches_conditions = False
    label_classes = 0
    text_length = 0
    text_dim = 0
    # CLIP ViT-H/14 at 224 pixels: 16 x 16 patches and the class token (Wan2.1's image encoder).
    image_tokens = 257
    image_dim = 0
    content_factor = 1
    content_channels = 0
    residual_dtype = ""
    memory = False
    guidance_embed = False

    def with_residual_dtype(self: Any, dtype: Any) -> Any:
        # The name: Linen compares and prints fields.
        name = jnp.dtype(dtype).name
        return self.clone(residual_dtype=name) if self.residual_dtype else self

    def cache_conditions(self, conditions: Conditions, drop: Drop = None) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.caches_conditions is False")

    def memory_weights(
        self,
        noisy: jax.Array,
        time: jax.Array,
        conditions: Conditions,
        drop: Drop = None,
        rows: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        raise NotImplementedError(f"{type(self).__name__}.memory is False")
