"""Sampling latents: the number of evaluations, and the same result in every way to compute it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.latents.contract import LatentSpace
from vidlatent.latents.space import Latents, abstract_generator, example, generator_of
from vidlatent.models.generators import build_generator
from vidlatent.models.generators.base import GeneratorDefaults
from vidlatent.models.load import abstract_params, model_of
from vidlatent.parallel.mesh import local_mesh
from vidlatent.parallel.sharding import replicated
from vidlatent.sample.sampler import LatentSampler, latent_psnr
from vidlatent.spec import FrameRule, LatentSpec
from vidlatent.train.tasks.generator import GeneratorTask

SHAPE = (2, 2, 2, 3)
WAN = {
    "name": "wan",
    "latent_channels": 3,
    "mask_channels": 1,
    "condition_channels": 3,
    "patch": (1, 1, 1),
    "width": 24,
    "depth": 2,
    "heads": 2,
    "hidden": 32,
    "freq_dim": 8,
    "text_dim": 6,
    "text_length": 4,
    "image_dim": 5,
}
FLOW = {"name": "flow", "shift": 3.0}
QUICK = {"xla_backend_optimization_level": 0}


def settings(steps=3, scales=(4.0,), drops=(("text",),), schedule=FLOW, **keys):
    """A config whose sampler is small; ``keys`` are of ``sampler`` or ``sampler.guidance``."""
    config = load("fsvideo_dit")
    with config.unlocked():
        config.diffusion.schedule = ConfigDict(schedule)
        config.sampler.update({"steps": steps, "shift": 3.0})
        config.sampler.guidance.update({"scales": scales, "drops": drops})
        for name, value in keys.items():
            section = config.sampler.guidance if name in config.sampler.guidance else config.sampler
            section[name] = value
    return config


@pytest.fixture(scope="module")
def wan():
    """A generator that reads every condition, without zero weights, and a batch of two requests."""
    model = build_generator(WAN)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32),
        abstract_generator(model),
    )
    conditions = {
        "text": {
            "states": rng.normal(size=(2, 3, 6)).astype(np.float32),
            "length": np.array([3, 2], np.int32),
        },
        "image": rng.normal(size=(2, 3, 5)).astype(np.float32),
        "first": rng.normal(size=(2, 1, 2, 2, 3)).astype(np.float32),
    }
    return model, params, conditions


def drawn(wan, seeds=(1, 2), pick=slice(None), **keys):
    model, params, conditions = wan
    sampler = LatentSampler(model, settings(**keys), SHAPE)
    conditions = jax.tree.map(lambda x: x[pick], conditions)
    run = jax.jit(sampler.run, compiler_options=QUICK)
    return np.asarray(run(params, jnp.asarray(seeds, jnp.uint32), conditions))


@pytest.fixture(scope="module")
def usual(wan):
    return drawn(wan)


def test_kept_keys_and_values_change_nothing(wan, usual):
    np.testing.assert_allclose(drawn(wan, cache_conditions=False), usual, atol=1e-5)


def test_branches_in_one_call_are_branches_in_two(wan, usual):
    np.testing.assert_allclose(drawn(wan, batched=False), usual, atol=1e-5)


def test_a_refiner_is_given_the_same_in_every_way_to_compute_it(wan):
    """Mask and condition of all frames, 'given': cached or not, branches joined or not."""
    model, params, conditions = wan
    given = np.random.default_rng(1).normal(size=(2, *SHAPE[:3], 4)).astype(np.float32)
    refiner = (model, params, {**conditions, "given": given})
    joined = drawn(refiner)
    for keys in ({"cache_conditions": False}, {"batched": False}):
        np.testing.assert_allclose(drawn(refiner, **keys), joined, atol=1e-5)
    other = drawn((model, params, {**conditions, "given": -given}))
    assert np.abs(other - joined).max() > 1e-2


def test_a_sample_is_its_seeds_and_conditions(wan, usual):
    assert np.abs(usual[0] - usual[1]).max() > 0.1
    alone = drawn(wan, seeds=(2,), pick=slice(1, 2))
    np.testing.assert_allclose(alone[0], usual[1], atol=1e-5)
    other = drawn(wan, seeds=(3, 2))
    np.testing.assert_allclose(other[1], usual[1], atol=1e-6)
    assert np.abs(other[0] - usual[0]).max() > 0.1


@pytest.mark.parametrize("keys", [{}, {"batched": False}, {"cache": 1}])
def test_single_steps_are_the_whole_loop(wan, usual, keys):
    """Also that it is told how far it is, and that it can be stopped between two steps."""
    model, params, conditions = wan
    config = settings(**keys) if "cache" not in keys else settings()
    if "cache" in keys:
        with config.unlocked():
            config.sampler.cache.threshold = 1e-9  # the rule's state is handed on, nothing skipped
    sampler, told = LatentSampler(model, config, SHAPE), []
    placed = jax.device_put(params, replicated(local_mesh([1])))
    found = sampler(placed, (1, 2), conditions, lambda *done: told.append(done))
    np.testing.assert_allclose(found, usual, atol=1e-5)
    assert told == [(1, 3), (2, 3), (3, 3)] and sampler.working_bytes > 0

    def stop(done, steps):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler(placed, (1, 2), conditions, stop)
    assert len(sampler._compiled) == 1


def test_guidance_only_within_its_interval(wan, usual):
    # The second of three levels, shifted by 3, is 6/7.
    inside = drawn(wan, interval=(0.0, 0.9))
    assert np.abs(inside - usual).max() > 1e-3
    np.testing.assert_allclose(drawn(wan, interval=(0.0, 1.0)), usual, atol=1e-5)
    none = drawn(wan, scales=(), drops=())
    np.testing.assert_allclose(drawn(wan, interval=(2.0, 3.0)), none, atol=1e-5)
    np.testing.assert_allclose(drawn(wan, scales=(1.0,)), none, atol=1e-5)


def test_conditions_can_be_missing_in_the_whole_batch(wan):
    model, params, conditions = wan
    sampler = LatentSampler(model, settings(), SHAPE)
    given = {**conditions, "image": None, "first": None}
    run = jax.jit(sampler.run, compiler_options=QUICK)
    assert np.isfinite(run(params, jnp.asarray([1, 2], jnp.uint32), given)).all()


def test_a_single_picture_is_not_shown_what_it_must_become(wan):
    """Training drops the first frame and its tokens for single frames, and so does sampling."""
    model, params, conditions = wan
    other = {**conditions, "first": conditions["first"] + 1.0, "image": conditions["image"] - 1.0}
    differences = []
    for frames in (1, 2):
        sampler = LatentSampler(model, settings(), (frames, *SHAPE[1:]))
        run = jax.jit(sampler.run, compiler_options=QUICK)
        found = [
            run(params, jnp.asarray([1, 2], jnp.uint32), given) for given in (conditions, other)
        ]
        differences.append(float(jnp.abs(found[0] - found[1]).max()))
    assert differences[0] == 0.0 and differences[1] > 0.1


def test_the_dropped_conditions_are_those_of_training(wan):
    config = load("fsvideo_dit:demo")
    with config.unlocked():
        config.conditions.drop = {}
    model, _, conditions = wan
    for frames in (1, 2):
        x0 = jnp.zeros((2, frames, *SHAPE[1:]))
        spec = LatentSpec("toy", 3, 4, 4, 4, FrameRule(1, 4))
        task = GeneratorTask(config, model, Latents(LatentSpace.of_spec(spec)))
        trained = task.draw_drop_masks(jax.random.key(0), x0, conditions)
        sampler = LatentSampler(model, settings(), x0.shape[1:])
        sampled = sampler._branch(conditions, (), 2)["drop"]
        assert {*trained} <= {*sampled} == {*model.reads}
        for name, mask in sampled.items():
            np.testing.assert_array_equal(mask, trained.get(name, jnp.zeros(2, bool)), name)
            assert bool(mask.all()) == (frames == 1 and name in ("first", "image"))


def carried(function, *arguments):
    """Shape -> dtypes of the largest arrays that loops carry in a program."""
    found, programs = {}, [jax.make_jaxpr(function)(*arguments).jaxpr]
    while programs:
        for equation in programs.pop().eqns:
            inner = [p.jaxpr if hasattr(p, "jaxpr") else p for p in equation.params.values()]
            programs += [p for p in inner if hasattr(p, "eqns")]
            if equation.primitive.name == "scan":
                for variable in equation.outvars[: equation.params["num_carry"]]:
                    found.setdefault(variable.aval.shape, set()).add(variable.aval.dtype.name)
    return found


@pytest.mark.parametrize(("chosen", "size"), [("float32", 4), ("auto", 2)])
def test_layer_memory_of_the_published_network_takes_two_bytes_a_number(chosen, size):
    """Of 121 frames at 384x640: 1,860 tokens of 5,120 channels from 40 layers, a branch."""
    config = load("fsvideo_dit:paper,stage=target", {"sampler.residual_dtype": chosen})
    sampler = LatentSampler(generator_of(config, "bfloat16"), config, (31, 6, 10, 128))
    params, model = abstract_generator(sampler.model), sampler.model
    noisy, time, conditions = example(model, sampler.shape[:3])

    def network(params, noisy, time):
        return model.apply({"params": params}, noisy, time, conditions, method="denoise")

    found = carried(network, params, noisy, time)
    assert found[40, 1, 1860, 5120] == {{4: "float32", 2: "bfloat16"}[size]}
    # 1.42 GiB become 0.71.
    assert 40 * 1860 * 5120 * size / 2**30 == pytest.approx(0.355 * size, rel=2e-3)


def test_states_in_half_precision_give_nearly_the_same_latents(wan, usual):
    found = drawn(wan, residual_dtype="bfloat16")
    assert 0 < np.abs(found - usual).max() and latent_psnr(found, usual) > 30
    np.testing.assert_array_equal(drawn(wan, residual_dtype="float32"), usual)


class Counting(GeneratorDefaults):
    """Counts evaluations, by samples."""

    reads = ("text",)
    patch = (1, 1, 1)
    dtype = jnp.float32
    count = 0

    def apply(self, variables, noisy, time, conditions, drop=None, method=None):
        jax.debug.callback(self._add, len(noisy))
        return 0.1 * noisy

    def _add(self, samples):
        self.count += int(samples)


def count(config, shape, batch=1):
    network = Counting()
    sampler = LatentSampler(network, config, shape)
    run = jax.jit(lambda seeds: sampler.run({}, seeds, {"text": None}), compiler_options=QUICK)
    run(jnp.zeros(batch, jnp.uint32)).block_until_ready()
    jax.effects_barrier()
    return network.count / batch, sampler.nfe


def test_fsvideo_takes_sixty_and_eight_evaluations():
    """30 steps of two branches for the base, 8 plain ones for the refiner (FSVideo, table 4)."""
    base = load("fsvideo_dit:paper,stage=target")
    assert count(base, (1, 1, 1, 2)) == (60, 60)
    refiner = load("fsvideo_refiner:paper,stage=target")
    assert count(refiner, (1, 1, 1, 2), batch=2) == (8, 8)


def test_a_step_cache_evaluates_less():
    config = load("fsvideo_dit")
    with config.unlocked():
        config.sampler.guidance.scales = config.sampler.guidance.drops = ()
        config.sampler.cache.threshold = 10.0
    found, nominal = count(config, (1, 1, 1, 2))
    assert found < nominal == 20


def test_wrong_settings_are_named(wan):
    model = wan[0]
    with pytest.raises(VidlatentError, match="drops has 1 entries for 2 scales"):
        LatentSampler(model, settings(scales=(2.0, 3.0)), SHAPE)
    with pytest.raises(VidlatentError, match="drops names 'label'.*text, image, first"):
        LatentSampler(model, settings(drops=(("label",),)), SHAPE)
    learned = {"name": "linear", "variance": "learned_range"}
    with pytest.raises(VidlatentError, match="does not learn a variance"):
        LatentSampler(model, settings(schedule=learned), SHAPE)
    two = settings(scales=(2.0, 3.0), drops=(("text", "image"), ("text",)))
    assert LatentSampler(model, two, SHAPE).nfe == 9


def test_published_sizes_by_shapes_alone():
    """121 frames of 720x1280 from 31 latents, through the base at full size."""
    config = load("fsvideo_dit:paper,stage=target")
    tokenizer = model_of(load("fsae:paper"), "float32")
    shape = tokenizer.latent_spec.latent_shape((121, 768, 1280))
    assert shape == (31, 12, 20, 128)
    model = generator_of(config, "float32")
    params = abstract_generator(model)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    assert sum(sizes) == 16_395_800_448 + 4_194_099
    sampler = LatentSampler(model, config, shape)
    abstract = jax.ShapeDtypeStruct
    conditions = {
        "text": {
            "states": abstract((1, 512, 4096), jnp.float32),
            "length": abstract((1,), jnp.int32),
        },
        "image": abstract((1, 257, 1280), jnp.float32),
        "first": abstract((1, 1, 12, 20, 128), jnp.float32),
    }
    latent = jax.eval_shape(sampler.run, params, abstract((1,), jnp.uint32), conditions)
    assert latent.shape == (1, *shape)

    def decode(params, latent):
        return tokenizer.apply({"params": params}, latent, method="decode")[0]

    video = jax.eval_shape(decode, abstract_params(tokenizer), latent)
    assert video.shape == (1, 121, 768, 1280, 3)


@pytest.mark.parametrize(
    "preset",
    [
        *(f"fsvideo_dit:paper,stage={stage}" for stage in ("image", "video", "target", "sft")),
        *(f"latte:paper,data={data}" for data in ("ucf101", "sky", "faces", "kinetics400")),
        *(f"reducio_dit:paper,stage={stage}" for stage in (1, 2, 3)),
        "reducio_dit:paper,attention=2d+1d",
        *(f"promag_dit:paper,stage={stage},k=16" for stage in (1, 2, 3)),
        "promag_dit:paper,loss=flow",
        *(f"{name}:demo" for name in ("fsvideo_dit", "latte", "reducio_dit", "promag_dit")),
    ],
)
def test_every_preset_names_a_network_a_schedule_and_a_sampler(preset):
    config = load(preset)
    model = generator_of(config)
    noisy, _, conditions = example(model)
    sampler = LatentSampler(model, config, noisy.shape[1:])
    assert sampler.nfe >= 8 and config.recipe and config.data.buckets
    assert {name for group in config.conditions.drop for name in group.split("+")} <= {*conditions}
    assert not config.data.bucket_weights  # clips decide among the shapes of a length
    assert config.checkpoint.best_metric == "loss"
