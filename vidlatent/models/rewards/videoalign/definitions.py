"""VideoAlign among the pretrained networks: the released one, and a small stand-in."""

from __future__ import annotations

import functools
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from vidlatent.models.pretrained.registry import Definition
from vidlatent.models.rewards.videoalign.language import LanguageSizes
from vidlatent.models.rewards.videoalign.model import VideoAlign
from vidlatent.models.rewards.videoalign.released import ALPHA, fit_head, merge_released
from vidlatent.models.rewards.videoalign.template import read_template
from vidlatent.models.rewards.videoalign.vision import VisionSizes

__all__ = ["RELEASED", "TINY", "define_videoalign"]


def define_videoalign(
    files: tuple[str, ...] = (), source: str = "", *, alpha: float = ALPHA, **fields: Any
) -> Definition:
    """The entry of a VideoAlign of other sizes; register it under a name of its own.

    Args:
      files, source: see ``Definition``.
      alpha: of the adapters in its files, see ``weights.peft.merge_peft``.
      fields: of ``model.VideoAlign``.
    """

    def template(
        path: str | os.PathLike[str], tokenizer: str | os.PathLike[str]
    ) -> dict[str, np.ndarray]:
        return read_template(path, VideoAlign(**fields), tokenizer).tensors()

    return Definition(
        module=functools.partial(VideoAlign, **fields),
        inputs=((1, 2, 28, 28, 3), (1, 4)),
        input_dtype=(jnp.float32, jnp.int32),
        tables=("videoalign",),
        files=files,
        source=source,
        prepare=functools.partial(merge_released, alpha=alpha),
        fit=fit_head,
        template=template,
        keeps_dtype=True,
    )


RELEASED = define_videoalign(
    ("model.pth",), "checkpoint-11352 of KlingTeam/VideoReward on huggingface.co"
)
TINY = define_videoalign(
    vision=VisionSizes(width=16, depth=2, heads=2, hidden=32),
    language=LanguageSizes(
        vocab=512,
        width=16,
        depth=2,
        heads=2,
        key_heads=1,
        hidden=32,
        sections=(2, 1, 1),
    ),
    video_token=508,
    picture_token=507,
    score_tokens=(509, 510, 511),
)
