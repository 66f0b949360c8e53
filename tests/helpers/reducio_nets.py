"""A Reducio-VAE that compiles in no time, with random weights everywhere; an image VAE for it."""

import functools

import jax
import numpy as np

from tests.helpers.nets import randomise
from tests.helpers.tiny_tokenizers import REDUCIO
from vidlatent.models.load import abstract_params
from vidlatent.models.tokenizers import build


@functools.cache
def net(**fields):
    model = build({**REDUCIO, **fields})
    return model, randomise(abstract_params(model))


LEVELS = {"content_multipliers": (1, 1, 2)}


def image_vae(fresh):
    """An image VAE that fits: the content encoder's layout, a decoder of three blocks a level."""
    rng = np.random.default_rng(3)

    def plane(tree):
        return jax.tree.map(
            lambda x: rng.normal(size=(1, *x.shape[1:]) if x.ndim == 5 else x.shape).astype(
                np.float32
            ),
            tree,
        )

    decoder = {name: plane(x) for name, x in fresh["decoder"].items() if "fuse" not in name}
    decoder = {n.replace("block_1_0", "block_0"): x for n, x in decoder.items()}
    decoder = {n.replace("block_2_0", "block_1"): x for n, x in decoder.items()}
    encoder = plane(fresh["encoder"]["frame"])
    return {"encoder": encoder, "decoder": decoder}
