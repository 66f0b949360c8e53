"""VideoAlign as a reward: visual quality, motion quality and alignment with the prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from vidlatent.errors import VidlatentError
from vidlatent.models.frozen import FrozenNetwork
from vidlatent.models.pretrained import NETWORKS
from vidlatent.models.rewards.videoalign.frames import FrameRule
from vidlatent.models.rewards.videoalign.model import SCORES, VideoAlign, normalize_scores
from vidlatent.models.rewards.videoalign.template import (
    INSTRUCTION,
    Template,
    encode_prompts,
    fill_template,
    load_encoder,
    load_template,
    make_template,
    read_template,
)
from vidlatent.rewards.base import Arrays, RewardEntry, RewardInputs, RewardSetting, to_unit

__all__ = ["VIDEOALIGN", "VideoAlignReward"]


class VideoAlignReward:
    """VideoAlign's three scores, each normalised, and their sum.

    Videos of any length, size and frame rate are resampled: two frames a second are seen, of about
    448x448 pixels. VQ and MQ do not depend on the prompt.

    Args:
      setting: where the weights are.
      network: 'videoalign', or 'videoalign_tiny' to try things out.
      tokenizer: the release's ``tokenizer.json``; 'words' hashes words, for 'videoalign_tiny'.
      template: file of the text around the prompt (``videoalign.template.read_template``); '':
        the one that is stored with the weights, or else our own wording.
      picture: whether our own wording shows the given first frame before the video; a template of
        a file has the picture's place in it or not.
      positions: 'sequential', as the release; 'axes', Qwen2-VL's own.
      quantize: of the pixels: 'none', 'straight' or 'round' (``videoalign.frames.FrameRule``).
      rate, least_pixels, most_pixels: frames a second that are seen, and bounds of their area.
      longest: tokens that are read at most: the release was trained with so many.
      bucket: prompts are padded to a multiple of so many tokens, so that few programs are compiled.
      mean, std: of VQ, MQ and TA, by which they are normalised.

    Raises:
      VidlatentError: an unknown network or word; no tokenizer; a template that does not fit.
    """

    names: tuple[str, ...] = (*(f"videoalign_{name}" for name in SCORES), "videoalign")
    reads_prompt: bool = True

    def __init__(
        self,
        setting: RewardSetting,
        *,
        network: str,
        tokenizer: str,
        template: str,
        picture: bool,
        positions: str,
        quantize: str,
        rate: float,
        least_pixels: int,
        most_pixels: int,
        longest: int,
        bucket: int,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        self.network = network
        self.frozen: FrozenNetwork | None = setting.describe(network)
        self.random = setting.is_random(network)
        self._module: VideoAlign = NETWORKS.get(network).module(
            dtype=setting.dtype, positions=positions
        )
        self._rule = FrameRule(
            rate, least_pixels=least_pixels, most_pixels=most_pixels, quantize=quantize
        )
        self._longest, self._bucket = longest, bucket
        self._mean, self._std = tuple(mean), tuple(std)
        try:
            self._encode = load_encoder(tokenizer, self._module)
        except VidlatentError as error:
            raise VidlatentError(f"config.rewards.videoalign.tokenizer: {error}") from error
        self._template = self._choose_template(template, tokenizer, setting.path(network), picture)
        self.reads_first = self._module.picture_token in self._template.head

    def _choose_template(self, path: str, tokenizer: str, weights: str, picture: bool) -> Template:
        if path:
            return read_template(path, self._module, tokenizer)
        files = weights.split(",") if weights and not self.random else ()
        stored = next(filter(None, map(load_template, files)), None)
        if stored is not None:
            return stored.check(self._module, weights)
        if files:
            logging.warning(
                "videoalign: %s holds no template, so our own wording is read: scores are those of "
                "a reward that was trained with it, not the published ones. Convert the weights "
                "with --template=FILE, or give config.rewards.videoalign.template.",
                weights,
            )
        ours = make_template(INSTRUCTION, self._encode, picture=picture)
        return ours.check(self._module, "INSTRUCTION")

    def tokenize(self, prompts: Sequence[str]) -> Arrays:
        return encode_prompts(prompts, self._encode, self._module, self._bucket)

    def encode(self, params: Any, tokens: Arrays) -> Arrays:
        """The tokens: they follow the video's, on which what the model makes of them depends."""
        del params
        return tokens

    def score(self, params: Any, inputs: RewardInputs) -> dict[str, jax.Array]:
        sizes = inputs.check()
        shape = sizes["T"], sizes["H"], sizes["W"]
        counts = {self._module.video_token: math.prod(self._rule.grid(*shape, inputs.fps))}
        frames = self._rule.prepare(to_unit(inputs.video), inputs.fps)
        picture = []
        if self.reads_first:
            if inputs.first is None:
                raise VidlatentError("VideoAlign's template shows the first frame; give it one.")
            rows, columns = self._rule.plane(*inputs.first.shape[1:3])
            counts[self._module.picture_token] = rows * columns
            picture.append(self._rule.prepare_picture(to_unit(inputs.first)))
        tokens = fill_template(self._template, inputs.prompt, counts)
        self._check_length(tokens.shape[1], shape, inputs.fps)
        raw: Any = self._module.apply({"params": params}, frames, tokens, *picture)
        scores = normalize_scores(raw, self._mean, self._std)
        values = (*(scores[name] for name in SCORES), scores["overall"])
        return dict(zip(self.names, values, strict=True))

    def _check_length(self, length: int, shape: tuple[int, int, int], fps: float) -> None:
        if length > self._longest:
            raise VidlatentError(
                f"a video of {shape[0]} frames at {fps:g} a second gives VideoAlign {length} tokens"
                f", and config.rewards.videoalign.longest is {self._longest}: cut the video, or "
                "its prompt."
            )

    def seen(self, frames: int, height: int, width: int, fps: float) -> np.ndarray:
        seen = np.zeros((frames, height, width), bool)
        seen[self._rule.frames(frames, fps)] = True
        return seen


VIDEOALIGN = RewardEntry(
    VideoAlignReward, "VideoAlign: visual quality, motion quality, text alignment, and their sum"
)
