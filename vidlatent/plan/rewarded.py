"""Training steps by rewards (``grpo`` and ``refl``) with abstract arguments: no run is read.

A step is one program: of ``grpo`` the drawing, judging and learning, of ``refl`` the steps without
and with a gradient, decoder, rewards and update.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.data.text.tokens import WORDS
from vidlatent.latents.refiner_inputs import Parts
from vidlatent.latents.space import abstract_at_rest
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.plan.distill import refuse_to_load
from vidlatent.plan.generators import (
    assume_latents,
    assume_space,
    batch_shapes,
    make_step_program,
)
from vidlatent.plan.liveness import peak_bytes
from vidlatent.plan.program import Program
from vidlatent.plan.second_half import assume_parts, low_shape
from vidlatent.sample.judge import repeat_shown
from vidlatent.train.tasks.base import TASKS

__all__ = ["REWARDED", "build_reward_train", "estimate_judging"]

REWARDED = ("grpo", "refl")  # tasks
_ESTIMATES: dict[Any, int] = {}  # tracing takes long, and many machines share a result
# A caption of some length: prompts are padded to a bucket or to CLIP's 77 tokens anyway.
_PROMPT = " ".join(["word"] * 60)


def build_reward_train(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    """The step with all its networks: generator, decoder, rewards, and a refiner's parts.

    With ``config.plan.tokenizer`` that tokenizer decodes. Where a reward's tokenizer of texts is
    not named, words are hashed, which gives arrays of the same kind.
    """
    task, known, parts = _assume_task(config, bucket)
    config, tokens = task.config, _token_shapes(task, bucket[3])
    # As for a generator: the states of an empty text are left out.
    networks = {**task.adapters.frozen, **task.watch.frozen}
    networks |= {} if parts is None else parts.frozen
    if config.task == "grpo" and config.rl.kl_weight and config.rl.kl_kind != "log_ratio":
        networks["reference"] = FrozenNetwork(abstract_at_rest(task.model), refuse_to_load)
    program = make_step_program(task, mesh, bucket, {**known, **tokens}, networks, tuple(tokens))
    return dataclasses.replace(program, about=_tell(program.about, config, bucket[3]))


def estimate_judging(config: ConfigDict, bucket: tuple[int, ...]) -> int:
    """Bytes that decoder and rewards hold at most at once, beside their parameters.

    By the order of the traced program (``plan.liveness``); of ``refl`` with the way back to the
    latents, of ``grpo`` for one part of a group.

    Args:
      config: of a task by rewards.
      bucket: frames, height, width, prompts of one device.
    """
    place = configs.config_hash(config), bucket
    if place not in _ESTIMATES:
        _ESTIMATES[place] = _estimate(config, bucket)
    return _ESTIMATES[place]


def _estimate(config: ConfigDict, bucket: tuple[int, ...]) -> int:
    task, known, _ = _assume_task(config, bucket)
    config, rl, refl = task.config, task.config.rl, task.config.refl
    frozen = {name: network.abstract for name, network in task.watch.frozen.items()}
    latent = known["latent"]
    batch, length, *rest = latent.shape
    first = jax.ShapeDtypeStruct((batch, 1, *rest), latent.dtype)
    arrays = {name: known[name] for name in task.judge.decoder.arrays}
    arrays |= _token_shapes(task, batch)
    shown = jax.eval_shape(task.judge.show, arrays, frozen, first)

    def learn(frozen, latent, shown):
        def lose(each):
            return sum(scores.mean() for scores in each.values())

        if refl.stream:
            return task.judge.differentiate(frozen, latent, shown, lose)[2]
        return jax.grad(lambda x: task.judge.lose(frozen, x, shown, lose)[0])(latent)

    if config.task == "refl":
        seen = jax.ShapeDtypeStruct((batch, refl.latents or length, *rest), latent.dtype)
        return peak_bytes(jax.make_jaxpr(learn)(frozen, seen, shown))
    members = rl.group // rl.parts
    many = jax.ShapeDtypeStruct((batch * members, length, *rest), latent.dtype)
    shown = jax.eval_shape(lambda x: repeat_shown(x, batch, members), shown)
    return peak_bytes(jax.make_jaxpr(task.judge.score)(frozen, many, shown))


def _assume_task(
    config: ConfigDict, bucket: tuple[int, ...]
) -> tuple[Any, dict[str, jax.ShapeDtypeStruct], Parts | None]:
    """The task, the shapes of all arrays that a batch may hold, and a refiner's parts."""
    tokenizer = assume_space(config)[2]
    config, model, latents = assume_latents(config)
    config = _assume_texts(config)
    known, parts = batch_shapes(model, latents, bucket), None
    if configs.role_of(config) == "refiner" or config.encode.low:
        # The base model is sampled here, by its own steps and guidance.
        base = None if config.refiner.base else configs.load(config.plan.base)
        parts = assume_parts(config, latents, base)
        known |= low_shape(latents, bucket)
        config = config.copy_and_resolve_references()
        with config.unlocked():
            # What names a base model is a refiner; the plan's has no run to be named.
            config.refiner.base = config.refiner.base or "none"
    make: Any = TASKS.get(config.task)
    return make(config, model, latents, parts, tokenizer), known, parts


def _token_shapes(task: Any, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What the rewards' tokenizers make of a batch's prompts, by the names of the arrays."""
    given = {"mask": np.ones(batch, np.float32), "caption": [_PROMPT] * batch}
    prompts = task.watch.read_prompts(given, ())
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in prompts.items()}


def _tell(about: str, config: ConfigDict, batch: int) -> str:
    each = f" with {config.rl.group} samples each" if config.task == "grpo" else ""
    return about.replace(f"a batch of {batch} clips", f"{batch} prompts{each},")


def _assume_texts(config: ConfigDict) -> ConfigDict:
    found = config.copy_and_resolve_references()
    with found.unlocked():
        for options in found.rewards.values():
            if isinstance(options, ConfigDict) and options.get("tokenizer", WORDS) == "":
                options.tokenizer = WORDS
    return found
