"""One tiny model of every tokenizer, with random parameters everywhere."""

import functools

import jax
import numpy as np

from vidlatent.models.load import abstract_params
from vidlatent.models.tokenizers import build
from vidlatent.parallel.compilation import QUICKEST

QUICK = QUICKEST  # each program runs once
FSAE = {
    "name": "fsae",
    "latent_channels": 4,
    "encoder_widths": (4, 8, 8),
    "decoder_widths": (4, 8, 8),
    "encoder_depths": (1, 1, 1),
    "decoder_depths": (1, 1, 1),
    "block_types": ("res", "res", "evit"),
    "multiscales": ((), (), (5,)),
    "head_dim": 4,
    "temporal_down": (0, 1),
}
LOOKING = {"cross_stages": (2,), "cross_head_dim": 4}
PROMAG = {
    "name": "promag",
    "latent_channels": 4,
    "width": 4,
    "multipliers": (1, 2),
    "temporal_down": (0,),
    "blocks": 1,
    "grow_blocks": 1,
    "groups": 2,
    "first_frame_join": "none",
}
REDUCIO = {
    "name": "reducio",
    "latent_channels": 3,
    "width": 4,
    "multipliers": (1, 1, 2),
    "blocks": 1,
    "content_width": 4,
    "content_multipliers": (1, 2),
    "content_blocks": 1,
    "time_factor": 2,
    "space_factor": 4,
    "frames": 4,
    "fuse": (-1, 1, -1),
    "groups": 2,
    "heads": 2,
}
MODELS = {
    "dcae": {**FSAE, "name": "dcae", "temporal_kernel": 1, "temporal_down": ()},
    "fsae": FSAE,
    "fsae_standard": {**FSAE, **LOOKING, "decoder_time": "centred"},
    "fsae_lite": {**FSAE, **LOOKING, "decoder_time": "group"},
    "ivvae": {
        "name": "ivvae",
        "latent_channels": 4,
        "width": 4,
        "multipliers": (1, 1, 2),
        "blocks": 1,
        "temporal_down": (0, 1),
        "pac_dilations": (0, 1, 2),
    },
    "promag": PROMAG,
    "promag_grown": {**PROMAG, "grow": 1},
    "promag_joined": {**PROMAG, "first_frame_join": "latent"},
    "promag_thw": {**PROMAG, "norm_axes": "thw"},
    "magvit2": {**PROMAG, "name": "magvit2"},
    "magvit2_pooled": {**PROMAG, "name": "magvit2", "decoder_ada": "pooled"},
    "reducio": REDUCIO,
    "reducio_plain": {**REDUCIO, "content": "none"},
}


@functools.cache
def tokenizer(name, **fields):
    """``(model, params)``."""
    model = build({**MODELS[name], **fields})
    return model, random_params(model)


def random_params(model):
    """Random parameters everywhere, so that no part of the model is silent."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        x = rng.normal(size=leaf.shape)
        if path[-1].key == "scale":
            return (1 + 0.2 * x).astype(np.float32)
        fan = np.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 100.0
        return (x / np.sqrt(fan)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(model))


def clip(frames, height=7, width=10, seed=0):
    """Frames that differ smoothly, as frames of a video do."""
    rng = np.random.default_rng(seed)
    scene = rng.integers(0, 256, (height + frames, width, 3)).astype(np.uint8)
    return np.stack([scene[i : i + height] for i in range(frames)])
