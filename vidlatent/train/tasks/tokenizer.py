"""Training a tokenizer: reconstruct, sum the loss terms, add the adversarial loss, update.

``config.loss`` lists the loss terms, ``config.discriminator`` configures the adversarial loss.

The model runs forward once. Each loss gives a gradient with respect to the model's outputs, and
their weighted sum is propagated back through the model in a single backward pass.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent.errors import VidlatentError
from vidlatent.evaluate.tokenizer import (
    Evaluation,
    choose_eval_coder,
    compile_eval_step,
    evaluate,
    tokenizer_eval_step,
)
from vidlatent.evaluate.tokenizer_report import make_pictures_sheet, write_evaluation
from vidlatent.latents.pixels import from_pixels
from vidlatent.losses import DecoderInputs, LossInputs
from vidlatent.losses.adversarial import adaptive_weight
from vidlatent.media.write import side_by_side
from vidlatent.metrics import make_metrics
from vidlatent.models.frozen import FrozenNetwork, hold_in
from vidlatent.models.load import abstract_params, model_of, smallest_video
from vidlatent.models.pretrained import network_shapes
from vidlatent.models.pretrained.load import load_network_params
from vidlatent.parallel.paths import match_path, path_name
from vidlatent.parallel.sharding import constrain
from vidlatent.train.adapters import Adapters
from vidlatent.train.discriminator import AdversarialResult, DiscriminatorTrainer
from vidlatent.train.freeze import stop_frozen_gradients
from vidlatent.train.loss_terms import LossTerms
from vidlatent.train.microbatches import accumulate_gradients
from vidlatent.train.optim import make_learning_rate, make_optimizer
from vidlatent.train.patches import make_reconstruct
from vidlatent.train.state import PlayerUpdate, State, apply_gradients, init_player, init_state
from vidlatent.train.tasks.base import Player, select_arrays
from vidlatent.train.update import make_slice_keys

__all__ = ["Gradients", "TokenizerTask"]

_VIDEOS = 2  # of a validation, for TensorBoard

VIDEO_AXES = ("batch", "time", "height", "width", "channel")


class Gradients(NamedTuple):
    """Gradients of one batch.

    Attributes:
      params: gradient of the model's parameters.
      helpers: gradient of the loss terms' own parameters.
      adversarial: the discriminator's losses and gradients; None if this batch is not shown to it.
      loss: sum of the weighted losses, float32 scalar.
      report: float32 scalars to log.
    """

    params: Any
    helpers: Any
    adversarial: AdversarialResult | None
    loss: jax.Array
    report: dict[str, jax.Array]


class TokenizerTask:
    """Trains ``config.model`` to reconstruct (``tasks.base.Task``).

    Batches hold ``video`` uint8 ``[B, T, H, W, 3]`` and ``mask`` float32 ``[B]``, 0 for padding.

    Args:
      config: of the run.
      model: the tokenizer, if it is not to be made from ``config.model``.

    Attributes:
      terms: the weighted loss terms.
      discriminator: the discriminator's trainer; None if the config has no discriminator.
    """

    arrays = ("video", "mask")
    # "helpers" are the parameters of loss terms. Discriminators are replicated: they are small, and
    # XLA gets strided convolutions of even width wrong once a kernel's input axis is sharded.
    players = {
        "helpers": Player("config.optim.lr"),
        "discriminator": Player("config.discriminator.optim.lr", whole=True),
    }

    def __init__(self, config: ConfigDict, model: Any = None):
        self.config = config
        self.model = model_of(config) if model is None else model
        self.spec = self.model.latent_spec
        self.adapters = Adapters(config, self.family, self._describe_held)
        self.optimizer = make_optimizer(config)
        self.rate = make_learning_rate(config, config.train.steps)
        self.reconstruct = make_reconstruct(config, self.model)
        self.terms = LossTerms(config.loss.to_dict())
        self.discriminator = None
        if config.discriminator.model:
            key = "config.discriminator.adaptive_terms"
            self.terms.check(config.discriminator.adaptive_terms, key)
            self.discriminator = DiscriminatorTrainer(config, self.model.dtype)
        self.eval_step = tokenizer_eval_step(
            self.model,
            preservation=config.eval.preservation,
            coder=choose_eval_coder(config, self.model),
        )

    def read_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return select_arrays(batch, self.arrays)

    @property
    def family(self) -> str:
        return self.config.model.name

    @functools.cached_property
    def frozen(self) -> dict[str, FrozenNetwork]:
        """The networks whose features the loss terms compare, and the weights that are adapted."""

        def describe(name):
            load = functools.partial(load_network_params, name, self.config.networks[name])
            return FrozenNetwork(network_shapes(name), load)

        networks = {name: describe(name) for name in self.terms.networks}
        return {**networks, **self.adapters.frozen}

    def _describe_held(self) -> Any:
        """The parameters as the step holds them where adapters are trained."""
        video = jnp.zeros(smallest_video(self.spec), jnp.float32)

        def reconstruct(params):
            return self.model.apply({"params": params}, video, rngs={"noise": jax.random.key(0)})

        return hold_in(self.model.dtype, abstract_params(self.model), reconstruct)

    @staticmethod
    def abstract_params(config: ConfigDict) -> Any:
        return abstract_params(model_of(config))

    def init(self, key: jax.Array) -> State:
        video = jnp.zeros(smallest_video(self.spec), jnp.float32)
        players = {}
        # Keys by fixed numbers: a run with a discriminator starts from the same helpers as one
        # without.
        if helpers := self.terms.init(jax.random.fold_in(key, 1), self.spec):
            players["helpers"] = init_player(helpers, self.optimizer)
        if self.discriminator is not None:
            # Some discriminators flatten their input, so their parameters depend on the clip size.
            clip = max(self.config.data.buckets, key=lambda bucket: bucket[0])[:3]
            players["discriminator"] = self.discriminator.init(jax.random.fold_in(key, 2), clip)
        params = self.adapters.init(key, self.model.init(key, video)["params"])
        return init_state(params, self.optimizer, **players)

    def train_step(
        self, state: State, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any]
    ) -> tuple[State, dict[str, jax.Array]]:
        gradients = self.compute_gradients(state, batch, frozen)
        players = {}
        if "helpers" in state:
            rate = self.rate(state["step"])
            # Helpers follow the model's optimizer settings, with moments of their own.
            players["helpers"] = PlayerUpdate(gradients.helpers, self.optimizer, rate)
        if self.discriminator is not None and gradients.adversarial is not None:
            update = self.discriminator.make_update(gradients.adversarial, state["step"])
            players["discriminator"] = update
        state, report = apply_gradients(
            state,
            gradients.params,
            gradients.loss,
            optimizer=self.optimizer,
            rate=self.rate,
            ema_decay=self.config.optim.ema_decay,
            players=players,
        )
        values = self.terms.label_random(gradients.report, self.config.networks)
        return state, {"loss": gradients.loss, **values, **report}

    def compute_gradients(
        self, state: State, batch: Mapping[str, jax.Array], frozen: Mapping[str, Any]
    ) -> Gradients:
        """Means over ``config.optim.accumulate`` equal slices of the batch, one after another."""

        def compute(rows, number):
            gradients = self._differentiate(state, rows, frozen, number)
            if gradients.adversarial is None:
                return gradients
            # This gradient has served its purpose and is as large as the video: do not sum it.
            small = gradients.adversarial._replace(to_prediction=jnp.float32(0))
            return gradients._replace(adversarial=small)

        return accumulate_gradients(compute, batch, self.config.optim.accumulate)

    def _differentiate(self, state: State, batch: Any, frozen: Any, number: Any) -> Gradients:
        """Gradients of one slice of the batch; ``number`` gives each slice other random numbers."""
        step = state["step"]
        key = make_slice_keys(self.config.seed, step, number)
        # Random streams that models use in training: decoder noise, the choice of Reducio's
        # content frame, and the latent sample.
        # Without a stream "latent", models decode the mean of the posterior.
        streams = ("noise", "content") + ("latent",) * self.config.train.sample_latent
        rngs = {stream: key(stream) for stream in streams}
        # Batches arrive split by samples; from here on they are split by height as well.
        video = constrain(from_pixels(batch["video"]), VIDEO_AXES)

        def reconstruct(params):
            params = stop_frozen_gradients(params, self.config.optim.freeze)
            (prediction, posterior), target = self.reconstruct(params, video, rngs, key("patch"))
            more = self._decode_more(params, posterior, video, batch["mask"], rngs, key, frozen)
            return (prediction, (posterior, more)), target

        # One forward pass; the adaptive weight and the update each pull gradients back through it.
        # Of merged kernels, so that the adaptive weight is the same with adapters.
        params, pull_to_trained = self.adapters.open(state["params"], frozen)
        (prediction, others), pullback, target = jax.vjp(reconstruct, params, has_aux=True)
        helpers = state["helpers"]["params"] if "helpers" in state else {}

        def sum_terms(prediction, others, helpers, only=()):
            posterior, more = others
            inputs = LossInputs(prediction, target, batch["mask"], posterior, key("loss"), more)
            return self.terms(inputs, helpers, frozen, only, step)

        # Gradients with respect to the model's outputs; its own backward pass comes at the end.
        (loss, report), (to_prediction, to_others, to_helpers) = jax.value_and_grad(
            sum_terms, argnums=(0, 1, 2), has_aux=True
        )(prediction, others, helpers)
        result = None
        # Decided while tracing: batches of pictures and of clips are programs of their own.
        if self.discriminator is not None and self.discriminator.accepts(target.shape[1]):
            result = self.discriminator.compute_losses(
                state["discriminator"], prediction, target, step, key("r1")
            )
            weight = result.weight
            if self.config.discriminator.adaptive_layer:
                only = tuple(self.config.discriminator.adaptive_terms)
                weight *= self._compute_ratio(
                    pullback,
                    jax.grad(sum_terms, has_aux=True)(prediction, others, helpers, only)[0],
                    result.to_prediction,
                    # The ratio is about gradients through the pixels: terms on the posterior,
                    # such as KL, stay out.
                    jax.tree.map(jnp.zeros_like, others),
                )
            # Adding weighted gradients is the same as differentiating the weighted sum.
            loss += weight * result.loss
            to_prediction += weight * result.to_prediction
            # Without its weight, as all terms are reported, and the weight beside it.
            report |= {"adversarial": result.loss, "adversarial_weight": weight, **result.report}
        (gradients,) = pull_to_trained(pullback((to_prediction, to_others))[0])
        return Gradients(gradients, to_helpers, result, loss, report)

    def _decode_more(
        self, params: Any, posterior: Any, video: Any, mask: Any, rngs: Any, key: Any, frozen: Any
    ) -> dict[str, jax.Array]:
        """Values of the loss terms that decode other latents than the clip's."""
        if not self.terms.decodes:
            return {}

        def decode(latent, video):
            def run(method, *args, **given):
                return self.model.apply(
                    {"params": params}, *args, **given, rngs=rngs, method=method
                )

            return run("decode", latent, condition=run("make_condition", video))[0]

        # A draw of its own: the one of the reconstruction is known inside the model only.
        drawn = self.config.train.sample_latent
        latent = posterior.sample(key("latent")) if drawn else posterior.mode()
        return self.terms.decode(DecoderInputs(decode, latent, video, mask, key("loss")), frozen)

    def _compute_ratio(
        self, pullback: Callable, reconstruction: Any, adversarial: Any, no_others: Any
    ) -> jax.Array:
        """Ratio of gradient norms, reconstruction over adversarial, at the adaptive layer.

        ``reconstruction`` and ``adversarial`` are gradients with respect to the prediction,
        ``[B, T, H, W, 3]``; the layer is ``config.discriminator.adaptive_layer`` (VQGAN).
        """
        return adaptive_weight(
            self._pick_layer(pullback((reconstruction, no_others))[0]),
            self._pick_layer(pullback((adversarial, no_others))[0]),
        )

    def _pick_layer(self, gradients: Any) -> list[jax.Array]:
        """Gradients of the kernels that ``config.discriminator.adaptive_layer`` matches.

        The other gradients stay unused, so the compiler removes the rest of that backward pass.
        """
        key, pattern = (
            "config.discriminator.adaptive_layer",
            self.config.discriminator.adaptive_layer,
        )
        leaves = jax.tree_util.tree_leaves_with_path(gradients)
        named = [(path_name(path), leaf) for path, leaf in leaves]
        found = [leaf for name, leaf in named if match_path(pattern, name, key)]
        if not found:
            raise VidlatentError(
                f"{key} {pattern!r} matches no parameter of this model; its last ones are "
                f"{', '.join(name for name, _ in named[-3:])}."
            )
        return found

    def make_validation(
        self, run: Any, frozen: Mapping[str, Any], mesh: Mesh, make_loader: Callable[[], Any]
    ) -> TokenizerValidation:
        # Of the frozen networks it needs the adapted weights: metrics have networks of their own.
        return TokenizerValidation(self, run, frozen, mesh, make_loader)

    def begin(self, workdir: Path, step: int, labels: Sequence[str]) -> None:
        """Do nothing: config and checkpoints are all that later modes need of a tokenizer."""

    def inherit_players(self, former: ConfigDict) -> tuple[str, ...]:
        """The discriminator, if ``config.discriminator.inherit`` and both runs have the same."""
        if self.discriminator is None or not self.config.discriminator.inherit:
            return ()
        ours, theirs = (c.discriminator.model.to_dict() for c in (self.config, former))
        if ours == theirs:
            return ("discriminator",)
        logging.info("the run had no discriminator like this run's: it starts anew")
        return ()


class TokenizerValidation:
    """Scores the EMA parameters on the validation clips (``tasks.base.Validation``)."""

    def __init__(
        self,
        task: TokenizerTask,
        run: Any,
        frozen: Mapping[str, Any],
        mesh: Mesh,
        make_loader: Callable[[], Any],
    ):
        self._make_loader = make_loader
        self._metrics = make_metrics(
            run.config.eval.training_metrics,
            run.config.networks,
            random_networks=run.config.eval.random_networks,
            is_splits=run.config.eval.is_splits,
        )
        self._merge = functools.partial(task.adapters.merge_for_evaluation, frozen=frozen)
        params = self._merge(run.state["ema"])
        self._eval_step = compile_eval_step(task.eval_step, mesh, params, self._metrics)

    def __call__(self, run: Any) -> Evaluation:
        with contextlib.closing(self._make_loader()) as loader:
            return evaluate(
                self._eval_step,
                self._merge(run.state["ema"]),
                loader,
                run.config.eval.pictures,
                spec=run.spec,
                metrics=self._metrics,
            )

    def pictures(self, result: Evaluation) -> dict[str, bytes]:
        if not result.pictures:
            return {}
        return {"val/original_above_reconstruction": make_pictures_sheet(result.pictures)}

    def videos(self, result: Evaluation) -> dict[str, np.ndarray]:
        pairs = [pair for pair in result.pictures if len(pair.original) > 1][:_VIDEOS]
        return {
            f"val/original_and_reconstruction/{number}": side_by_side(
                pair.original, pair.reconstruction
            )
            for number, pair in enumerate(pairs)
        }

    def write(self, run: Any, result: Evaluation, folder: Path) -> list[str]:
        write_evaluation(result, folder, config=run.config, step=run.step, workdir=run.workdir)
        return ["report.html", "contact_sheet.png", "side_by_side_0.mp4"]
