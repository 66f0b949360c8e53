"""The null text that replaces a dropped one is the same in training and in sampling."""

import numpy as np
import pytest

from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.latents.contract import LatentSpace
from vidlatent.latents.inputs import Inputs
from vidlatent.latents.space import Latents, generator_of
from vidlatent.models.frozen import load_frozen
from vidlatent.parallel.mesh import local_mesh
from vidlatent.sample.conditions import EncodedTexts
from vidlatent.spec import FrameRule, LatentSpec

STATES = np.arange(6, dtype=np.float32).reshape(2, 3)


def config_of(null, path=""):
    config = load("fsvideo_dit:demo,text=true")
    with config.unlocked():
        config.conditions.null_text, config.data.path = null, str(path)
    return config


def inputs_of(config):
    spec = LatentSpec("toy", 8, 4, 4, 4, FrameRule(1, 4))
    return Inputs(config, generator_of(config), Latents(LatentSpace.of_spec(spec)))


def batch():
    text = {"text": np.ones((1, 2, 3), np.float32), "text_length": np.array([2])}
    return {"latent": np.zeros((1, 1, 4, 4, 8), np.float32), "mask": np.ones(1), **text}


def test_training_takes_the_states_that_the_set_holds(tmp_path):
    np.save(tmp_path / "null_text.npy", STATES)
    inputs = inputs_of(config_of("empty", tmp_path))
    frozen = load_frozen(inputs.frozen, local_mesh([1]))
    null = inputs(batch(), frozen, None)[1]["null_text"]
    np.testing.assert_array_equal(null["states"], STATES[None])
    assert null["length"].tolist() == [2]
    # Words by hash have no end mark: the empty text is one token of zeros.
    np.save(tmp_path / "null_text.npy", STATES[:0])
    null = load_frozen(inputs.frozen, local_mesh([1]))["null_text"]
    assert null["states"].shape == (1, 1, 3) and not np.asarray(null["states"]).any()
    plain = inputs_of(config_of("zeros", tmp_path))
    assert plain.frozen == {} and "null_text" not in plain(batch(), {}, None)[1]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(VidlatentError, match=r"no .*null_text\.npy: run the set's --mode=encode"):
        _ = inputs_of(config_of("empty", tmp_path)).frozen
    with pytest.raises(VidlatentError, match="null_text 'emty' is unknown: did you mean 'empty'"):
        inputs_of(config_of("emty"))


class Encoder:
    """As ``TextStates``."""

    length = 4

    def __call__(self, texts):
        return [STATES[: len(text)] for text in texts]

    def empty(self):
        return STATES[:1]


@pytest.mark.parametrize(
    ("null", "negative", "found"), [("empty", "", 1), ("empty", "xx", 2), ("zeros", "", 0)]
)
def test_sampling_takes_what_training_took_or_the_negative_text(null, negative, found):
    config = config_of(null)
    with config.unlocked():
        config.sampler.guidance.negative = negative
    # One at a time; equal texts are encoded once, and any may be asked for together.
    told = EncodedTexts(Encoder(), ["x", "yy", "x"], config, 4, 1)(["x", "yy"])
    assert told["text"]["length"].tolist() == [1, 2]
    assert ("null_text" in told) == bool(found)
    if found:
        length = int(told["null_text"]["length"][0])
        np.testing.assert_array_equal(told["null_text"]["states"][0, :length], STATES[:found])


def test_published_presets_drop_to_the_empty_text():
    for name in ("fsvideo_dit:paper", "promag_dit:paper"):
        assert load(name).conditions.null_text == "empty"
    assert load("fsvideo_dit").conditions.null_text == "zeros"
