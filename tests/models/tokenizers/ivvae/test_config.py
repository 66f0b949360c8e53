"""The shipped presets make models of the published sizes."""

import jax
import pytest

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.models.load import abstract_params, model_of

MILLIONS = {
    "z4": 107.17,
    "paper": 107.80,
    "z16,width=96": 241.85,
    "paper,variant=causal,width=96": 126.89,
    "paper,stage=1": 21.55,
}


@pytest.mark.parametrize("arg", MILLIONS)
def test_paper_presets(arg):
    model = model_of(configs.load(f"configs/ivvae.py:{arg}"))
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model)))
    assert round(count / 1e6, 2) == MILLIONS[arg]


@pytest.mark.parametrize("variant", ["ivvae", "gcconv", "ktc_causal"])
def test_demo_takes_every_variant(variant):
    config = configs.load(f"configs/ivvae.py:demo,variant={variant}")
    model = model_of(config)
    assert abstract_params(model)
    for frames, height, width, _ in config.data.buckets:
        model.latent_spec.check_video(frames, height, width)


def test_released_weights_bring_their_scale():
    spec = model_of(configs.load("configs/ivvae.py:z4")).latent_spec
    assert (spec.scale, spec.shift) == (1.3196, 0.1250)
    assert model_of(configs.load("configs/ivvae.py:z4,variant=ktc")).latent_spec.scale == 1.0


def test_wrong_stage_is_named():
    with pytest.raises(VidlatentError, match="stage=5: paper has 1, 2, 3, 4"):
        configs.load("configs/ivvae.py:paper,stage=5")
    with pytest.raises(VidlatentError, match="stage=3: demo has 2, 4"):
        configs.load("configs/ivvae.py:demo,stage=3")
