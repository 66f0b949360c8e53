"""Stages: what they inherit from the previous run, and which runs they refuse to start from."""

import functools

import jax
import numpy as np
import pytest

from tests.helpers.recipes import DEMOS, PAPER
from tests.helpers.training_runs import digest, train
from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.models.load import abstract_params, model_of, open_checkpoints
from vidlatent.train.init_from import check_init_from
from vidlatent.train.loop import INTERRUPTED
from vidlatent.train.tasks.tokenizer import TokenizerTask
from vidlatent.weights.tables import initialize_from


def stage(source, *recipes):
    config = configs.load("tests/tiny.py:discriminator")
    with config.unlocked():
        config.recipe = "tiny next"
        config.train.init_from = str(source)
        config.train.init_recipes = recipes
    return config


def folder(path, recipe):
    """A workdir with just enough in it to read its recipe."""
    config = configs.load("tests/tiny.py")
    with config.unlocked():
        config.recipe = recipe
    (path / "checkpoints").mkdir(parents=True)
    configs.write(config, path)
    return path


def test_a_wrong_stage_is_refused_by_name(tmp_path):
    wrong = folder(tmp_path / "wrong", "tiny other")
    with pytest.raises(VidlatentError, match="'tiny other'.*follows on 'tiny discriminator'"):
        check_init_from(stage(wrong, "tiny discriminator"))
    nameless = folder(tmp_path / "nameless", "")
    with pytest.raises(VidlatentError, match="no recipe.*init_recipes"):
        check_init_from(stage(nameless, "tiny discriminator"))
    with pytest.raises(
        VidlatentError, match="'tiny next' follows on tiny discriminator.*init_from"
    ):
        check_init_from(stage("", "tiny discriminator"))


# Recipes that each stage may start from. Stages not listed may start from any weights or none.
AFTER = {
    "fsae 2": {"fsae 1"},
    "fsae 3": {"fsae 2"},
    "fsae vf": {"fsae 3"},
    "fsae standard": {"fsae 3", "fsae vf"},
    "fsae lite": {"fsae standard"},
    "ivvae 2": {"ivvae 1"},
    "ivvae 3": {"ivvae 2"},
    "ivvae 4": {"ivvae 3"},
    "ivvae volumes 2": {"ivvae 1"},
    "ivvae ktc 2": {"ivvae plain 1"},
    "ivvae ktc_causal 2": {"ivvae plain 1"},
    "ivvae gcconv 2": {"ivvae single 1"},
    "ivvae causal 2": {"ivvae single 1"},
    "ivvae causal 3": {"ivvae causal 2"},
    "ivvae causal 4": {"ivvae causal 3"},
    "promag I": {"promag 0"},
    "promag I 8x": {"promag 0"},
    "promag I 16x": {"promag 0"},
    "promag II": {"promag I"},
    "promag III": {"promag II"},
    "promag II plain": {"promag I"},
    "promag III plain": {"promag II plain"},
}
# Demos that differ: shorter chains, and no image encoder for frame 0.
AFTER_DEMOS = {
    "fsae:demo,stage=vf": {"fsae 1"},
    "fsae:demo,stage=standard": {"fsae 1", "fsae vf"},
    "ivvae:demo": None,
    "ivvae:demo,stage=4": {"ivvae 2"},
    "ivvae:demo,variant=causal,stage=4": {"ivvae causal 2"},
    "promag:demo": None,
    "promag:demo,gan=true": None,
}


def test_every_stage_refuses_every_run_but_those_it_follows_on(tmp_path, monkeypatch):
    """Weights without arrays, since only the name of the recipe is read."""
    stages = {spec: configs.load(spec) for spec in (*PAPER, *DEMOS)}
    recipes = {config.recipe for config in stages.values()}
    assert set(AFTER) <= recipes and set().union(*AFTER.values()) <= recipes
    runs = {name: folder(tmp_path / name.replace(" ", "_"), name) for name in recipes | {""}}
    monkeypatch.setattr(configs, "read", functools.cache(configs.read))
    for spec, config in stages.items():
        allowed = AFTER_DEMOS.get(spec, AFTER.get(config.recipe))
        if allowed is None:
            assert not config.train.init_recipes, spec
            if config.train.init_kind:  # from a file of another model
                with pytest.raises(VidlatentError, match="for .*: name the weights"):
                    check_init_from(config)
                config.train.init_kind = ""
            check_init_from(config)
            continue
        with pytest.raises(VidlatentError, match="name the weights it starts from"):
            check_init_from(config)
        taken = set()
        for name, run in runs.items():
            config.train.init_from = str(run)
            try:
                check_init_from(config)
                taken.add(name)
            except VidlatentError as error:
                assert "follows on" in str(error) and "\n" not in str(error)
        assert taken == allowed, spec


def test_a_first_video_model_is_inflated_of_its_own_image_model():
    for variant, kind, image, latents in (
        ("ivvae", "ivvae_image", "image", 8),
        ("volumes", "ivvae_image", "image", 8),
        ("ktc", "ivvae_image", "image_plain", 8),
        ("ktc_causal", "ivvae_image_causal", "image_plain", 8),
        ("gcconv", "ivvae_image", "image_plain", 16),
        ("causal", "ivvae_image_causal", "image_plain", 16),
    ):
        first, second, third = (
            configs.load(f"ivvae:paper,variant={variant},stage={n}") for n in (1, 2, 3)
        )
        assert (first.model.variant, first.model.latent_channels) == (image, latents)
        assert (second.model.variant, second.train.init_kind) == (variant, kind)
        assert third.train.init_kind == "" and third.model == second.model
        assert first.recipe in second.train.init_recipes
        if kind == "ivvae_image_causal":
            params = [abstract_params(model_of(config)) for config in (first, second)]
            jax.eval_shape(functools.partial(initialize_from, kind), *params)


def saved(workdir, step):
    config = configs.read(workdir)
    abstract = jax.eval_shape(TokenizerTask(config, model_of(config)).init, jax.random.key(0))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), abstract
    )
    checkpoints = open_checkpoints(config, workdir)
    state = checkpoints.restore(target, step=step).state
    checkpoints.close()
    return state


@pytest.mark.slow
def test_resume_is_bitwise_with_a_discriminator_and_the_next_stage_takes_it_along(tmp_path):
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    train(straight, preset="discriminator")
    train(cut, "--config.train.stop_at=5", preset="discriminator", status=INTERRUPTED)
    train(cut, preset="discriminator")
    assert digest(cut, 12) == digest(straight, 12)
    first = saved(straight, 12)
    assert float(np.abs(first["discriminator"]["anchors"]["real"]).max()) > 0

    # Before its ``start_step`` the discriminator is not trained, so it stays the inherited one.
    still = tmp_path / "still"
    train(
        still,
        f"--config.train.init_from={straight}",
        "--config.train.init_recipes=('tiny discriminator',)",
        "--config.train.steps=1",
        "--config.discriminator.start_step=5",
        preset="discriminator",
    )
    jax.tree.map(
        np.testing.assert_array_equal, saved(still, 1)["discriminator"], first["discriminator"]
    )
