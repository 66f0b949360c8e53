"""A Reducio-VAE that compiles in no time, with random weights everywhere."""

import functools

from tests.helpers.nets import randomise
from tests.helpers.tiny_tokenizers import REDUCIO
from vidlatent.models.load import abstract_params
from vidlatent.models.tokenizers import build


@functools.cache
def net(**fields):
    model = build({**REDUCIO, **fields})
    return model, randomise(abstract_params(model))
