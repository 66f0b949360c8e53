"""Training a latent upsampler: FSVideo's eq. 9 (2.4.1).

The clip at half size is encoded, upsampled, and compared with the clip's own latent; decoded by the
frozen decoder, it is compared with the clip's pixels by the terms of ``config.loss``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.evaluate.upsampler import UpsamplerValidation, interpolate, measure_distances
from vidlatent.latents.pairs import check_halves
from vidlatent.latents.pixels import from_pixels
from vidlatent.latents.reader import LatentReader, describe_tokenizer
from vidlatent.latents.refiner_inputs import abstract_upsampler, upsampler_of
from vidlatent.latents.space import Latents, load_latents, read_tokenizer_config
from vidlatent.losses import LossInputs
from vidlatent.losses.base import mean_over_samples
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.models.load import model_of
from vidlatent.models.pretrained import network_shapes
from vidlatent.models.pretrained.load import load_network_params
from vidlatent.train.freeze import stop_frozen_gradients
from vidlatent.train.loss_terms import LossTerms
from vidlatent.train.microbatches import accumulate_gradients
from vidlatent.train.optim import make_learning_rate, make_optimizer
from vidlatent.train.patches import decode_random_patch
from vidlatent.train.state import State, apply_gradients, init_state, random_key
from vidlatent.train.tasks.base import Player

__all__ = ["UpsamplerTask"]


class UpsamplerTask:
    """Trains ``config.generator``, a name of ``UPSAMPLERS`` (``tasks.base.Task``).

    Batches hold ``latent`` and ``latent_low`` of a set that was encoded with
    ``config.encode.low=2``, or ``video`` uint8 ``[B, T, H, W, 3]``; and ``mask`` float32 ``[B]``.

    Args:
      config: of the run.
      latents: facts about the latents; None makes them from the config.
      tokenizer: config of the frozen tokenizer, if its run need not be there; None reads that of
        ``config.tokenizer``, and checks that the data hold pairs.

    Attributes:
      reader: reads or makes latents of both sizes.
      decodes: whether pixels are compared, too.
    """

    players: Mapping[str, Player] = {}

    def __init__(
        self,
        config: ConfigDict,
        latents: Latents | None = None,
        tokenizer: ConfigDict | None = None,
    ):
        self.config = config
        self.latents: Latents = load_latents(config) if latents is None else latents
        self.model, self.spec = upsampler_of(config), self.latents.spec
        self._check()
        self.optimizer = make_optimizer(config)
        self.rate = make_learning_rate(config, config.train.steps)
        self.reader = LatentReader(config, self.latents, tokenizer)
        if tokenizer is None:
            self.reader.check_low()
        self.terms = LossTerms(config.loss.to_dict()) if config.loss else None
        self.decodes = self.terms is not None
        # Without terms on frames it is never asked for anything.
        self.tokenizer: Any = None
        if self.decodes:
            self.tokenizer = model_of(tokenizer or read_tokenizer_config(config))
        own = ("content",) if self._reads_stored_frame() else ()
        self.arrays = (*self.reader.arrays, *self.reader.low_arrays, *own)
        self.eval_step = self._measure

    def _check(self) -> None:
        channels = self.spec.channels
        if self.model.latent_channels != channels:
            raise VidlatentError(
                f"config.generator.latent_channels is {self.model.latent_channels}, but the "
                f"latents of {self.spec.name} have {channels}: set it to {channels}, or to -1."
            )
        sizes = [tuple(bucket[:3]) for bucket in self.config.data.buckets]
        check_halves(self.spec.whole, sizes, "the upsampler")
        if self.config.upsampling.target == "video" and self.config.data.source == "latents":
            raise VidlatentError(
                "config.upsampling.target is 'video', but a latent set holds no frames: train "
                "from videos (config.data.source=folder), or set it to 'decoded' or 'auto'."
            )

    def _reads_stored_frame(self) -> bool:
        """Whether the decoder reads a frame that only the set has."""
        if not self.decodes or self.reader.tokenizer is not None:
            return False
        return self.tokenizer.condition_kind != "none"

    @property
    def family(self) -> str:
        return self.config.generator.name

    @functools.cached_property
    def frozen(self) -> dict[str, FrozenNetwork]:
        """The tokenizer, if it encodes or decodes, and the networks of the loss terms."""
        if self.terms is None:
            return self.reader.frozen
        model, channels = self.tokenizer, self.spec.channels
        latent = jax.ShapeDtypeStruct((1, 1, 2, 2, channels), jnp.float32)
        video = jax.ShapeDtypeStruct(
            (1, self.spec.rule.first, 2 * self.spec.h, 2 * self.spec.w, 3), jnp.float32
        )

        def use(params):
            def run(latent, video):
                code = functools.partial(model.apply, {"params": params})
                condition = code(video, method="make_condition")
                decoded = code(latent, condition=condition, method="decode")[0]
                return decoded, code(video, method="encode")[0].mode()

            zeros = (jnp.zeros(leaf.shape, leaf.dtype) for leaf in (latent, video))
            return run(*zeros)

        def describe(name):
            load = functools.partial(load_network_params, name, self.config.networks[name])
            return FrozenNetwork(network_shapes(name), load)

        networks = {name: describe(name) for name in self.terms.networks}
        return {"tokenizer": describe_tokenizer(self.config, model, use), **networks}

    @staticmethod
    def abstract_params(config: ConfigDict) -> Any:
        return abstract_upsampler(upsampler_of(config))

    def init(self, key: jax.Array) -> State:
        latent = jnp.zeros((1, 1, 2, 2, self.model.latent_channels), jnp.float32)
        return init_state(self.model.init(key, latent)["params"], self.optimizer)

    def train_step(
        self, state: State, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any]
    ) -> tuple[State, dict[str, jax.Array]]:
        def compute(rows, number):
            return jax.value_and_grad(self.compute_loss, has_aux=True)(
                state["params"], rows, frozen, state["step"], number
            )

        if self.config.optim.accumulate == 1:
            (loss, report), gradients = compute(batch, 0)
        else:
            (loss, report), gradients = accumulate_gradients(
                compute, batch, self.config.optim.accumulate
            )
        state, more = apply_gradients(
            state,
            gradients,
            loss,
            optimizer=self.optimizer,
            rate=self.rate,
            ema_decay=self.config.optim.ema_decay,
        )
        if self.terms is not None:
            report = self.terms.label_random(report, self.config.networks)
        return state, {"loss": loss, **report, **more}

    def compute_loss(
        self, params: Any, batch: Mapping[str, jax.Array], frozen: Any, step: Any, number: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Eq. 9 of a slice of the batch: the weighted sum, and its terms without their weights."""

        def key(stream):
            return jax.random.fold_in(random_key(self.config.seed, stream, step), number)

        high = self.reader(batch, frozen, key("latent"))
        low = self.reader.read_low(batch, frozen, key("latent_low"))
        params = stop_frozen_gradients(params, self.config.optim.freeze)
        upsampled = self.model.apply({"params": params}, low)
        latent = mean_over_samples(jnp.abs(upsampled - high), batch["mask"])
        loss, report = self.config.upsampling.latent_weight * latent, {"latent_l1": latent}
        if self.terms is not None:
            prediction, target = self._decode(upsampled, high, batch, frozen, key("patch"))
            inputs = LossInputs(prediction, target, batch["mask"], key=key("loss"))
            decoded, terms = self.terms(inputs, {}, frozen, step=step)
            loss, report = loss + decoded, report | terms
        return loss, report

    def _decode(
        self,
        upsampled: jax.Array,
        high: jax.Array,
        batch: Mapping[str, jax.Array],
        frozen: Mapping[str, Any],
        key: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Frames of the upsampled latent, and what they are compared with, ``[B, T, H, W, 3]``."""
        options, params, model = self.config.upsampling, frozen["tokenizer"], self.tokenizer
        condition, video = self._make_condition(batch, params), None
        if "video" in batch and options.target != "decoded":
            video = from_pixels(batch["video"])
        cells = options.patch_latents * self.spec.h // model.patch_cell if model.patch_cell else 0

        def decode(latent):
            frames = options.frames or latent.shape[1]
            return self._run_decoder(params, latent[:, :frames], condition)

        if cells and video is not None:
            latent = self.latents.space.restore_traced(upsampled)
            return decode_random_patch(
                model, params, latent, condition, video, key, cells, options.frames
            )
        prediction = decode(upsampled)
        if video is None:
            return prediction, jax.lax.stop_gradient(decode(high))
        return prediction, video[:, : prediction.shape[1]]

    def _make_condition(self, batch: Mapping[str, jax.Array], params: Any) -> Any:
        """What the decoder reads of the large clip: its own first frame, as in sampling."""
        run = functools.partial(self.tokenizer.apply, {"params": params})
        if self.tokenizer.condition_kind == "none":
            return None
        if "video" in batch:
            return run(from_pixels(batch["video"]), method="make_condition")
        frames = batch["content"]  # [B, n, H, W, 3]
        frames = from_pixels(frames).reshape(-1, *frames.shape[2:])
        return run(frames, method="encode_condition")

    def _measure(self, params: Any, frozen: Any, batch: Any) -> dict[str, jax.Array]:
        """``[B]`` each, by name: see ``evaluate.upsampler.measure_distances``."""
        low, high, upsampled = self._upsample(params, frozen, batch)
        return measure_distances(upsampled, low, high)

    def _upsample(self, params: Any, frozen: Any, batch: Any) -> tuple[jax.Array, ...]:
        key = jax.random.key(0)  # the same draws at every evaluation
        high, low = self.reader(batch, frozen, key), self.reader.read_low(batch, frozen, key)
        return low, high, self.model.apply({"params": params}, low)

    def show(self, params: Any, frozen: Any, batch: Any) -> dict[str, jax.Array]:
        """What to look at, by name: decoded clips ``[B, T, H, W, 3]``, or latents alone."""
        low, high, upsampled = self._upsample(params, frozen, batch)
        if not self.decodes:
            return {"upsampled": upsampled}
        params, condition = frozen["tokenizer"], self._make_condition(batch, frozen["tokenizer"])
        latents = {
            "own latent": high,
            "nearest": interpolate(low, "nearest"),
            "bicubic": interpolate(low, "cubic"),
            "upsampled": upsampled,
        }
        return {name: self._run_decoder(params, x, condition) for name, x in latents.items()}

    def _run_decoder(self, params: Any, latent: jax.Array, condition: Any) -> jax.Array:
        latent = self.latents.space.restore_traced(latent)
        return self.tokenizer.apply(
            {"params": params}, latent, condition=condition, method="decode"
        )[0]

    def make_validation(
        self, run: Any, frozen: Mapping[str, Any], mesh: Mesh, make_loader: Callable[[], Any]
    ) -> UpsamplerValidation:
        return UpsamplerValidation(self, run, frozen, mesh, make_loader)

    def begin(self, workdir: Path, step: int, labels: Sequence[str]) -> None:
        """Store the latent space, which refiner and cascade compare with their own."""
        dataclasses.replace(self.latents, label_names=tuple(labels)).write_or_check(workdir, step)

    def inherit_players(self, former: ConfigDict) -> tuple[str, ...]:
        del former
        return ()
