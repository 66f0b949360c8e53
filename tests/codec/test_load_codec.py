"""The public codec: from a run, from a config with weights, on files, on a mesh."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import vidlatent
from tests.helpers.tiny_tokenizers import clip
from vidlatent import config as configs
from vidlatent.codec.codec import Codec
from vidlatent.convert.run import _write_workdir
from vidlatent.errors import VidlatentError
from vidlatent.media.write import write_video
from vidlatent.models.load import abstract_params, model_of
from vidlatent.parallel.mesh import make_mesh
from vidlatent.weights.files import save_params

CONFIG = "configs/ivvae.py"
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``(codec of the parameters in hand, run, weights file)``."""
    config = configs.load(CONFIG, {"model.width": "4", "model.multipliers": "(1, 1, 2)"})
    model = model_of(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (rng.normal(size=x.shape) / 10).astype(x.dtype), abstract_params(model)
    )
    folder = tmp_path_factory.mktemp("codec")
    _write_workdir(config, folder / "run", params)
    save_params(folder / "weights.safetensors", params, family="ivvae")
    return Codec(model, params), folder / "run", folder / "weights.safetensors"


def test_import_is_light():
    code = "import sys, vidlatent; assert not {'jax', 'numpy', 'av'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code + "; vidlatent.load_codec"], check=True)
    with pytest.raises(AttributeError, match="load_codek"):
        _ = vidlatent.load_codek


def test_a_run_with_keys(made):
    known, run, _ = made
    video = clip(6)
    codec = vidlatent.load_codec(run)
    np.testing.assert_allclose(codec.encode(video).latent, known.encode(video).latent, atol=1e-6)
    chunked = vidlatent.load_codec(run, time="chunks", chunk_frames=5, overlap_frames=0)
    assert chunked.encode(video).chunks == (5, 0)
    with pytest.raises(VidlatentError, match="did you mean 'overlap_frames'"):
        vidlatent.load_codec(run, overlap_frame=4)


def test_weights_under_a_config(made, tmp_path):
    known, run, weights = made
    config = configs.read(run)
    file = tmp_path / "narrow.py"
    lines = [f"    config.model.{key} = {config.model[key]!r}" for key in ("width", "multipliers")]
    file.write_text(
        "from vidlatent.config import load_base\n\n\ndef get_config(arg=''):\n"
        "    config = load_base('ivvae:' + arg)\n" + "\n".join(lines) + "\n    return config\n"
    )
    source = tmp_path / "clip.mp4"
    write_video(source, clip(6, 16, 16), 8.0)
    for given in (weights, run):
        codec = vidlatent.load_codec(str(file), weights=given)
        coded = codec.encode(source)
        assert (coded.frames, coded.size) == (6, (16, 16))
        assert codec.decode(coded).shape == (6, 16, 16, 3)
        np.testing.assert_allclose(coded.latent, known.encode(source).latent, atol=1e-6)
    low = vidlatent.load_codec(str(file), dtype="bfloat16", weights=weights)
    assert low.model.dtype == "bfloat16"
    with pytest.raises(VidlatentError, match="pass weights="):
        vidlatent.load_codec(str(file))
    with pytest.raises(VidlatentError, match="nor the config of a tokenizer: known: dcae, "):
        vidlatent.load_codec("runs/nothing-here")


@pytest.mark.slow
def test_on_a_mesh(made):
    """Frames spread over eight devices by height give what one device gives."""
    known, run, _ = made
    sizes = {"data": 1, "fsdp": 2, "context": 4, "tensor": 1}
    codec = vidlatent.load_codec(run, mesh=make_mesh(sizes))
    for height in (64, 37):
        video = clip(6, height, 16)
        coded, plain = codec.encode(video), known.encode(video)
        np.testing.assert_allclose(coded.latent, plain.latent, atol=1e-5)
        difference = codec.decode(plain).astype(int) - known.decode(plain).astype(int)
        assert np.abs(difference).max() <= 1
