"""Every key has a rule, and a wrong value of any of them is one sentence."""

import math

import pytest

from vidlatent import config as configs
from vidlatent.config.ranges import FIELDS, GROUPS, RULES, SHIPPED
from vidlatent.config.rules import (
    Choice,
    Each,
    Either,
    Flag,
    Many,
    Number,
    OrFollow,
    Pattern,
    Text,
)
from vidlatent.config.validate import validate
from vidlatent.diffusion import SCHEDULES
from vidlatent.errors import VidlatentError
from vidlatent.models.discriminators import DISCRIMINATORS
from vidlatent.models.generators import GENERATORS
from vidlatent.models.tokenizers import MODELS

PRESETS = (
    "fsae",
    "fsae:paper",
    "dcae",
    "dcae:paper",
    "ivvae",
    "ivvae:paper,stage=4",
    "promag",
    "promag:paper,stage=II,gan=true",
    "promag:line",
    "reducio_vae",
    "reducio_vae:paper",
    "fsvideo_dit",
    "fsvideo_dit:paper",
    "latte",
    "latte:paper",
    "promag_dit",
    "promag_dit:paper,stage=2",
    "reducio_dit",
    "reducio_dit:paper,stage=3",
)


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, configs.ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def wrong_values(rule):
    """Values that a rule must refuse."""
    if isinstance(rule, Number):
        yield from (math.nan, math.inf, -math.inf, True, "many", None)
        if rule.low > -math.inf:
            yield rule.low if rule.above else rule.low - 1
        if rule.high < math.inf:
            yield rule.high if rule.below else rule.high + 1
        if rule.whole:
            yield from (float(max(rule.low, 1)), 1.5)
    elif isinstance(rule, OrFollow):
        yield from (value for value in wrong_values(rule.rule) if value != -1)
        yield -2
    elif isinstance(rule, Flag):
        yield from (1, "true", None)
    elif isinstance(rule, Choice):
        yield from ("nonsense", 1, ("auto",))
    elif isinstance(rule, Pattern):
        yield from ("(", "*", 3, None)
    elif isinstance(rule, Text):
        yield from (7, None, "a\0b", *([""] if rule.needed else []))
    elif isinstance(rule, Many):
        yield from (7, "ab", ("x", None), None)
        yield from ((value,) for value in wrong_values(rule.element))
    elif isinstance(rule, Each):
        right = rightful(rule)
        assert not rule(right)
        yield from (7, "abcd", right[:-1], (*right, right[-1]), None)
        yield from ((value, *right[1:]) for value in wrong_values(rule.elements[0]))
    elif isinstance(rule, Either):
        assert not rule(rightful(rule.first)) and not rule(rightful(rule.second))
        both = (*wrong_values(rule.first), *wrong_values(rule.second))
        yield from (value for value in both if rule.first(value) and rule.second(value))
    else:
        raise AssertionError(rule)


def rightful(rule):
    if isinstance(rule, Number):
        return max(rule.low, 1) if rule.whole else min(max(rule.low, 0.5), rule.high)
    if isinstance(rule, Each):
        return tuple(map(rightful, rule.elements))
    if isinstance(rule, Many):
        return (rightful(rule.element),)
    assert isinstance(rule, (Text, Pattern))
    return "a"


def test_every_default_has_a_rule_and_every_rule_a_key():
    keys = {key for key, _ in leaves(configs.get_generator_defaults("x", "y"))}
    free = {key for key in keys if key.startswith(tuple(f"{group}." for group in GROUPS))}
    # Channels may follow the latents, whatever the generator: a rule though a config names the key.
    follow = {"generator.latent_channels", "generator.condition_channels"}
    assert (keys - free) | follow == set(RULES)


@pytest.mark.parametrize("spec", PRESETS)
def test_shipped_values_are_right_and_numbers_of_models_have_rules(spec):
    config = configs.load(spec)  # checked
    for key, value in leaves(config):
        group = next((name for name in GROUPS if key.startswith(f"{name}.")), "")
        if group and group not in ("loss", "networks", "conditions.drop"):
            numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
            assert not numeric or key.removeprefix(f"{group}.") in FIELDS or key in RULES, key


@pytest.mark.parametrize("key", RULES)
def test_wrong_values_are_refused(key):
    *parents, leaf = key.split(".")
    values = list(wrong_values(RULES[key]))
    assert len(values) > 2
    for value in values:
        plain = configs.get_generator_defaults("x", "y").to_dict()
        node = plain
        for name in parents:
            node = node[name]
        node[leaf] = value
        with pytest.raises(VidlatentError) as raised:
            validate(configs.ConfigDict(plain))
        message = str(raised.value)
        assert message.startswith(f"config.{key}={value!r}: give ") and message.endswith(".")
        assert "\n" not in message


@pytest.mark.parametrize("field", FIELDS)
def test_wrong_fields_of_models_are_refused(field):
    for value in wrong_values(FIELDS[field]):
        for group, names in SHIPPED.items():
            config = configs.get_generator_defaults("x", "y")
            config[group].update({"name": names[0], field: value})
            with pytest.raises(VidlatentError, match="give "):
                validate(config)


def test_fields_of_other_packages_are_their_own_matter():
    for group, registry in (
        ("model", MODELS),
        ("generator", GENERATORS),
        ("discriminator.model", DISCRIMINATORS),
        ("diffusion.schedule", SCHEDULES),
    ):
        assert {*SHIPPED[group]} == {name for name in registry.names() if name != "micro"}
        config = configs.get_generator_defaults("x", "y")
        config[group].update({"name": "mine", "width": -1, "steps": "as many as it takes"})
        validate(config)
        config[group].update({"shift": math.nan})
        with pytest.raises(VidlatentError, match="give a finite number"):
            validate(config)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"train.steps": "-5"}, "config.train.steps=-5: give a whole number of at least 1."),
        ({"train.steps": "0"}, "config.train.steps=0: give a whole number of at least 1."),
        ({"optim.lr": "-1"}, "config.optim.lr=-1.0: give a number of at least 0."),
        ({"optim.lr": "nan"}, "--config.optim.lr=nan: give a finite number."),
        ({"optim.lr": "1e999"}, "--config.optim.lr=1e999: give a finite number."),
        ({"data.buckets": "((5.0,16,16,2),)"}, "each a whole number of at least 1"),
        ({"data.buckets": "(5,16,16,2)"}, "one bucket alone is written with a comma"),
        ({"data.buckets": "('a','b')"}, "such as ((5, 64, 64, 2),)"),
        ({"data.buckets": "((5,16,16),)"}, "a tuple of 4"),
        ({"data.buckets": "((5,16,-16,2),)"}, "at least 1"),
        ({"data.buckets": "((5,16,16,0),)"}, "at least 1"),
        ({"data.bucket_weights": "(1.0,2.0)"}, "has 2 numbers for the 1 of config.data.buckets"),
        ({"data.bucket_weights": "(0.0,)"}, "are all 0"),
        ({"data.length_weights": "((7,1.0),)"}, "has no share for the 9 frames"),
        ({"data.length_weights": "((9,0.0),)"}, "give one length at least a share"),
        ({"data.length_weights": "((9,-1.0),)"}, "of at least 0"),
        ({"data.max_shapes": "-1"}, "of at least 0"),
        ({"data.bucket_weights": "(-1.0,)"}, "of at least 0"),
        ({"seed": "-1"}, "config.seed=-1: give a whole number of at least 0"),
        ({"seed": str(2**70)}, "of at most 4294967295"),
        ({"train.log_every": "0"}, "config.train.log_every=0"),
        ({"data.num_workers": "-1"}, "config.data.num_workers=-1"),
        ({"data.read_threads": "-3"}, "config.data.read_threads=-3"),
        ({"data.crop": "center"}, "did you mean 'centre'?"),
        ({"optim.freeze": "encoder/("}, "a regular expression"),
        ({"model.latent_channels": "0"}, "config.model.latent_channels=0"),
        ({"model.encoder_widths": "(16,-1,64)"}, "such as (16, 32)"),
        ({"model.norm_eps": "0.0"}, "config.model.norm_eps=0.0: give a number above 0."),
        ({"encode.chunks": "(4,17)"}, "chunks of 4 frames cannot share 17"),
        ({"encode.process_index": "3", "encode.process_count": "3"}, "from 0 to 2"),
        ({"discriminator.model.name": "patch3d"}, "config.discriminator.model is empty"),
        ({"name": "a/b"}, "leave out slashes"),
        ({"preset": ".."}, "leave out slashes"),
    ],
)
def test_mistakes_on_the_command_line(overrides, says):
    with pytest.raises(VidlatentError) as raised:
        configs.load("fsae", overrides)
    assert says in str(raised.value) and "\n" not in str(raised.value)


def test_mistakes_of_generators():
    for key, text, says in (
        ("sampler.guidance.interval", "(0.9, 0.1)", "the lower level first"),
        ("tokenizer.chunks", "(4, 4)", "cannot share 4"),
        ("generator.width", "-8", "config.generator.width=-8"),
        ("sampler.steps", "0", "config.sampler.steps=0"),
    ):
        with pytest.raises(VidlatentError) as raised:
            configs.load("fsvideo_dit", {key: text})
        assert says in str(raised.value)


def test_a_stored_config_is_checked_too(tmp_path):
    config = configs.load("fsae")
    with config.unlocked():
        config.train.steps = -1
    configs.write(config, tmp_path)
    with pytest.raises(VidlatentError, match="config.train.steps=-1"):
        configs.read(tmp_path)


BROKEN = {
    "a syntax error": ("def get_config(arg=''):\n    return (\n", "line 2: SyntaxError"),
    "no function": ("x = 1\n", "no function get_config"),
    "no callable": ("get_config = 1\n", "no function get_config"),
    "a missing import": ("import not_there_at_all\n", "line 1: ModuleNotFoundError"),
    "a raise": ("def get_config(arg=''):\n    x = 1\n    return {}[x]\n", "line 3: KeyError"),
    "nothing returned": ("def get_config(arg=''):\n    pass\n", "returned NoneType"),
    "a dict": ("def get_config(arg=''):\n    return {}\n", "returned dict"),
    "no argument taken": ("def get_config():\n    pass\n", "TypeError"),
    "an empty config": (
        "from vidlatent.config import ConfigDict\n\n\ndef get_config(arg=''):\n"
        "    return ConfigDict({'name': 'x'})\n",
        "the config lacks ",
    ),
    "a wrong value": (
        "from vidlatent.config import load_base\n\n\ndef get_config(arg=''):\n"
        "    config = load_base('fsae')\n    config.train.steps = -3\n    return config\n",
        "config.train.steps=-3",
    ),
    "a wrong type": (
        "from vidlatent.config import load_base\n\n\ndef get_config(arg=''):\n"
        "    config = load_base('fsae')\n    config.train.steps = 'x'\n    return config\n",
        "line 6: TypeError",
    ),
    "bytes that are no text": (b"\xff\xfe\x00", "mine.py"),
    "a null byte": (b"x = 1\0", "mine.py"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_config_file_is_one_sentence(tmp_path, kind):
    text, says = BROKEN[kind]
    file = tmp_path / "mine.py"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(VidlatentError) as raised:
        configs.load(str(file))
    message = str(raised.value)
    assert says in message and "\n" not in message


@pytest.mark.parametrize("path", ["mine.txt", ".", "folder", "a\0b", "", "gs://bucket/x.py"])
def test_a_path_that_is_no_config_file(tmp_path, monkeypatch, path):
    (tmp_path / "mine.txt").write_text("def get_config(arg=''):\n    pass\n")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VidlatentError) as raised:
        configs.load(path)
    assert "--config=" in str(raised.value) and "\n" not in str(raised.value)


def test_a_start_in_another_order_of_channels_is_told():
    config = configs.load("fsae:paper")
    config.model.up_type, config.model.shortcut_order = "shuffle", "thw"
    with pytest.raises(VidlatentError, match="shortcut_order='thw': set init_kind to image_thw"):
        validate(config)
    config.train.init_kind = "image_thw"
    validate(config)
