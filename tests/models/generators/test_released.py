"""The generator's section from the config.json beside released weights."""

import json

import pytest

from vidlatent.errors import VidlatentError
from vidlatent.models.generators import build_generator
from vidlatent.models.generators.released import read_released_config

# As published with Wan2.1-I2V-14B-480P.
WAN = {
    "_class_name": "WanModel",
    "_diffusers_version": "0.30.0",
    "dim": 5120,
    "eps": 1e-06,
    "ffn_dim": 13824,
    "freq_dim": 256,
    "in_dim": 36,
    "model_type": "i2v",
    "num_heads": 40,
    "num_layers": 40,
    "out_dim": 16,
    "text_len": 512,
}


def test_wan_from_the_authors(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(WAN))
    fields = read_released_config(tmp_path)
    model = build_generator(fields)
    assert model.reads == ("text", "image", "first") and not model.memory
    assert (model.latent_channels, model.mask_channels, model.condition_channels) == (16, 4, 16)
    assert model.in_channels == WAN["in_dim"] and model.patch == (1, 2, 2)


def test_what_is_not_known_is_named(tmp_path):
    file = tmp_path / "config.json"
    with pytest.raises(VidlatentError, match="there is no"):
        read_released_config(file)
    file.write_text("[]")
    with pytest.raises(VidlatentError, match="no _class_name"):
        read_released_config(file)
    file.write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(VidlatentError, match="FluxTransformer2DModel: known are WanModel"):
        read_released_config(file)
