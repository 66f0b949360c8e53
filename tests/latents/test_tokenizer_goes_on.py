"""A tokenizer that trains on leaves the sets and generators on its latents usable."""

from pathlib import Path

import jax
import pytest

from tests.helpers.generator_runs import generator_run, save_step, tiny, tokenizer_run
from vidlatent import config as configs
from vidlatent.checkpoint.pins import read_pins
from vidlatent.encode.run import encode_set
from vidlatent.errors import VidlatentError
from vidlatent.latents.space import (
    Latents,
    check_tokenizer,
    choose_tokenizer_step,
    describe_latents,
    pin_tokenizer,
)
from vidlatent.latents.statistics import find_digests
from vidlatent.models.load import abstract_params, model_of, open_checkpoints
from vidlatent.sample.decoding import load_tokenizer_codec
from vidlatent.sample.run import Generator
from vidlatent.weights.files import load_params

pytestmark = pytest.mark.usefixtures("one_device")


def train_on(tokenizer, steps):
    """Further steps with another encoder, as training makes them."""
    config = configs.read(tokenizer)
    model = model_of(config)
    params = load_params(tokenizer, abstract_params(model), family="fsae")
    for step in steps:
        params["encoder"] = jax.tree.map(lambda x: 1.1 * x, params["encoder"])
        save_step(config, tokenizer, params, model.latent_spec, step=step)


def steps_of(tokenizer):
    checkpoints = open_checkpoints(configs.read(tokenizer), tokenizer)
    try:
        return checkpoints.all_steps()
    finally:
        checkpoints.close()


def test_the_step_that_a_generator_needs_is_kept_and_found(tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer_run(tokenizer)
    encoder = find_digests(tokenizer).encoder
    config = configs.read(tokenizer)
    with config.unlocked():
        config.data = tiny(tokenizer, "videos").data
        config.data.synthetic.clips = 4
        config.data.buckets = ((3, 8, 8, 4),)
        config.encode.pictures = 0
    assert encode_set(config, tokenizer, -1, str(tmp_path / "set")) == 0
    assert read_pins(tokenizer) == {1}
    keys = {"data__path": tmp_path / "set", "data__buckets": ((3, 8, 8, 4),)}
    own = tiny(tokenizer, "latents", **keys)
    generator = generator_run(own, tmp_path / "generator")

    # Two newest steps are kept, and the one that is pinned.
    train_on(tokenizer, (2, 3, 4))
    assert steps_of(tokenizer) == [1, 3, 4]
    assert find_digests(tokenizer).encoder != encoder
    made = Generator.from_workdir(generator)
    assert made.find_tokenizer() == (tokenizer, 1)
    assert load_tokenizer_codec(own, Latents.load(Path(generator))).encoder == encoder

    # A decoder that is fine-tuned further with this encoder is the newest, and is taken.
    train_on(tokenizer, (5,))
    space = Latents.load(Path(generator)).space
    newer = load_params(tokenizer, abstract_params(model_of(config)), family="fsae", step=1)
    save_step(config, tokenizer, newer, model_of(config).latent_spec, step=6)
    assert choose_tokenizer_step(own, space).tokenizer.step == -1


def test_a_step_that_is_gone_is_named(tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer_run(tokenizer)
    own = tiny(tokenizer, "videos")
    space = describe_latents(own).space
    # Training on videos pins it as well; here nobody did.
    train_on(tokenizer, (2, 3))
    assert steps_of(tokenizer) == [2, 3]
    assert choose_tokenizer_step(own, space) is own
    with pytest.raises(VidlatentError, match=r"they are of its step 1, --config.tokenizer.step=1;"):
        check_tokenizer(space, own, "this generator")
    pin_tokenizer(own, describe_latents(own).space, "a generator")
    assert read_pins(tokenizer) == {3}
