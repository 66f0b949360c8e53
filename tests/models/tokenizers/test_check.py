"""``check_tokenizer`` passes what is shipped and says in one sentence what others get wrong."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_tokenizers import MODELS, random_params, tokenizer
from vidlatent.codec.codec import Codec
from vidlatent.codec.options import CodecOptions
from vidlatent.errors import VidlatentError
from vidlatent.models.load import abstract_params
from vidlatent.models.tokenizers import build
from vidlatent.models.tokenizers.base import Posterior, TokenizerModule, check_clip
from vidlatent.models.tokenizers.check import check_tokenizer
from vidlatent.spec import FrameRule, LatentSpec


class Causal(TokenizerModule):
    """Sums of two frames: a frame and the one before. ``fault`` is what it does wrong."""

    fault: str = ""
    dtype: Any = jnp.float32

    @property
    def latent_spec(self):
        return LatentSpec("causal", 4, 2, 2, 2, FrameRule(1, 2))

    @property
    def streams(self):
        return True

    def setup(self):
        self.enter = nn.Conv(4, (1, 2, 2), strides=(1, 2, 2), padding="VALID")
        self.leave = nn.ConvTranspose(3, (1, 2, 2), strides=(1, 2, 2), padding="VALID")

    def encode(self, video, *, cache=None):
        first = not cache if self.fault == "empty" else cache is None
        check_clip(self.latent_spec, video, first=first)
        x = self.enter(video)
        # The first frame makes a latent frame with what was before it: nothing.
        before = jnp.zeros_like(x[:, :1]) if cache is None or self.fault == "empty" else cache
        rows = jnp.concatenate([before, x], axis=1) if cache is None else x
        pairs = rows.reshape(rows.shape[0], -1, 2, *rows.shape[2:]).sum(2)
        last = pairs if self.fault != "ahead" else pairs + pairs.mean(1, keepdims=True)
        latent = last + jnp.concatenate([before, pairs[:, :-1]], axis=1)
        after = {"zeroed": jnp.zeros_like(before), "empty": (), "none": None}
        if self.fault == "array":
            return latent, before
        return Posterior(latent), after.get(self.fault, pairs[:, -1:])

    def decode(self, latent, *, condition=None, cache=None):
        pairs = self.leave(latent).repeat(2, axis=1)
        return (
            pairs
            if self.fault == "alone"
            else (
                pairs[:, 1:] if cache is None and self.fault != "frames" else pairs,
                (),
            )
        )


WAN = {"name": "wan_vae", "width": 4, "multipliers": (1, 1, 1, 1), "blocks": 1}
WAN_KINDS = {
    "wan21": {**WAN, "latent_channels": 4},
    "wan22": {**WAN, "latent_channels": 6, "shortcuts": True, "pixel_patch": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WAN_KINDS)
def test_wans_autoencoders_keep_the_contract(kind):
    """Both kinds at their compression, 4x8x8 and 4x16x16, narrow."""
    model = build({**WAN_KINDS[kind], "temporal_down": (1, 2)})
    spec = model.latent_spec
    assert (spec.t, spec.h, spec.w) == {"wan21": (4, 8, 8), "wan22": (4, 16, 16)}[kind]
    check_tokenizer(model, random_params(model))


@pytest.mark.parametrize("name", MODELS)
def test_shipped_tokenizers_keep_the_contract(name):
    check_tokenizer(*tokenizer(name))


FAULTS = {
    "zeroed": "encode in pieces differs from the whole clip by .*: the cache must carry",
    "ahead": "later frames change the latents of the first 1 by .*: encode must not look ahead",
    "frames": r"video of a first piece of 3 latent frames must be float32 \[1, 5, 4, 4, 3\], not "
    r"float32 \[1, 6, 4, 4, 3\]",
    "array": r"must return \(Posterior, cache\), but the first of the two is float32",
    "alone": r"decode of causal must return \(video, cache\), not float32",
    "none": "returned None as its cache",
    "empty": "returned an empty cache and then refused the next piece .2 frames do not fit",
}


def test_causal_tokenizer_passes():
    check_tokenizer(Causal())


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_in_one_sentence(fault):
    params = draw_params()
    with pytest.raises(VidlatentError, match=FAULTS[fault]) as caught:
        check_tokenizer(Causal(fault), params)
    assert str(caught.value).count(". ") == 0


@pytest.mark.parametrize("fault", ["frames", "array", "alone", "none"])
def test_training_and_codec_say_it_before_anything_is_compiled(fault):
    with pytest.raises(VidlatentError, match=FAULTS[fault].replace("3 latent", "2 latent")[:40]):
        abstract_params(Causal(fault))


def test_codec_blames_the_empty_cache():
    codec = Codec(Causal("empty"), draw_params(), CodecOptions.of(groups=2))
    with pytest.raises(VidlatentError, match="causal claims to stream, but encode returned an emp"):
        codec.encode(np.zeros((9, 4, 4, 3), np.uint8))


def draw_params():
    """Random parameters of ``Causal``."""
    rng = np.random.default_rng(0)
    shapes = abstract_params(Causal())
    return {
        name: {k: rng.normal(size=v.shape).astype(np.float32) for k, v in leaves.items()}
        for name, leaves in shapes.items()
    }
