"""Configs of older versions are read under today's names."""

import json
import logging

import pytest
from absl import logging as absl_logging

from vidlatent import config as configs
from vidlatent.config.upgrade import RENAMED, RENAMED_RECIPES, renamed_key
from vidlatent.errors import VidlatentError

# A value that is no default, for each row of the table that is the name of a single key.
VALUES = {
    "discriminator.continues": False,
    "discriminator.optim.frozen": "conv_0/",
    "discriminator.optim.factors": [["conv_0/", 2.0]],
    "discriminator.optim.undecayed": "norm",
    "optim.frozen": "encoder/",
    "optim.factors": [["router_", 10.0]],
    "optim.undecayed": "router_",
    "sampler.eight_bits": True,
    "sampler.keep": False,
    "eval.stand_ins": True,
}


def node_of(tree, dotted):
    for name in dotted.split("."):
        tree = tree[name]
    return tree


def store(folder, spec, changes):
    """A ``config.json`` with ``changes`` in place of the keys' names of today."""
    stored = configs.load(spec).to_dict()
    for dotted, value in changes.items():
        *parents, today = renamed_key(dotted).split(".")
        del node_of(stored, ".".join(parents))[today]
        *parents, leaf = dotted.split(".")
        node_of(stored, ".".join(parents))[leaf] = value
    stored.pop("task", None)
    (folder / "config.json").write_text(json.dumps(stored))


def as_tuples(value):
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


@pytest.mark.parametrize("old", [old for old in RENAMED if "." in old])
def test_a_renamed_key_is_read(tmp_path, old):
    spec = "fsvideo_dit" if old.startswith("sampler") else "fsae"
    store(tmp_path, spec, {old: VALUES[old]})
    config = configs.read(tmp_path)
    assert node_of(config, RENAMED[old]) == as_tuples(VALUES[old])
    with pytest.raises(KeyError):
        node_of(config.to_dict(), old)
    # Only that choice differs from a run of today.
    assert configs.write(config, tmp_path) == []
    usual = configs.to_json(configs.load(spec))
    (line,) = configs.differences(usual, configs.to_json(config))
    assert line.startswith(RENAMED[old])


def test_a_renamed_group_is_read(tmp_path):
    stored = configs.load("tests/tiny.py:discriminator").to_dict()
    former = stored["critic"] = stored.pop("discriminator")
    former["continues"] = not former.pop("inherit")
    former["optim"]["frozen"] = former["optim"].pop("freeze") + "x/"
    stored["recipe"] = "tiny critic"
    stored["train"]["init_recipes"] = ["tiny critic", "other"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = configs.read(tmp_path)
    assert config.discriminator.model.name == "patch3d"
    assert not config.discriminator.inherit and config.discriminator.optim.freeze == "x/"
    assert "critic" not in config
    assert config.recipe == "tiny discriminator"
    assert config.train.init_recipes == ("tiny discriminator", "other")
    assert {"critic": "discriminator"} == RENAMED_RECIPES


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_on_the_command_line_is_told_the_new_one(old):
    dotted = f"{old}.weight" if "." not in old else old
    with pytest.raises(VidlatentError) as raised:
        configs.load("fsvideo_dit", {dotted: "1"})
    assert f"config.{dotted} is now called config.{renamed_key(dotted)}" in str(raised.value)


def test_a_tokenizer_has_no_keys_of_generators(tmp_path, monkeypatch, caplog):
    """An older version wrote them; those that had been set are named, the others are not."""
    monkeypatch.setattr(absl_logging.get_absl_logger(), "propagate", True)
    sections = {"generator", "tokenizer", "diffusion", "conditions", "sampler", "sample"}
    tokenizer, generator = (configs.load(name).to_dict() for name in ("fsae", "fsvideo_dit"))
    assert not sections & set(tokenizer) and sections < set(generator)
    usual = configs.get_generator_defaults("x", "y").to_dict()
    stored = {**tokenizer, **{name: usual[name] for name in sections}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with caplog.at_level(logging.WARNING):
        assert configs.read(tmp_path).to_dict() == tokenizer
    assert not caplog.records
    stored["sampler"]["steps"] = 7
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with caplog.at_level(logging.WARNING):
        assert configs.read(tmp_path).to_dict() == tokenizer
    (record,) = caplog.records
    assert "config.sampler.steps=7" in record.getMessage()


def test_a_key_of_generators_is_refused_for_a_tokenizer():
    with pytest.raises(VidlatentError, match="config.sampler belongs to generators"):
        configs.load("fsae", {"sampler.steps": "4"})


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"x"', "{}", '{"name": "x"}', "\x00"])
def test_a_file_that_holds_no_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(VidlatentError, match="holds no config of a run") as raised:
        configs.read(tmp_path)
    assert "\n" not in str(raised.value)
