"""Wan2.1's video transformer, and FSVideo's: patches of one latent and a layer memory (2.3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vidlatent.errors import VidlatentError
from vidlatent.layers.dense import Linear, Mlp
from vidlatent.layers.embeddings import GuidanceEmbedding, LabelTokens
from vidlatent.layers.norms import LayerNorm, modulate
from vidlatent.layers.patches import PatchEmbedding, from_patches, patch_grid
from vidlatent.layers.positions import rope_tables, time_features
from vidlatent.layers.scan import run_stacked, stack_params
from vidlatent.models.build import make_module
from vidlatent.models.generators.base import GeneratorDefaults
from vidlatent.models.generators.conditions import (
    Conditions,
    Drop,
    apply_drop,
    count_samples,
    get_condition,
    join_input,
    mark_first_frame,
    pad_text,
    read_guidance,
    read_labels,
    read_text,
)
from vidlatent.models.generators.trunk import show_trunk
from vidlatent.models.generators.wan.block import Context, WanBlock
from vidlatent.models.generators.wan.layer_memory import Stack, last_bias, pad_routers
from vidlatent.spec import check_parts, check_shape

__all__ = ["WanDiT", "build_wan"]

_STACKS = ("recomputed", "scanned", "unrolled")
_NORMS = ("post", "pre")
# Of the embedding MLPs, as DiT and its successors initialise them.
_small = nn.initializers.normal(0.02)


def build_wan(fields: Mapping[str, Any], dtype: Any) -> nn.Module:
    return make_module(WanDiT, fields, dtype, section="config.generator")


class WanDiT(GeneratorDefaults, nn.Module):
    """Velocity of a noisy latent, given time, text and (image to video) an image.

    The defaults are FSVideo's base and refiner: 16,395,800,448 parameters and 4,194,099 of routers.
    A new model's output is 0.

    Attributes:
      latent_channels: channels of the noisy latent and of the result.
      mask_channels: channels that say which frames are given; 0 for text to video.
      condition_channels: channels of the given latent; 0 for text to video.
      patch: latents per token in time, rows and columns.
      width, depth, heads, hidden: channels, blocks, attention heads, feed-forward width.
      freq_dim: sinusoids of the time embedding.
      text_dim: width of the text encoder's tokens.
      text_length: text tokens that are attended to; a shorter text is padded with zeros, and these
        are attended to as well (Wan2.1).
      label_classes: read a class label in place of text, through ``label_tokens`` learned tokens;
        0 for text.
      image_dim: width of the image encoder's tokens; 0 for no image.
      memory: whether keys and values of self-attention read all earlier states.
      memory_share: initial weight of the previous layer, the same for every layer; 0 for equal
        weights. 0.98 hardly changes a trained model.
      memory_norm: ``'post'``: states are mixed, then the mixture is normalised and modulated;
        ``'pre'``: the normalised and modulated states of each layer are mixed.
      memory_stride: the memory reads every such state, and the last one always.
      guidance_embed: the guidance scale is an input, added to the embedding of time.
      router_gate: blend the memory in by a learned number per layer that starts at 0, no memory.
      stack: how layers run: ``'recomputed'`` (with layer memory a backward pass of its own, whose
        activations grow linearly with depth; without it a scan), ``'scanned'`` (a scan and
        autodiff) or ``'unrolled'``.
      remat: recompute a block in the backward pass, where autodiff makes it.
      eps: of the norms in blocks and head.
      residual_dtype: dtype of the states between sub-layers; float32 for training.
    """

    latent_channels: int = 128
    mask_channels: int = 4
    condition_channels: int = 128
    patch: tuple[int, int, int] = (1, 1, 1)
    width: int = 5120
    depth: int = 40
    heads: int = 40
    hidden: int = 13824
    freq_dim: int = 256
    text_dim: int = 4096
    text_length: int = 512
    label_classes: int = 0
    label_tokens: int = 4
    image_dim: int = 1280
    memory: bool = True
    memory_share: float = 0.5
    memory_norm: str = "post"
    memory_stride: int = 1
    router_gate: bool = False
    guidance_embed: bool = False
    stack: str = "recomputed"
    remat: bool = True
    eps: float = 1e-6
    residual_dtype: str = "float32"
    dtype: Any = jnp.float32
    caches_conditions = True  # not a field

    @property
    def in_channels(self) -> int:
        return self.latent_channels + self.mask_channels + self.condition_channels

    @property
    def reads(self) -> tuple[str, ...]:
        image = ("image",) if self.image_dim else ()
        first = ("first",) if self.condition_channels else ()
        return ("label" if self.label_classes else "text", *image, *first)

    def setup(self) -> None:
        # Rotary positions take pairs of channels for each of three axes.
        check_parts("config.generator.heads", self.heads, "width", self.width, step=2, least=6)
        if self.stack not in _STACKS:
            raise VidlatentError(f"config.generator.stack {self.stack!r}: use one of {_STACKS}.")
        if self.memory_norm not in _NORMS or self.memory_stride < 1:
            raise VidlatentError(
                f"config.generator.memory_norm {self.memory_norm!r} is one of {_NORMS}, "
                f"memory_stride {self.memory_stride} 1 or more."
            )
        self.patch_embedding = PatchEmbedding(self.patch, self.width, self.dtype)
        # float32 in any compute dtype: bfloat16 cannot tell neighbouring times of 1000 apart.
        self.time_embedding = Mlp(self.width, self.width, "silu", _small)
        self.time_projection = Linear(6 * self.width, jnp.float32)
        if self.guidance_embed:
            self.guidance_embedding = GuidanceEmbedding(self.width, self.freq_dim)
        if self.label_classes:
            self.label_embedding = LabelTokens(
                self.label_classes, self.label_tokens, self.width, self.dtype
            )
        else:
            self.text_embedding = Mlp(self.width, self.width, "gelu_tanh", _small, self.dtype)
        if self.image_dim:
            # torch's default eps, unlike the norms in the blocks (Wan2.1's MLPProj).
            self.image_norm1 = LayerNorm(1e-5, self.dtype)
            self.image_embedding = Mlp(self.image_dim, self.width, "gelu", dtype=self.dtype)
            self.image_norm2 = LayerNorm(1e-5, self.dtype)
        self.blocks = stack_params(self, "blocks", self._first_block, self.depth)
        if self.memory:
            # From the second layer on: the first has a single source and nothing to weigh. They
            # differ in size and are not stacked; pad_routers does that for the scan.
            self.routers = [
                self.param(f"router_{layer}", self._first_router, layer)
                for layer in range(2, self.depth + 1)
            ]
        # Published as randn / sqrt(width).
        table = nn.initializers.normal(self.width**-0.5)
        self.head_modulation = self.param("head_modulation", table, (1, 2, self.width))
        size = int(np.prod(self.patch)) * self.latent_channels
        # A new model predicts 0 (DiT, 3.2).
        self.head = Linear(size, self.dtype, nn.initializers.zeros)

    def _block(self) -> WanBlock:
        # parent=None: not a submodule, but a pure function applied to slices of the stack.
        return WanBlock(
            self.width,
            self.heads,
            self.hidden,
            bool(self.image_dim),
            self.memory_norm == "pre",
            self.eps,
            self.residual_dtype,
            self.dtype,
            parent=None,
        )

    def _first_block(self, key: jax.Array) -> Any:
        token = jnp.zeros((1, 1, self.width))
        tokens = {"text": token, "image": token} if self.image_dim else {"text": token}
        tables = rope_tables((1, 1, 1), self.width // self.heads)
        time = jnp.zeros((1, 6, self.width))
        return self._block().init(key, token, None, time, tokens, tables)["params"]

    def _first_router(self, key: jax.Array, layer: int) -> dict[str, jax.Array]:
        del key  # kernels start at 0, so that new routers do not depend on the state
        # Sources that the layer reads: every ``memory_stride``-th, and always the last.
        sources = len({*range(0, layer, self.memory_stride), layer - 1})
        bias = jnp.zeros((layer,)).at[-1].set(last_bias(sources, self.memory_share))
        gate = {"gate": jnp.zeros(())} if self.router_gate else {}
        return {"kernel": jnp.zeros((self.width, layer)), "bias": bias, **gate}

    def __call__(
        self,
        latent: jax.Array,
        time: jax.Array,
        text: jax.Array | None = None,
        image: jax.Array | None = None,
    ) -> jax.Array:
        """Velocity ``[B, T, H, W, latent_channels]`` float32.

        Args:
          latent: ``[B, T, H, W, C]``: noisy latent, then mask, then given latent.
          time: ``[B]``, 1000 times the noise level.
          text: ``[B, S, text_dim]``, zero beyond the text's length; every row is attended to.
          image: ``[B, I, image_dim]``, or None to leave the image out.
        """
        return self._velocity(latent, time, self._tokens(text, image), None)

    def denoise(
        self,
        noisy: jax.Array,
        time: jax.Array,
        conditions: Conditions,
        drop: Drop = None,
        condition_cache: Any = None,
    ) -> jax.Array:
        """Velocity ``[B, t, h, w, c]`` float32 of a noisy latent under ``conditions``.

        Args:
          noisy: ``[B, t, h, w, c]``.
          time: ``[B]``, 1000 times the noise level.
          conditions: those of ``reads`` (a name that maps to None: no condition). ``'first'`` may
            be replaced by ``'given'`` ``[B, t, h, w, mask + condition channels]``, see
            ``conditions.mark_first_frame``; ``'null_text'`` replaces a dropped text; with
            ``guidance_embed``, ``'guidance'`` ``[B]`` holds the scales.
          drop: by name, samples ``[B]`` whose condition is replaced: labels by learned tokens,
            texts by the null text, image tokens by zeros, first frames by nothing given.
          condition_cache: from ``cache_conditions``, in place of label or text, and image.
        """
        latent = join_input(noisy, self._given(noisy, conditions, drop))
        if condition_cache is not None:
            # Layers first, as the scan slices them; the cache has the batch first.
            context = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), condition_cache)
            return self._velocity(latent, time, None, context, conditions)
        tokens = self._read(conditions, drop, noisy.shape[0])
        return self._velocity(latent, time, tokens, None, conditions)

    def cache_conditions(self, conditions: Conditions, drop: Drop = None) -> Context:
        """Keys and values of label or text, and of the image, for every step of a sampler.

        Returns:
          Pairs of ``[B, L, S, K, d]`` by kind; every leaf has the batch first.
        """
        # The first frame is joined to the noisy latent, which changes at every step.
        batch = count_samples(conditions, [name for name in self.reads if name != "first"])
        context = self._contexts(self._read(conditions, drop, batch))
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), context)

    def _read(self, conditions: Conditions, drop: Drop, batch: int) -> dict[str, jax.Array]:
        """Embedded tokens of the conditions that blocks attend to."""
        if self.label_classes:
            labels = read_labels(conditions, drop, self.reads, batch)
            tokens = {"text": self.label_embedding(labels)}
        else:
            states, length = read_text(conditions, drop, self.reads, batch, self.text_dim)
            check_shape(states, "B S D", B=batch, D=self.text_dim)
            # Wan2.1 has no text mask: zeros at padding become one constant vector, which is read.
            states = pad_text(states, length, self.text_length)
            tokens = {"text": self.text_embedding(states)}
        if self.image_dim:
            image = get_condition(conditions, "image", self.reads)
            # Attention over equal tokens returns one of them, so a single zero token is enough.
            image = jnp.zeros((batch, 1, self.image_dim)) if image is None else image
            tokens["image"] = self._image_tokens(apply_drop(image, 0, drop, "image"))
        return tokens

    def _given(self, noisy: jax.Array, conditions: Conditions, drop: Drop) -> jax.Array | None:
        """Mask and given latent, ``[B, t, h, w, mask + condition channels]``."""
        if not self.condition_channels:
            return None
        # For given frames other than the first: the caller makes mask and latent itself.
        if "given" in conditions:
            given = conditions["given"]
        else:
            first = get_condition(conditions, "first", self.reads)
            if first is None:
                # Nothing given, in mask and latent: the same as a dropped first frame.
                return jnp.zeros((*noisy.shape[:-1], self.mask_channels + self.condition_channels))
            check_shape(first, "B one h w c", one=1, c=self.condition_channels)
            given = mark_first_frame(first, noisy.shape[1], self.mask_channels)
        return apply_drop(given, 0, drop, "first")

    def _velocity(
        self,
        latent: jax.Array,
        time: jax.Array,
        tokens: dict[str, jax.Array] | None,
        context: Context | None,
        conditions: Conditions = MappingProxyType({}),
    ) -> jax.Array:
        parts = self._prepare(latent, time, tokens, context, conditions)
        stack, layers, shared, x, ends = parts
        if not self.memory:
            x = self._plain(stack, layers, x, shared)
        elif self.stack == "unrolled":
            x, _ = stack.unrolled(layers, self.routers, x, shared)
        else:
            run = stack.recomputed if self.stack == "recomputed" else stack.scanned
            x = run(layers, pad_routers(self.routers, self.width), x, shared)
        return self._finish(x, *ends)

    def values(
        self,
        latent: jax.Array,
        time: jax.Array,
        text: jax.Array | None = None,
        image: jax.Array | None = None,
    ) -> dict[str, Any]:
        """Intermediate values of the forward pass, unrolled; arguments as of ``__call__``.

        Returns:
          ``tokens`` (``X_0``), ``time``, ``text``, ``image``, ``output``, and ``blocks``: for each
          block its ``state`` and, with memory, router ``weights`` and ``fused`` mixture.
        """
        tokens = self._tokens(text, image)
        stack, layers, shared, x, ends = self._prepare(latent, time, tokens, None)
        found = {**shared, "tokens": x, "temb": ends[0]}
        if self.memory:
            x, found["blocks"] = stack.unrolled(layers, self.routers, x, shared)
        else:
            found["blocks"] = []
            for layer in range(self.depth):
                own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], layers)
                x = stack.block(own, x, None, shared)
                found["blocks"].append({"state": x})
        return {**found, "output": self._finish(x, *ends)}

    def memory_weights(
        self,
        noisy: jax.Array,
        time: jax.Array,
        conditions: Conditions,
        drop: Drop = None,
        rows: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Largest and mean weight, over tokens, that each layer gives to each source, ``[L, L]``.

        Arguments as for ``denoise``; ``rows`` ``[B]`` is 0 for samples that do not count.

        Raises:
          VidlatentError: there is no layer memory.
        """
        if not self.memory:
            raise VidlatentError("this generator has no layer memory (config.generator.memory).")
        latent = join_input(noisy, self._given(noisy, conditions, drop))
        tokens = self._read(conditions, drop, noisy.shape[0])
        stack, layers, shared, x, _ = self._prepare(latent, time, tokens, None, conditions)
        rows = jnp.ones(noisy.shape[0]) if rows is None else rows
        routers = pad_routers(self.routers, self.width)
        return stack.memory_weights(layers, routers, x, shared, rows)

    def _contexts(self, tokens: dict[str, jax.Array]) -> Context:
        block = self._block()
        # Pairs of [L, B, S, K, d]
        return lax.map(
            lambda own: block.apply({"params": own}, **tokens, method="context"), self.blocks
        )

    def _tokens(self, text: jax.Array | None, image: jax.Array | None) -> dict[str, jax.Array]:
        if text is None:
            raise VidlatentError("the generator needs text tokens.")
        if self.label_classes:
            raise VidlatentError("a generator of class labels reads no text: call denoise.")
        check_shape(text, "B S D", D=self.text_dim)
        tokens = {"text": self.text_embedding(text)}
        if image is not None:
            if not self.image_dim:
                raise VidlatentError(
                    "image tokens for a generator with image_dim 0: leave them out."
                )
            check_shape(image, "B S D", B=text.shape[0], D=self.image_dim)
            tokens["image"] = self._image_tokens(image)
        elif self.image_dim and self.is_initializing():
            # Parameters must exist even if a model is initialised without an image.
            self._image_tokens(jnp.zeros((text.shape[0], 1, self.image_dim)))
        return tokens

    def _image_tokens(self, image: jax.Array) -> jax.Array:
        return self.image_norm2(self.image_embedding(self.image_norm1(image)))

    def _prepare(self, latent, time, tokens, context, conditions=MappingProxyType({})):
        """``(stack, layers, shared, X_0, (temb, grid))``."""
        sizes = check_shape(latent, "B T H W C", C=self.in_channels)
        check_shape(time, "B", B=sizes["B"])
        grid = patch_grid(tuple(sizes[name] for name in "THW"), self.patch)
        temb = self.time_embedding(time_features(time, self.freq_dim))
        if self.guidance_embed:
            scale = read_guidance(conditions, sizes["B"], self.is_initializing())
            temb = temb + self.guidance_embedding(scale)
        # [B, 6 D] -> [B, 6, D]; the head reads temb, before this projection (Wan2.1).
        shared = {"time": self.time_projection(nn.silu(temb)).reshape(-1, 6, self.width)}
        layers = {"params": self.blocks}
        if context is None:
            shared |= tokens
        else:
            # Cached keys and values are sliced with the layers that made them.
            layers["context"] = context
        x = self.patch_embedding(latent).astype(self.residual_dtype)
        # In NumPy: constants of the program, from angles in float64.
        tables = rope_tables(grid, self.width // self.heads)
        return self._stack(tables), layers, shared, x, (temb, grid)

    def _stack(self, tables: tuple[np.ndarray, np.ndarray]) -> Stack:
        block = self._block()

        def inputs(own, x, shared):
            return block.apply({"params": own["params"]}, x, shared["time"], method="inputs")

        def attend(own, x, mixture, shared):
            variables, time = {"params": own["params"]}, shared["time"]
            if "context" in own:
                return block.apply(
                    variables, x, mixture, time, own["context"], tables, method="attend"
                )
            tokens = {name: value for name, value in shared.items() if name != "time"}
            return block.apply(variables, x, mixture, time, tokens, tables)

        return Stack(inputs, attend, self.memory_norm == "pre", self.memory_stride)

    def _plain(self, stack: Stack, layers: Any, x: jax.Array, shared: Any) -> jax.Array:
        """Blocks without memory."""

        unroll = self.depth if self.stack == "unrolled" else 1
        return run_stacked(
            lambda x, own: stack.block(own, x, None, shared),
            x,
            layers,
            remat=self.remat,
            unroll=unroll,
        )

    def _finish(self, x: jax.Array, temb: jax.Array, grid: tuple[int, int, int]) -> jax.Array:
        """Head, and tokens back to latents; ``temb`` is the embedding before its projection."""
        shift, scale = jnp.split(self.head_modulation + temb[:, None], 2, axis=1)
        x = modulate(x, scale, shift, self.eps).astype(self.dtype)
        show_trunk(self, x)
        y = self.head(x)
        return from_patches(y.astype(jnp.float32), grid, self.patch)
