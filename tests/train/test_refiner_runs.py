"""Runs of a tiny refiner: base, upsampler and pairs to checkpoint, resumed, refused."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers.generator_runs import generator_run
from tests.helpers.second_half import DIT, LARGE, digest, load, make_parts, refiner_config
from vidlatent import config as configs
from vidlatent.diffusion.refiner_given import Given
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.given_sheet import LEGEND, describe_given, mark_frames, render_given
from vidlatent.evaluate.run import evaluate_workdir
from vidlatent.latents.channels import follow_latents
from vidlatent.latents.distilled import Distilled
from vidlatent.latents.space import Latents, abstract_generator, generator_of
from vidlatent.models.frozen import load_frozen
from vidlatent.parallel.mesh import make_mesh
from vidlatent.sample.cascade import Cascade
from vidlatent.sample.generator import Generator
from vidlatent.train.loop import train
from vidlatent.train.tasks.base import make_task
from vidlatent.weights.files import load_params

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tokenizer, its pairs of rendered shapes, a base model and an upsampler."""
    folder = tmp_path_factory.mktemp("refiner")
    make_parts(folder)
    return folder


@pytest.mark.slow
def test_a_run_samples_and_goes_on_bitwise(places):
    assert train(refiner_config(places), places / "straight") == 0
    assert (places / "straight" / "samples" / "step_4.png").stat().st_size > 500
    assert train(refiner_config(places, **{"train.stop_at": 2}), places / "cut") != 0
    assert train(refiner_config(places), places / "cut") == 0
    assert digest(places / "cut", 4) == digest(places / "straight", 4)
    assert evaluate_workdir(configs.read(places / "straight"), places / "straight", -1, "") == 0
    assert (places / "straight" / "eval" / "step_4" / "given.png").stat().st_size > 500


def test_it_starts_as_an_exact_copy_of_the_base(places):
    """The same parameters give the same output on the same input (specification J57)."""
    base = configs.read(places / "base")
    ours, theirs = (generator_of(c) for c in (follow_latents(refiner_config(places)), base))
    abstract = abstract_generator(theirs)
    assert jax.tree.map(lambda x: x.shape, abstract_generator(ours)) == jax.tree.map(
        lambda x: x.shape, abstract
    )
    params = load_params(places / "base", abstract, family="wan")
    noisy = jax.random.normal(jax.random.key(0), (1, 3, 4, 4, 4))
    conditions = {"label": jnp.asarray([3]), "first": noisy[:, :1]}
    outputs = [
        model.apply({"params": params}, noisy, jnp.asarray([400.0]), conditions, method="denoise")
        for model in (ours, theirs)
    ]
    np.testing.assert_array_equal(*outputs)


def test_only_the_refiner_learns_and_its_condition_counts(places):
    """Gradients reach the columns that read mask and condition; frozen parts get none."""
    task = make_task(refiner_config(places))
    mesh = make_mesh({"data": 1, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        frozen = load_frozen(task.frozen, mesh)
        assert {"base", "upsampler"} <= set(frozen)
        rng = np.random.default_rng(0)
        batch = {
            "latent": jnp.asarray(rng.normal(size=(2, 3, 8, 8, 4)), jnp.float32),
            "latent_low": jnp.asarray(rng.normal(size=(2, 3, 4, 4, 4)), jnp.float32),
            "mask": jnp.ones(2),
            "label": jnp.asarray([1, 2]),
        }
        params = load_params(places / "base", abstract_generator(task.model), family="wan")
        # A model as it was begun has a head of zeros, which passes no gradient on.
        params["head"]["kernel"] = 0.1 * jax.random.normal(
            jax.random.key(0), params["head"]["kernel"].shape
        )

        def loss(params, frozen):
            return task.compute_loss(params, batch, frozen, 0, 0)[0]

        to_params, to_frozen = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, frozen)
    assert not any(np.abs(leaf).any() for leaf in jax.tree.leaves(to_frozen))
    embedding = np.abs(to_params["patch_embedding"]["kernel"]).reshape(9, -1).max(1)
    assert (embedding > 0).all()  # noise, mask and condition channels


def test_single_pictures_are_given_nothing(places):
    task = make_task(refiner_config(places))
    frozen = {}
    batch = {
        "latent": jnp.ones((2, 1, 8, 8, 4)),
        "latent_low": jnp.ones((2, 1, 4, 4, 4)),
        "mask": jnp.ones(2),
        "label": jnp.asarray([1, 2]),
    }
    latent, conditions = task.inputs(batch, frozen, jax.random.key(0))
    assert "given" not in conditions
    drop = task.draw_drop_masks(jax.random.key(0), latent, conditions)
    assert drop["first"].all()


def test_the_picture_shows_what_is_given():
    """Every row is what its label says: own latent, condition, mask."""
    order = np.asarray([[0, 1, 2], [0, 2, 1]])
    real = np.asarray([[False, False, True], [False, False, False]])
    rng = np.random.default_rng(0)
    high = rng.normal(size=(2, 3, 4, 4, 4))
    given = Given(high[:, order[1]], np.full((2, 3, 4, 4, 2), 0.5), order, real, real.any(1))
    assert describe_given(given, 0) == "frames in order\nreal 2\nsmall video dropped"
    assert describe_given(given, 1) == "frames 0 2 1"

    assert describe_given(given, 1, ["label"]) == "frames 0 2 1\nlabel dropped"

    def draw(given, mask=(1, 1), **more):
        with Image.open(io.BytesIO(render_given(high, given, np.asarray(mask), **more))) as picture:
            return np.asarray(picture.convert("RGB"))

    whole = draw(given)
    assert draw(given, (1, 0)).shape[0] < whole.shape[0]  # padding is not shown
    for name, value in (("condition", high), ("mask", given.mask / 2), ("order", order[::-1])):
        assert (draw(given._replace(**{name: value})) != whole).any(), name
    # Decoded frames stand below their latents: two more rows a clip.
    decoded = draw(given, decode=lambda latent, row: np.full((9, 8, 8, 3), 77, np.uint8))
    assert decoded.shape[0] > whole.shape[0] and (decoded == 77).all(-1).any()


def test_every_frame_is_marked_as_what_it_is():
    """Shuffled, then real, then dropped, as training does it; a dropped picture takes all."""
    zeros = np.zeros((3, 4, 2, 2, 1))
    given = Given(
        zeros,
        zeros,
        np.asarray([[0, 1, 2, 3], [0, 3, 1, 2], [0, 3, 1, 2]]),
        np.asarray([[False] * 4, [False, True, False, False], [False, True, False, False]]),
        np.asarray([False, False, True]),
    )
    real, still, moved, dropped = LEGEND
    assert mark_frames(given, 0) == [real, still, still, still]
    assert mark_frames(given, 1) == [real, real, moved, moved]
    assert mark_frames(given, 2) == [real, dropped, dropped, dropped]
    assert mark_frames(given, 1, ["label", "first"]) == [dropped] * 4
    with Image.open(io.BytesIO(render_given(zeros, given, np.ones(3)))) as picture:
        seen = {tuple(pixel) for pixel in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    assert {tuple(colour) for colour in LEGEND.values()} <= seen


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"refiner.base": ""}, "config.refiner.base is empty"),
        ({"refiner.upsampler": "nowhere"}, "config.refiner.upsampler=nowhere is no run"),
        ({"refiner.base": "UPSAMPLER"}, "a run of the task 'upsampler': name one of the task"),
        ({"refiner.mask_high": 1.0}, "mask_high=1.0.*a range below 1"),
        ({"generator.mask_channels": 0}, "a refiner is given a mask and a latent"),
        ({"data.path": "SMALL"}, "config.encode.low=2"),
    ],
)
def test_what_does_not_fit_is_refused(places, keys, message):
    named = {"UPSAMPLER": places / "upsampler", "SMALL": places / "small"}
    keys = {key: named.get(value, value) for key, value in keys.items()}
    with pytest.raises(VidlatentError, match=message):
        make_task(refiner_config(places, **keys))


def test_parts_of_another_space_are_refused(places, tmp_path):
    """Other moments, and another encoder: one sentence that names both."""
    other = tmp_path / "upsampler"
    config = configs.read(places / "upsampler")
    config_path = other / "config.json"
    other.mkdir()
    config_path.write_text((places / "upsampler" / "config.json").read_text())
    (other / "checkpoints").symlink_to(places / "upsampler" / "checkpoints")
    known = Latents.load(places / "upsampler")
    space = known.space.with_moments([0.5] * 4, [2.0] * 4)
    type(known)(space, known.label_names, known.fps).save(other)
    with pytest.raises(VidlatentError, match="this refiner.*upsampler.*means and standard dev"):
        make_task(refiner_config(places, **{"refiner.upsampler": other}))
    assert config.task == "upsampler"


@pytest.fixture(scope="module")
def refiner(places):
    generator_run(refiner_config(places), places / "refiner")
    return places / "refiner"


def distilled_config(places, stage, teacher, **keys):
    """Base model and upsampler are those of the teacher."""
    start = {"distill.teacher": teacher, "data.buckets": LARGE["data.buckets"]}
    merged = {**DIT, **LARGE, **start, **keys}
    return load(f"configs/fsvideo_refiner.py:demo,stage={stage}", places, **merged)


def test_a_refiner_is_distilled_with_all_that_it_is_given(places, refiner):
    """Guidance of the label alone; base, upsampler and teacher are frozen side by side."""
    task = make_task(distilled_config(places, "cfg", refiner))
    assert set(task.frozen) == {"base", "upsampler", "teacher"}
    assert task.config.refiner.base == str(places / "base")
    assert configs.role_of(task.config) == "refiner"
    assert task.describe().guidance.drops == (("label",),)
    with pytest.raises(VidlatentError, match="is a generator, and this config trains a refiner"):
        base = distilled_config(places, "cfg", places / "base", **{"refiner.base": places / "base"})
        make_task(base)


@pytest.mark.slow
def test_a_distilled_refiner_ends_a_cascade(places, refiner):
    """Guidance, then 16 steps to 8, then videos: 4 base steps of two branches, 8 of one."""
    steps = {"sampler.steps": 16}
    assert train(distilled_config(places, "cfg", refiner, **steps), places / "r_cfg") == 0
    config = distilled_config(places, "progressive", places / "r_cfg", **{"sampler.steps": 8})
    assert train(config, places / "r_few") == 0
    assert Distilled.load(places / "r_few").grid_at(4).steps == 8
    cascade = Cascade.of(Generator.from_workdir(places / "base"), places / "r_few")
    assert cascade.nfe == {"base": 4, "refiner": 8}
    picture = np.zeros((16, 16, 3), np.uint8)
    assert cascade("3", picture).shape == (5, 16, 16, 3)
