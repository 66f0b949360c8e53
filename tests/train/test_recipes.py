"""Every stage of every recipe: its step, by shapes at full size and for real when tiny."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.infer.tiny_tokenizers import QUICK
from vidlatent.config import load
from vidlatent.infer.load import model_of
from vidlatent.models.freeze import frozen_paths
from vidlatent.models.frozen import network_shapes
from vidlatent.train.steps.objective import Objective
from vidlatent.train.steps.tokenizer import make_step
from vidlatent.typing import VidlatentError

STAGES = [
    *(f"fsae:paper,stage={stage}" for stage in ("1", "2", "3", "vf")),
    "fsae:standard",
    "fsae:lite",
    *(f"ivvae:paper,stage={stage}" for stage in (1, 2, 3, 4)),
    "reducio_vae:paper",
    "reducio_vae:paper,time=2",
    "promag:paper,image=true",
    "promag:paper",
    "promag:paper,grow=1",
    "promag:paper,grow=2",
    "promag:paper,model=magvit2,k=16",
]


@pytest.mark.parametrize("stage", STAGES)
def test_a_recipe_says_what_it_needs(stage):
    config = load(stage)
    assert config.recipe
    objective = Objective(config.loss.to_dict())
    assert set(objective.networks) >= {"lpips_vgg"}
    with pytest.raises(VidlatentError, match="config.networks.lpips_vgg is empty.*convert|from"):
        make_step(config, model_of(config)).load_networks()


@pytest.mark.parametrize("stage", STAGES)
def test_every_bucket_can_have_clips(stage):
    """Of buckets of one length and aspect a clip joins the largest: no two are alike."""
    config = load(stage)
    buckets = config.data.buckets
    assert len({(t, round(h / w, 2)) for t, h, w, _ in buckets}) == len(buckets)
    assert len(config.data.bucket_weights) in (0, len(buckets))
    spec = model_of(config).latent_spec
    for frames, height, width, _ in buckets:
        spec.check_video(frames, height, width)


def test_decoder_finetunes_are_stages_too():
    for form in ("standard", "lite"):
        found, same = load(f"fsae:paper,stage={form}").to_dict(), load(f"fsae:{form}").to_dict()
        assert found.pop("preset") == f"paper-{form}" and same.pop("preset") == form
        assert found == same and found["train"]["init_recipes"]
        demo = load(f"fsae:demo,stage={form}").to_dict()
        assert demo == load(f"fsae:demo,form={form},finetune=true").to_dict()
        with pytest.raises(VidlatentError, match="does not go with this preset"):
            load(f"fsae:paper,form={form},stage=3")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_step_of_every_stage_can_be_traced(stage):
    config = load(stage)
    step = make_step(config, model_of(config))
    state = jax.eval_shape(step.init, jax.random.key(0))
    names = Objective(config.loss.to_dict()).networks
    networks = {name: network_shapes(name) for name in names}
    frames, height, width, _ = max(config.data.buckets)
    batch = {
        "video": jax.ShapeDtypeStruct((1, frames, height, width, 3), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((1,), jnp.float32),
    }
    lowered = jax.jit(step.train_step).lower(state, batch, networks)
    after, report = lowered.out_info
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert {"loss", "l1", "lpips_vgg"} <= set(report)
    if config.critic.model and (frames > 1 or config.critic.images):
        assert "critic/loss" in report


def _small_fsae(config):
    model = config.model
    model.encoder_widths = (4, 8)
    model.decoder_widths = (2, 8) if model.decoder_time == "group" else (4, 8)
    model.encoder_depths = model.decoder_depths = (1, 1)
    model.block_types, model.multiscales = ("res", "evit"), ((), (5,))
    model.temporal_down, model.noise_stages = (0,), (0,)
    model.head_dim = model.cross_head_dim = model.latent_channels = 4
    model.cross_stages = (1,) if model.cross_stages else ()
    if config.train.patch_cells:  # the middle 16 pixels of 24
        config.train.patch_cells, config.train.patch_above = 12, 32 * 24
    return 3, 32, 32


def _small_ivvae(config):
    model = config.model
    model.width, model.multipliers, model.blocks = 4, (1, 2, 2), 1
    model.temporal_down = (0, 1) if model.temporal_down else ()
    model.latent_channels, model.pac_dilations = 4, (0, 1)
    return 5, 24, 24


def _small_reducio(config):
    model = config.model
    model.width = model.content_width = model.latent_channels = model.frames = 4
    model.multipliers = model.content_multipliers = (1, 2)
    model.blocks = model.content_blocks = 1
    model.time_factor = model.space_factor = model.groups = model.heads = 2
    model.fuse = (-1, 1)
    return 4, 24, 24


def _small_promag(config):
    model = config.model
    model.width = model.latent_channels = 4
    model.multipliers, model.temporal_down = (1, 2), (0,)
    model.extra_multipliers = (2,) * len(model.extra_multipliers)
    model.blocks, model.grow_blocks, model.groups = 1, 1, 2
    return 9, 24, 24


_SMALL = {
    "fsae": _small_fsae,
    "ivvae": _small_ivvae,
    "reducio": _small_reducio,
    "promag": _small_promag,
    "magvit2": _small_promag,
}


def small(stage):
    """The recipe with all its terms, critic, rates and freezing, of a model that compiles in
    seconds and through stand-ins; and its video's frames, height and width."""
    config = load(stage)
    with config.unlocked():
        size = _SMALL[config.model.name](config)
        config.model.remat = False  # tested by itself; it takes long to compile
        config.loss.lpips_tiny = config.loss.lpips_vgg
        del config.loss.lpips_vgg
        terms = ("lpips_tiny" if t == "lpips_vgg" else t for t in config.critic.adaptive_terms)
        config.critic.adaptive_terms = tuple(terms)
        if "vf" in config.loss:
            config.loss.vf.network = "dinov2_tiny"
        if config.critic.model and config.critic.model.name == "multiscale3d":
            config.critic.model.widths, config.critic.model.scales = (4, 4), 1
        elif config.critic.model:
            config.critic.model.width = 4
    return config, size


@pytest.mark.slow
@pytest.mark.parametrize("stage", [stage for stage in STAGES if "time=2" not in stage])
def test_two_batches_of_every_stage(stage):
    """One of videos and one of images, where a recipe has both (of stages alike once)."""
    config, (frames, height, width) = small(stage)
    step = make_step(config, model_of(config))
    networks, frozen = step.load_networks(), config.optim.frozen
    lengths = {bucket[0] for bucket in config.data.buckets}
    first = (frames, height, width) if max(lengths) > 1 else (1, height, width)
    mixed = lengths > {1} and stage in ("fsae:paper,stage=1", "fsae:lite", "ivvae:paper,stage=4")
    second = (1, height, 24) if mixed else first
    state = jax.jit(step.init, compiler_options=QUICK)(jax.random.key(0))
    # Where the critic has started.
    state["step"] = jnp.int32(config.critic.start_step)
    begin, reports = jax.device_get(state), []
    train_step = jax.jit(step.train_step, compiler_options=QUICK)
    for seed, size in enumerate((first, second)):
        video = np.random.default_rng(seed).integers(0, 256, (2, *size, 3), np.uint8)
        batch = {"video": video, "mask": np.ones(2, np.float32)}
        state, report = train_step(state, batch, networks)
        reports.append(jax.device_get(report))
    for report in reports:
        assert report["bad_steps"] == 0 and all(np.isfinite(x) for x in report.values()), report
    terms = {name + "_random" * (name in ("lpips_tiny", "vf")) for name in config.loss}
    assert terms <= set(reports[0])

    def moved(part):
        return jax.tree.map(
            lambda a, b: bool(np.any(a != b)), begin[part], jax.device_get(state)[part]
        )

    stays = frozen_paths(begin["params"], frozen)
    pairs = list(zip(*map(jax.tree.leaves, (moved("params"), stays)), strict=True))
    assert any(stay for _, stay in pairs) == bool(frozen)
    assert not any(move for move, stay in pairs if stay)
    trained = [[move for move, stay in pairs if not stay]]
    if config.critic.model:
        assert "adversarial" in reports[0]
        # The hinge loss pushes the last bias both ways alike.
        trained.append(jax.tree.leaves(moved("critic")["params"]))
    for moves in trained:
        # Behind a branch that starts closed gradients are too small for two warm-up steps.
        assert sum(moves) > len(moves) / 4
    if "vf" in config.loss:
        assert all(jax.tree.leaves(moved("helpers")["params"]))
