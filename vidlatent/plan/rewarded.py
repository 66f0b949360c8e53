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
from vidlatent.latents.space import abstract_at_rest
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.plan.distill import refuse_to_load
from vidlatent.plan.generators import (
    assume_latents,
    assume_space,
    batch_shapes,
    make_step_program,
)
from vidlatent.plan.program import Program
from vidlatent.plan.second_half import assume_parts, low_shape
from vidlatent.train.tasks.base import TASKS

__all__ = ["build_reward_train"]

# A caption of some length: prompts are padded to a bucket or to CLIP's 77 tokens anyway.
_PROMPT = " ".join(["word"] * 60)


def build_reward_train(config: ConfigDict, mesh: Mesh, bucket: tuple[int, ...]) -> Program:
    """The step with all its networks: generator, decoder, rewards, and a refiner's parts.

    With ``config.plan.tokenizer`` that tokenizer decodes. Where a reward's tokenizer of texts is
    not named, words are hashed, which gives arrays of the same kind.
    """
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
    task = make(config, model, latents, parts, tokenizer)
    batch = bucket[3]
    prompts = task.watch.read_prompts(
        {"mask": np.ones(batch, np.float32), "caption": [_PROMPT] * batch}, ()
    )
    tokens = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in prompts.items()}
    # As for a generator: the states of an empty text are left out.
    networks = {**task.adapters.frozen, **task.watch.frozen}
    networks |= {} if parts is None else parts.frozen
    if config.task == "grpo" and config.rl.kl_weight and config.rl.kl_kind != "log_ratio":
        networks["reference"] = FrozenNetwork(abstract_at_rest(model), refuse_to_load)
    program = make_step_program(task, mesh, bucket, {**known, **tokens}, networks, tuple(tokens))
    return dataclasses.replace(program, about=_tell(program.about, config, batch))


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
