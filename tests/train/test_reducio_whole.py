"""Reducio-DiT's published recipe from videos to samples, with tiny networks."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.helpers.encode_cases import write_run
from tests.helpers.tiny_tokenizers import MODELS
from vidlatent import config as configs
from vidlatent.data.sources.latents import LatentSource
from vidlatent.encode.run import encode_set
from vidlatent.errors import VidlatentError
from vidlatent.sample.run import generate_videos
from vidlatent.train import loop

pytestmark = pytest.mark.slow

# An eighth of the frames' sides, as in the image autoencoder.
TOKENIZER = MODELS["reducio"] | {"multipliers": (1, 1, 1, 2), "space_factor": 8}
TOKENIZER |= {"fuse": (-1, 1, -1, -1)}
ENCODERS = {"text": "reducio", "text_network": "t5_tiny", "tokenizer": "words"}
ENCODERS |= {"image": "clip_tiny", "content": "sd_vae_tiny"}
GENERATOR = {"latent_channels": 3, "width": 24, "depth": 2, "heads": 2, "hidden": 24}
GENERATOR |= {"freq_dim": 8, "text_dim": 16, "image_dim": 8, "image_tokens": 1}
GENERATOR |= {"content_factor": 1, "pixels_per_latent": 8}
BUCKETS = ((4, 16, 16, 8),)


@pytest.fixture(scope="module")
def places(one_device, tmp_path_factory):
    """A Reducio-VAE and a set of shapes with texts, tokens and content latents."""
    folder = tmp_path_factory.mktemp("reducio")
    write_run(folder / "tokenizer", configs.load("configs/reducio_vae.py"), TOKENIZER)
    config = configs.read(folder / "tokenizer")
    with config.unlocked():
        config.data.source, config.data.flip = "synthetic", False
        config.data.synthetic.update({"kind": "shapes", "clips": 24, "frames": 4})
        config.data.synthetic.update({"height": 16, "width": 16})
        config.data.buckets = BUCKETS
        config.encode.update({**ENCODERS, "pictures": 0})
    assert encode_set(config, folder / "tokenizer", -1, str(folder / "set")) == 0
    return folder


def recipe(places):
    config = configs.load("reducio_dit:paper,start=random")
    with config.unlocked():
        config.generator.update(GENERATOR)
        config.encode.update(ENCODERS)
        config.tokenizer.path = str(places / "tokenizer")
        config.data.path, config.data.buckets = str(places / "set"), BUCKETS
        config.data.validation_share = 0.3
        config.train.update({"steps": 2, "log_every": 1, "tensorboard": False})
        config.eval.every, config.diffusion.eval_levels = 2, 2
        config.sampler.steps = 3
        config.sample.update({"size": (4, 16, 16), "batch": 2, "grid": 1})
    return config


def test_the_published_recipe_trains_and_samples(places, tmp_path):
    source = LatentSource(str(places / "set"))
    arrays = source.read_arrays(source.windows[0].name)
    assert arrays["content_latent"].shape == (2, 2, 4) and arrays["latent"].shape == (2, 2, 2, 3)
    assert "sd_vae_tiny_random0, a draw" in source.header.source["content"]
    run = tmp_path / "run"
    assert loop.train(recipe(places), run) == 0
    assert (run / "eval" / "step_2" / "scores.json").is_file()
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(picture)
    config, folder = configs.read(run), tmp_path / "videos"
    with pytest.raises(VidlatentError, match="'a square' has no picture.*--input=picture.png"):
        generate_videos(config, run, -1, str(folder), "a square", "", "")
    assert generate_videos(config, run, -1, str(folder), "a red square", "", str(picture)) == 0
    about = json.loads((folder / "samples.json").read_text())
    assert about["nfe"] == 6 and about["videos"][0]["image"] == "picture.png"
    assert (folder / about["videos"][0]["file"]).stat().st_size > 100
