"""Training a latent upsampler: FSVideo's eq. 9 (2.4.1).

The clip at half size is encoded, upsampled, and compared with the clip's own latent; decoded by the
frozen decoder, it is compared with the clip's pixels by the terms of ``config.loss``.
"""

from __future__ import annotations

import contextlib
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
from vidlatent.evaluate.upsampler import (
    UpsamplerScorer,
    UpsamplerScores,
    measure_clips,
    write_upsampler_report,
)
from vidlatent.latents.pairs import check_halves
from vidlatent.latents.pixels import from_pixels
from vidlatent.latents.refiner_inputs import abstract_upsampler, upsampler_of
from vidlatent.latents.space import Latents, load_latents
from vidlatent.latents.upsampler import UpsamplerNetworks
from vidlatent.losses import LossInputs
from vidlatent.losses.base import mean_over_samples
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.models.pretrained import network_shapes
from vidlatent.models.pretrained.load import load_network_params
from vidlatent.train.adapters import Adapters
from vidlatent.train.freeze import stop_frozen_gradients
from vidlatent.train.loss_terms import LossTerms
from vidlatent.train.optim import make_learning_rate, make_optimizer
from vidlatent.train.patches import decode_random_patch
from vidlatent.train.state import State, init_state
from vidlatent.train.tasks.base import Player, select_arrays
from vidlatent.train.update import make_slice_keys, update_by_loss

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
      networks: the upsampler, what makes its pairs, and the decoder.
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
        self.networks = UpsamplerNetworks(config, self.latents, tokenizer)
        self.model, self.spec = self.networks.model, self.latents.spec
        self._check()
        self.adapters = Adapters(config, self.family, lambda: abstract_upsampler(self.model))
        self.optimizer = make_optimizer(config)
        self.rate = make_learning_rate(config, config.train.steps)
        self.reader, self.arrays = self.networks.reader, self.networks.arrays
        self.terms = LossTerms(config.loss.to_dict()) if config.loss else None
        self.eval_step = functools.partial(measure_clips, self.networks)

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

    def read_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return select_arrays(batch, self.arrays)

    @property
    def family(self) -> str:
        return self.config.generator.name

    @functools.cached_property
    def frozen(self) -> dict[str, FrozenNetwork]:
        """The tokenizer, if it encodes or decodes, and the networks of the loss terms.

        With adapters, the weights that they adapt besides.
        """

        def describe(name):
            load = functools.partial(load_network_params, name, self.config.networks[name])
            return FrozenNetwork(network_shapes(name), load)

        names = self.terms.networks if self.terms is not None else ()
        networks = {name: describe(name) for name in names}
        return {**self.networks.frozen, **networks, **self.adapters.frozen}

    @staticmethod
    def abstract_params(config: ConfigDict) -> Any:
        return abstract_upsampler(upsampler_of(config))

    def init(self, key: jax.Array) -> State:
        latent = jnp.zeros((1, 1, 2, 2, self.model.latent_channels), jnp.float32)
        params = self.model.init(key, latent)["params"]
        return init_state(self.adapters.init(key, params), self.optimizer)

    def train_step(
        self, state: State, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any]
    ) -> tuple[State, dict[str, jax.Array]]:
        def compute_loss(params, rows, number):
            return self.compute_loss(params, rows, frozen, state["step"], number)

        state, report = update_by_loss(
            state,
            batch,
            compute_loss,
            config=self.config,
            optimizer=self.optimizer,
            rate=self.rate,
        )
        if self.terms is not None:
            report = self.terms.label_random(report, self.config.networks)
        return state, report

    def compute_loss(
        self, params: Any, batch: Mapping[str, jax.Array], frozen: Any, step: Any, number: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Eq. 9 of a slice of the batch: the weighted sum, and its terms without their weights."""
        key = make_slice_keys(self.config.seed, step, number)
        high = self.reader(batch, frozen, key("latent"))
        low = self.reader.read_low(batch, frozen, key("latent_low"))
        params = self.adapters.merge(params, frozen)
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
        options, params = self.config.upsampling, frozen["tokenizer"]
        model = self.networks.tokenizer
        condition, video = self.networks.make_condition(batch, params), None
        if "video" in batch and options.target != "decoded":
            video = from_pixels(batch["video"])
        cells = options.patch_latents * self.spec.h // model.patch_cell if model.patch_cell else 0

        def decode(latent):
            frames = options.frames or latent.shape[1]
            return self.networks.decode(params, latent[:, :frames], condition)

        if cells and video is not None:
            latent = self.latents.space.restore_traced(upsampled)
            return decode_random_patch(
                model, params, latent, condition, video, key, cells, options.frames
            )
        prediction = decode(upsampled)
        if video is None:
            return prediction, jax.lax.stop_gradient(decode(high))
        return prediction, video[:, : prediction.shape[1]]

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


class UpsamplerValidation:
    """Latent L1 of the EMA weights on validation clips (``tasks.base.Validation``)."""

    def __init__(
        self,
        task: UpsamplerTask,
        run: Any,
        frozen: Mapping[str, Any],
        mesh: Mesh,
        make_loader: Callable[[], Any],
    ):
        self._make_loader = make_loader
        self._merge = functools.partial(task.adapters.merge_for_evaluation, frozen=frozen)
        self._score = UpsamplerScorer(task.networks, self._merge(run.state["ema"]), frozen, mesh)

    def __call__(self, run: Any) -> UpsamplerScores:
        with contextlib.closing(self._make_loader()) as loader:
            return self._score(self._merge(run.state["ema"]), loader)

    def pictures(self, result: UpsamplerScores) -> dict[str, bytes]:
        return {"val/upsampled": result.sheet} if result.sheet else {}

    def write(self, run: Any, result: UpsamplerScores, folder: Path) -> list[str]:
        return write_upsampler_report(
            result, folder, config=run.config, step=run.step, workdir=run.workdir
        )
