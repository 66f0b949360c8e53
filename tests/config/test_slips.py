"""The likeliest slips of a newcomer get one sentence with what was meant."""

import pytest

from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.latents.channels import check_with_tokenizer
from vidlatent.models.load import model_of
from vidlatent.registry import did_you_mean


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("optim.learning_rate", "config.optim has no key 'learning_rate': did you mean config.opt"),
        ("learning_rate", "did you mean config.optim.lr?"),
        ("steps", "did you mean config.train.steps?"),
        ("train.num_steps", "did you mean 'steps'?"),
        ("data.batch_size", "did you mean config.data.buckets?"),
        ("data.dir", "did you mean config.data.path?"),
        ("optim.warmup", "did you mean 'warmup_steps'?"),
        # Another loss term is a file's business: no key elsewhere is meant.
        ("loss.lpips", "known: l1; a new loss term is added in a config file"),
        # Many keys of a section are not all told.
        ("data.zzzzzz", " and 14 more."),
    ],
)
def test_keys_that_are_elsewhere_or_have_another_name(key, said):
    with pytest.raises(VidlatentError) as raised:
        load("fsae", {key: "1"})
    assert said in str(raised.value)
    assert len(str(raised.value)) < 400


def test_sections_of_the_other_kind():
    with pytest.raises(VidlatentError, match="this trains a generator: set config.generator.width"):
        load("fsvideo_dit", {"model.width": "64"})
    with pytest.raises(VidlatentError, match="fsvideo_dit is a generator, and this needs a token"):
        model_of(load("fsvideo_dit"))
    with pytest.raises(VidlatentError, match=r"\(its own is runs/fsae-demo\)"):
        model_of(load("fsvideo_dit", {"tokenizer.path": "runs/fsae-demo"}))


def test_long_lists_are_cut():
    assert did_you_mean("zz", [f"n{i}" for i in range(10, 26)]).endswith("n24, n25.")
    assert did_you_mean("zz", [f"n{i}" for i in range(10, 40)]).endswith("n25 and 14 more.")


def test_a_generator_is_checked_before_its_tokenizer_trains():
    tokenizer = load("fsae")
    check_with_tokenizer(load("fsvideo_dit"), tokenizer)
    for key, value, said in (
        ("heads", "5", "heads 5 does not divide width .*: use config.generator.heads 4 or"),
        ("latent_channels", "7", "latent_channels is 7, but the latents of fsae have 16: set"),
    ):
        with pytest.raises(VidlatentError, match=said):
            check_with_tokenizer(load("fsvideo_dit", {f"generator.{key}": value}), tokenizer)
