"""The table of released weights: what it lists, and the messages that are made from it."""

import json
import math

import numpy as np
import pytest

from docs import make_weights
from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.models.load import abstract_params, model_of
from vidlatent.models.pretrained.load import read_network
from vidlatent.weights.files import load_params, read_tensors
from vidlatent.weights.importer import export_names
from vidlatent.weights.listing import main as list_weights
from vidlatent.weights.listing import make_page
from vidlatent.weights.released import RELEASED, describe_other, list_released, recognise
from vidlatent.weights.safetensors import save_safetensors
from vidlatent.weights.tables import TABLES


def tensors_of(row, table):
    """Shapes of a published file as our model of that size has them, by the file's names."""
    model = model_of(configs.load(row.config))
    names = export_names(abstract_params(model), TABLES.get(table))
    # Arrays with zero strides take no memory.
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in names.items()}


def test_page_is_the_tables():
    assert make_page() == make_weights.PAGE.read_text(), "run python -m docs.make_weights"


def test_every_row_says_where_how_and_that_nothing_was_tried():
    for name, row in list_released().items():
        assert row.files and row.where and row.command, name
        assert row.tried.startswith("not on the real file"), name
        assert row.tables and set(row.tables) <= set(TABLES.names()), name
        if row.config:
            configs.load(row.config)


@pytest.mark.parametrize(
    "name", ["wan21_vae", "wan22_vae", "ivvae_z8_dim64", "ivvae_z16_dim96", "reducio-ft2"]
)
def test_published_sizes_are_recognised_among_their_variants(name):
    row = RELEASED[name]
    for table in row.tables:
        if not name.startswith("wan22") or table != "wan_vae_diffusers21":
            assert recognise(tensors_of(row, table)) == [name], table


def test_variants_of_one_shape_are_named_together():
    row = RELEASED["dcae-f64c128-in-1.0"]
    assert recognise(tensors_of(row, "dcae")) == ["dcae-f64c128-in-1.0", "dcae-f64c128-mix-1.0"]


def test_size_of_a_listed_file_is_that_of_the_parameters():
    for name, size in (("wan21_vae", 508e6), ("wan22_vae", 2.82e9)):
        shapes = tensors_of(RELEASED[name], "wan_vae").values()
        assert 4 * sum(math.prod(x.shape) for x in shapes) == pytest.approx(size, rel=1e-3)


def test_a_file_of_another_model_is_named_in_one_line(tmp_path):
    tensors = tensors_of(RELEASED["wan21_vae"], "wan_vae")
    says = describe_other("vae.pth", tensors, "fsae")
    assert "Wan2.1's VAE" in says and "--config=wan_vae:wan21" in says and "fsae" in says
    assert len(says) < 200 and not describe_other("vae.pth", tensors, "wan_vae")
    path = tmp_path / "small.safetensors"
    hollow = {n: np.zeros(x.shape if len(x.shape) < 4 else (1,) * len(x.shape), np.float32)
              for n, x in tensors.items()}  # fmt: skip
    hollow["decoder.conv1.weight"] = np.zeros((384, 16, 3, 3, 3), np.float32)
    save_safetensors(hollow, path)
    abstract = abstract_params(model_of(configs.load("fsae:demo")))
    with pytest.raises(VidlatentError, match="holds weights of Wan2.1's VAE"):
        load_params(path, abstract, family="fsae")
    with pytest.raises(VidlatentError, match="networks.lpips_vgg.*Wan2.1's VAE"):
        read_network("lpips_vgg", [path])


def test_a_missing_file_says_where_it_is_published(tmp_path):
    with pytest.raises(VidlatentError, match="Wan-AI/Wan2.1-T2V-14B.*mode=convert"):
        read_tensors(tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(VidlatentError, match="of huggingface.co/mit-han-lab/dc-ae"):
        read_tensors(tmp_path / "dc-ae.safetensors", ("dcae",))
    with pytest.raises(VidlatentError, match="python -m vidlatent.weights"):
        read_tensors(tmp_path / "mine.safetensors")
    path = tmp_path / "lpips_vgg.safetensors"
    says = "config.networks.lpips_vgg: no weights file at .*vgg16-397923af.pth.*convert.networks"
    with pytest.raises(VidlatentError, match=says):
        read_network("lpips_vgg", [path])


def test_command_lists_and_recognises(tmp_path, capsys):
    assert list_weights(["--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed) == set(list_released())
    assert listed["videoalign"]["sha256"].startswith("48375908")
    assert list_weights([]) == 0
    assert "published at: huggingface.co/Wan-AI" in capsys.readouterr().out
    assert list_weights([str(tmp_path / "nothing.pth")]) == 1
    save_safetensors({"a": np.zeros(1, np.float32)}, tmp_path / "a.safetensors")
    assert list_weights([str(tmp_path / "a.safetensors")]) == 1
    assert "none of the known" in capsys.readouterr().err
