"""Config of the two-convolution tokenizer, whose step compiles in a second."""

from tests.helpers.micro import Micro
from vidlatent.config import get_defaults
from vidlatent.models.tokenizers import MODELS

if "micro" not in MODELS.names():
    MODELS.register("micro", lambda fields, dtype: Micro(dtype=dtype))


def get_config(arg: str = ""):
    config = get_defaults("micro", arg or "test")
    config.model.name = "micro"
    config.loss.l1 = 1.0
    config.data.buckets = ((3, 16, 16, 8), (1, 16, 16, 16))
    config.codec.time = "chunks"
    return config
