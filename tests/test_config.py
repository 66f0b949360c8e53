"""Configs: presets, overrides, and what a mistake says."""

import ast
import json
import os
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained import NETWORKS
from vidlatent.models.tokenizers.ivvae.names import RELEASED
from vidlatent.models.tokenizers.promag.growth import STAGE_FPS, make_frozen_pattern


def test_demo_is_the_default_preset():
    assert configs.load("configs/fsae.py").preset == "demo"
    assert configs.load("configs/fsae.py:paper").preset == "paper"
    assert configs.load("configs/fsae.py:paper,width=1024").model.encoder_widths[-1] == 1024


def test_name_alone_finds_the_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configs.load("fsae").name == "fsae"
    assert configs.load("configs/fsae.py:paper").preset == "paper"


def test_own_config_file_builds_on_the_shipped_defaults(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from vidlatent.config import load_base\n"
        "def get_config(arg=''):\n"
        "    config = load_base('fsae:' + arg)\n"
        "    config.name = 'mine'\n"
        "    return config\n"
    )
    assert configs.load(str(file)).name == "mine"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optim.lr", "3", 3.0),
        ("optim.lr", "1e-4", 1e-4),
        ("train.steps", "7", 7),
        ("train.tensorboard", "false", False),
        ("data.path", "123", "123"),
        ("data.buckets", "[[5, 64, 64, 2]]", ((5, 64, 64, 2),)),
    ],
)
def test_override(key, text, value):
    config = configs.load("fsae", {key: text})
    node = config
    for part in key.split("."):
        node = node[part]
    assert node == value
    assert type(node) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("optim.learning_rate", "1", "config.optim has no key 'learning_rate'"),
        ("loss.edge", "1", "config.loss has no key 'edge': .*new loss term is added in a config f"),
        ("model.dtype", "bfloat16", "config.model has no key 'dtype': .*config.precision.compute"),
        ("optim.warmup_step", "1", "did you mean 'warmup_steps'?"),
        ("optm.lr", "1", "did you mean 'optim'?"),
        ("optim.lr", "fast", "expected float"),
        ("train.steps", "1.5", "expected int"),
        ("train.tensorboard", "yes", "expected true or false"),
        ("optim", "1", "is a group of keys"),
        ("seed.x", "1", "is a value, not a group"),
    ],
)
def test_wrong_override_is_one_sentence(key, text, says):
    with pytest.raises(VidlatentError, match=says.replace("?", r"\?")) as raised:
        configs.load("fsae", {key: text})
    assert "\n" not in str(raised.value)


def test_wrong_argument_and_file():
    with pytest.raises(VidlatentError, match="did you mean 'paper'"):
        configs.load("fsae:papr")
    with pytest.raises(VidlatentError, match="did you mean 'fsae'"):
        configs.load("configs/fsea.py")
    with pytest.raises(VidlatentError, match="width=wide: expected int"):
        configs.load("fsae:paper,width=wide")


def test_write_read_and_differences(tmp_path):
    first = configs.load("fsae")
    assert configs.write(first, tmp_path) == []
    assert configs.read(tmp_path).to_dict() == first.to_dict()
    again = configs.read(tmp_path, {"optim.lr": "0.5"})
    assert configs.write(again, tmp_path) == [f"optim.lr: {first.optim.lr} -> 0.5"]
    assert configs.config_hash(first) != configs.config_hash(again)
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["lr"] == 0.5


def test_read_fills_in_keys_that_an_older_run_did_not_have(tmp_path):
    config = configs.load("fsae")
    configs.write(config, tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["data"]["prefetch"], stored["mesh"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert configs.read(tmp_path).to_dict() == config.to_dict()


def test_pretrained_networks_have_a_key_each():
    assert set(configs.get_defaults("x", "y").networks) == set(NETWORKS.names())


def test_configs_know_the_released_scales_and_the_growth_of_the_models():
    for name, fields in RELEASED.items():
        z, width = fields["latent_channels"], fields["width"]
        model = configs.load(f"ivvae:z{z},width={width}").model
        assert {key: model[key] for key in fields} == fields, name
    for grow, fps in enumerate(STAGE_FPS):
        for join in ("feature", "none"):
            config = configs.load(f"promag:paper,grow={grow},join={join}")
            assert config.data.fps == fps
            assert config.optim.freeze == make_frozen_pattern(grow, join)


def test_shipped_configs_import_the_config_package_alone():
    for path in configs.shipped_configs().glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not node.names, f"{path.name} imports {node.names[0].name}"
            if isinstance(node, ast.ImportFrom):
                assert node.module == "vidlatent.config", f"{path.name} imports {node.module}"


_ORDERS = {
    "ours first": "config.load('fsae'); import configs.base; from configs import base",
    "theirs first": "import configs.base; config.load('fsae')",
    "in a config": "config.load('mine.py'); import configs.base; config.load('fsae')",
}


@pytest.mark.parametrize("order", _ORDERS)
def test_a_package_of_the_users_may_be_called_configs(tmp_path, order):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("")
    (tmp_path / "configs" / "base.py").write_text("STEPS = 7\n")
    (tmp_path / "mine.py").write_text(
        "from configs import base\nfrom vidlatent.config import load_base\n\n\n"
        "def get_config(arg=''):\n    config = load_base('fsae:demo')\n"
        "    config.train.steps = base.STEPS\n    return config\n"
    )
    program = f"from vidlatent import config; {_ORDERS[order]}; assert configs.base.STEPS == 7"
    root = str(configs.shipped_configs().parent)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(("", root))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_read_without_a_run(tmp_path):
    with pytest.raises(VidlatentError, match="train first"):
        configs.read(tmp_path)


def test_config_is_locked():
    config = configs.load("fsae")
    assert isinstance(config, ConfigDict)
    with pytest.raises(AttributeError):
        config.optim.new_key = 1
