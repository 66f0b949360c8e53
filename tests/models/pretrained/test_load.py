"""Weights of pretrained networks: reading, converting, and what is refused."""

import jax
import numpy as np
import pytest

from vidlatent.convert.networks import main
from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained import NETWORKS, random_params
from vidlatent.models.pretrained.load import load_network, read_network
from vidlatent.weights.importer import export_params
from vidlatent.weights.safetensors import load_safetensors, save_safetensors
from vidlatent.weights.tables import TABLES


@pytest.fixture(scope="module")
def params():
    return random_params("lpips_tiny", 3)


@pytest.fixture
def tensors(params):
    return export_params(params, TABLES.get("lpips"))


@pytest.mark.parametrize("name", [n for n in NETWORKS.names() if not n.endswith("_tiny")])
def test_no_path_says_what_to_fetch_and_how(name):
    with pytest.raises(VidlatentError) as caught:
        load_network(name, "")
    message, definition = str(caught.value), NETWORKS.get(name)
    for part in (f"config.networks.{name}", definition.source, f"--name={name}", "--to="):
        assert part and part in message
    assert all(file in message for file in definition.files) and definition.files
    assert message.count(". ") == 0 and message.endswith(".")


def test_stand_ins_have_nothing_to_fetch():
    with pytest.raises(VidlatentError, match="config.networks.dinov2_tiny is empty.*'random'"):
        load_network("dinov2_tiny", "")


@pytest.mark.parametrize("path", ["random:", "random:x", "random:-1"])
def test_odd_seeds(path):
    with pytest.raises(VidlatentError, match="'random' or 'random:7'"):
        load_network("lpips_tiny", path)


def test_unknown_network():
    with pytest.raises(VidlatentError, match="did you mean 'lpips_vgg'"):
        load_network("lpips_vgg16", "random")


def test_convert_and_load(tmp_path, params, tensors, capsys):
    # Trunk and heads in two files of different kinds, as they are published.
    heads = {name: tensors.pop(name) for name in list(tensors) if name.startswith("lin")}
    save_safetensors(tensors, tmp_path / "trunk.safetensors")
    np.savez(tmp_path / "heads.npz", **heads)
    target = tmp_path / "lpips_tiny.safetensors"
    files = f"{tmp_path}/trunk.safetensors,{tmp_path}/heads.npz"
    assert main(["--name=lpips_tiny", f"--from={files}", f"--to={target}"]) == 0
    assert "wrote 9 tensors" in capsys.readouterr().out
    assert set(load_safetensors(target)) == {*tensors, *heads}
    network = load_network("lpips_tiny", target)
    assert network.label == "lpips_tiny"
    jax.tree.map(np.testing.assert_array_equal, network.params, params)
    both = load_network("lpips_tiny", files).params
    jax.tree.map(np.testing.assert_array_equal, both, params)
    assert main(["--name=lpips_tiny", f"--from={target}", f"--to={target}"]) == 1
    assert "overwrite" in capsys.readouterr().err
    assert main(["--name=lpips_tiny", f"--from={target}", "--to=x.pt"]) == 1


def test_wrong_weights_are_refused(tmp_path, tensors):
    path = tmp_path / "odd.safetensors"
    tensors["net.slice9.9.weight"] = np.zeros((1, 1, 3, 3), np.float32)
    gone = tensors.pop("lin0.model.1.weight")
    save_safetensors(tensors, path)
    with pytest.raises(VidlatentError, match="lpips_tiny=.*missing: lin0/kernel.*unused: net.slic"):
        read_network("lpips_tiny", [path])
    tensors.pop("net.slice9.9.weight")
    tensors["lin0.model.1.weight"] = gone[:, :-1]
    save_safetensors(tensors, path)
    with pytest.raises(VidlatentError, match="misshaped"):
        read_network("lpips_tiny", [path])
    with pytest.raises(VidlatentError, match="no weights file at .*none.npz"):
        load_network("lpips_tiny", tmp_path / "none.npz")


def test_half_precision_files_become_float32(tmp_path, tensors):
    path = tmp_path / "half.safetensors"
    save_safetensors({name: x.astype(np.float16) for name, x in tensors.items()}, path)
    leaves = jax.tree.leaves(read_network("lpips_tiny", [path]))
    assert all(leaf.dtype == np.float32 for leaf in leaves)
