"""Runs of distillation, from a trained teacher to videos of few steps: resumed, scored, refused."""

import json

import jax
import numpy as np
import pytest

from tests.helpers.distillation import set_keys
from tests.helpers.generator_runs import generator_run, tiny, tokenizer_run
from tests.train.test_generator_runs import digest, encoded, sampled
from vidlatent import config as configs
from vidlatent import load_generator
from vidlatent.config import distil_guidance, halve_steps
from vidlatent.config.validate import validate
from vidlatent.errors import VidlatentError
from vidlatent.evaluate import generator as generate_eval
from vidlatent.latents.distilled import Distilled
from vidlatent.latents.space import abstract_generator, generator_of
from vidlatent.report.writers import read_metrics
from vidlatent.train.loop import INTERRUPTED, train
from vidlatent.weights.files import load_params

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tokenizer, its latents, and a generator with random weights to distil."""
    folder = tmp_path_factory.mktemp("distilled")
    tokenizer_run(folder / "tokenizer")
    encoded(folder, "latents")
    generator_run(config_of(folder), folder / "base")
    return folder


def config_of(places, **keys):
    config = tiny(places / "tokenizer", "latents", data__path=places / "latents")
    with config.unlocked():
        config.train.steps, config.train.log_every, config.checkpoint.every = 4, 2, 0
        set_keys(config, keys)
    return config


def student(places, stage, teacher, **keys):
    config = config_of(places)
    with config.unlocked():
        config.sampler.steps = 8
        if stage == "cfg":
            distil_guidance(config, 2.5, "label", config.recipe)
        else:
            halve_steps(config, (4, 2), f"{config.recipe} cfg")
        config.distill.teacher = str(places / teacher)
        set_keys(config, keys)
    validate(config)
    return config


@pytest.fixture(scope="module")
def guided(places):
    assert train(student(places, "cfg", "base", eval__every=2), places / "cfg") == 0
    return places / "cfg"


@pytest.fixture(scope="module")
def halved(places, guided):
    config = student(places, "progressive", "cfg", eval__every=2, checkpoint__every=1)
    with config.unlocked():
        config.checkpoint.keep_latest = 9
    assert train(config, places / "halved") == 0
    return places / "halved"


def test_guidance_is_built_in_and_stored(guided, places):
    found = Distilled.load(guided)
    assert found.guidance.scales == (2.5,) and found.guidance.drops == (("label",),)
    assert found.grids == () and found.teacher == {"workdir": str(places / "base"), "step": 1}
    stored = configs.read(guided)
    assert stored.train.init_from == stored.distill.teacher == str(places / "base")
    curves = read_metrics(guided / "metrics.jsonl")
    assert curves["val/loss"][0] == [2, 4] and curves["val/loss"][1][1] > 0
    assert (guided / "samples" / "step_2.png").is_file()


def test_samples_need_one_evaluation_a_step(guided, tmp_path):
    about = sampled(guided, tmp_path / "a", prompt="3")
    assert about["nfe"] == 8
    # Asking for what is built in is asking for nothing more.
    again = sampled(guided, tmp_path / "b", prompt="3", sampler__guidance__scales="(2.5,)")
    assert again["nfe"] == 8
    with pytest.raises(VidlatentError, match=r"scales=\(4.0,\), but this generator has the guida"):
        sampled(guided, tmp_path / "c", prompt="3", sampler__guidance__scales="(4.0,)")
    forced = {"sampler__guidance__scales": "(4.0,)", "sampler__force": "true"}
    assert sampled(guided, tmp_path / "d", prompt="3", **forced)["nfe"] == 16
    # Any number of steps will do before they are distilled.
    assert sampled(guided, tmp_path / "e", prompt="3", sampler__steps=3)["nfe"] == 3


def test_the_python_call_is_refused_alike(guided, halved):
    generator = load_generator(guided)
    with pytest.raises(VidlatentError, match="built in, and cannot be guided otherwise"):
        generator("3", guidance=4.0)
    assert generator("3", guidance=2.5).shape == (3, 8, 8, 3)
    generator = load_generator(halved)
    assert generator.nfe == 2 and generator("3").shape == (3, 8, 8, 3)
    with pytest.raises(VidlatentError, match="steps=4, but this generator was distilled to 2"):
        generator("3", steps=4)
    with pytest.raises(VidlatentError, match="steps=4, but this generator was distilled to 2"):
        load_generator(halved, steps=4)
    assert load_generator(halved, steps=4, force=True).nfe == 4


def test_every_checkpoint_is_sampled_with_its_own_steps(halved):
    grids = Distilled.load(halved).grids
    assert [(begun, grid.steps) for begun, grid in grids] == [(0, 4), (2, 2)]
    levels = np.asarray(grids[0][1].levels)
    np.testing.assert_array_equal(levels[::2], grids[1][1].levels)
    assert Distilled.load(halved).guidance.scales == (2.5,)  # of the teacher
    assert [load_generator(halved, step=step).nfe for step in (1, 2, 3, 4)] == [4, 4, 2, 2]


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"sampler__shift": "5.0"}, "config.sampler.shift=5.0"),
        ({"sampler__name": "unipc"}, "config.sampler.name='unipc'"),
        ({"sampler__spacing": "wan_unipc"}, "config.sampler.spacing='wan_unipc'"),
        ({"diffusion__schedule__shift": "5.0"}, "config.diffusion.schedule.shift=5.0"),
        ({"sampler__guidance__scales": "(1.0,)"}, r"config.sampler.guidance.scales=\(1.0,\)"),
    ],
)
def test_other_levels_are_refused(halved, tmp_path, keys, key):
    with pytest.raises(VidlatentError, match=f"{key}, but this generator"):
        sampled(halved, tmp_path / "x", prompt="3", **keys)


def test_a_student_starts_from_its_teacher(places, guided):
    """After one step of a rate of 0 it is its teacher still."""
    config = student(places, "progressive", "cfg", optim__lr=0.0)
    with config.unlocked():
        config.train.steps = 2
    assert train(config, places / "still") == 0
    abstract = abstract_generator(generator_of(configs.read(guided)))
    ours, theirs = (load_params(p, abstract, family="wan") for p in (places / "still", guided))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("cut", [2, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 3))])
def test_a_cut_run_goes_on_bitwise(places, halved, cut):
    """Cut within a stage, at a stage's border, and within the next one."""
    folder = places / f"cut_{cut}"
    assert train(student(places, "progressive", "cfg", train__stop_at=cut), folder) == INTERRUPTED
    assert train(student(places, "progressive", "cfg"), folder) == 0
    assert digest(folder, 4) == digest(halved, 4)


@pytest.mark.slow
def test_a_cut_distillation_of_guidance_goes_on_bitwise(places, guided):
    folder = places / "cut_cfg"
    assert train(student(places, "cfg", "base", train__stop_at=3), folder) == INTERRUPTED
    assert train(student(places, "cfg", "base"), folder) == 0
    assert digest(folder, 4) == digest(guided, 4)
    with pytest.raises(VidlatentError, match="the run in .* distils .* w = 2.5 .* w = 3 of"):
        train(student(places, "cfg", "base", distill__scales=(3.0,), train__steps=6), folder)


def test_scores_are_those_of_training(guided, halved, tmp_path):
    """The distance from the teacher, whether it is another run or part of the checkpoint."""
    for workdir in (guided, halved):
        before = json.loads((workdir / "eval" / "step_4" / "scores.json").read_text())
        config, folder = configs.read(workdir), tmp_path / workdir.name
        assert generate_eval.evaluate_generator(config, workdir, 4, str(folder)) == 0
        found = json.loads((folder / "scores.json").read_text())
        assert found["scores"] == before["scores"] and found["by_level"] == before["by_level"]
        assert (folder / "contact_sheet.png").is_file()


def test_plain_training_would_undo_it(places, guided):
    config = config_of(places, train__init_from=str(guided))
    with pytest.raises(VidlatentError, match="built in, which training on data undoes: start from"):
        train(config, places / "plain")
    with config.unlocked():
        config.sampler.force, config.train.steps = True, 1
    assert train(config, places / "plain") == 0
    assert Distilled.load(places / "plain") is None


@pytest.mark.slow
def test_an_embedded_scale_is_an_input_in_sampling(places, tmp_path):
    keys = {
        "distill__scales": (),
        "distill__scale_range": (1.0, 7.0),
        "train__init_kind": "guidance",
    }
    keys |= {"generator__guidance_embed": True, "sampler__guidance__scales": (3.0,)}
    assert train(student(places, "cfg", "base", **keys), places / "told") == 0
    assert Distilled.load(places / "told").guidance.told == (1.0, 7.0)
    assert sampled(places / "told", tmp_path / "a", prompt="3")["nfe"] == 8
    with pytest.raises(VidlatentError, match="takes one scale from 1 to 7 as an input"):
        sampled(places / "told", tmp_path / "b", prompt="3", sampler__guidance__scales="(9.0,)")
    steps = {"generator__guidance_embed": True, "sampler__guidance__scales": (3.0,)}
    assert train(student(places, "progressive", "told", **steps), places / "told_halved") == 0
    generator = load_generator(places / "told_halved")
    few, many = (generator("3", guidance=w) for w in (1.0, 7.0))
    assert generator.nfe == 2 and few.shape == many.shape


@pytest.mark.parametrize(
    ("stage", "keys", "message"),
    [
        ("cfg", {"distill__teacher": ""}, "config.distill.teacher is empty: name the workdir"),
        ("cfg", {"distill__teacher": "nowhere"}, "teacher=nowhere is no run with checkpoints"),
        ("cfg", {"distill__teacher": "TOKENIZER"}, "is a run of the task 'tokenizer': name one of"),
        ("cfg", {"distill__teacher": "GUIDED"}, "would be guided twice"),
        ("cfg", {"diffusion__schedule__name": "linear"}, "schedule.name='flow', and its student"),
        ("cfg", {"generator__width": 32}, "trained with config.generator.width=16, and its stude"),
        ("progressive", {"distill__teacher_step": 4}, "teacher_step=4: the student starts from"),
        ("progressive", {"distill__teacher": "BASE"}, "sampled with the guidance scale 2.5"),
    ],
)
def test_what_is_refused(places, guided, stage, keys, message):
    named = {"TOKENIZER": places / "tokenizer", "GUIDED": guided, "BASE": places / "base"}
    keys = {k: str(named[v]) if isinstance(v, str) and v in named else v for k, v in keys.items()}
    with pytest.raises(VidlatentError, match=message):
        train(student(places, stage, "base" if stage == "cfg" else "cfg", **keys), places / "no")
