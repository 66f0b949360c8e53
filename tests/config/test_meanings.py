"""``--help-config``: every key with its value, its meaning and what it may be."""

import pytest

from vidlatent import config as configs
from vidlatent.config.meanings import describe_keys, leaves
from vidlatent.errors import VidlatentError


@pytest.mark.parametrize("path", ["configs/fsae.py:demo,stage=2", "configs/latte.py"])
def test_every_key_is_told_with_its_value_and_something_about_it(path):
    config = configs.load(path)
    lines = describe_keys(config).splitlines()
    for key, value in leaves(config):
        if not hasattr(value, "items"):  # an empty group of keys
            place = lines.index(f"--config.{key}={value!r}")
            assert lines[place + 1].startswith(" "), f"nothing is said of {key}"
    assert max(len(line) for line in lines if line.startswith(" ")) <= 100


def test_a_section_a_key_a_part_of_it_and_a_meaning():
    config = configs.load("configs/fsae.py")

    def told(wanted):
        lines = describe_keys(config, wanted).splitlines()
        return [line.split("=")[0][9:] for line in lines if line.startswith("--config.")]

    assert told("data.buckets") == ["data.buckets"]
    assert {key.split(".")[0] for key in told("optim")} == {"optim"}  # not discriminator.optim
    assert "checkpoint.keep_best" in told("keep_be")
    assert "optim.lr" in told("peak learning rate")
    text = describe_keys(config, "checkpoint.verify")
    assert "off | sample | full | auto" in text
    assert "a whole number of at least 1" in describe_keys(config, "train.log_every")


@pytest.mark.parametrize(
    ("wanted", "says"), [("lrr", "did you mean 'lr'"), ("zzzz", "sections are bench, checkp")]
)
def test_what_is_not_there(wanted, says):
    with pytest.raises(VidlatentError, match=says):
        describe_keys(configs.load("configs/fsae.py"), wanted)
