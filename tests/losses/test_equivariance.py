"""Equivariance: what the transforms do, what an equivariant decoder scores, whom it teaches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.losses import DecoderInputs, l1, make_terms
from vidlatent.losses.equivariance import turn_and_resize
from vidlatent.models.load import model_of
from vidlatent.train.tasks.tokenizer import TokenizerTask

CHEAP = {"xla_backend_optimization_level": 0}  # each program runs a few times on toy arrays


def clip(height=8, width=8, channels=3, seed=0):
    return jax.random.uniform(jax.random.key(seed), (2, 3, height, width, channels), minval=-1)


def score(term, decode, latent, video, seeds=range(12), networks=None):
    """Values under several draws."""
    mask = jnp.ones(latent.shape[0])

    def value(key):
        return term.decoded(DecoderInputs(decode, latent, video, mask, key), networks or {})

    return jax.jit(jax.vmap(value), compiler_options=CHEAP)(
        jax.vmap(jax.random.key)(jnp.asarray(seeds))
    )


def term_of(name, **options):
    return make_terms({name: {"weight": 1.0, **options}})[name][1]


def test_turns_and_sizes():
    x = clip(4, 6)
    np.testing.assert_array_equal(turn_and_resize(x, (4, 6), 1), jnp.rot90(x, axes=(2, 3)))
    again = x
    for _ in range(4):
        again = turn_and_resize(again, tuple(again.shape[2:4]), 1)
    np.testing.assert_array_equal(again, x)
    # Shrinking by two with antialiasing takes all pixels into account, without it four of them.
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (1, 1, 8, 8, 1))
    for antialias in (True, False):
        half = turn_and_resize(ramp, (4, 4), 0, antialias)[0, 0, 1:3, 1, 0]
        np.testing.assert_allclose(half, [2.5, 4.5], atol=1e-5)
    twice = turn_and_resize(ramp, (16, 16))[0, 0, 2:6, 0, 0]
    np.testing.assert_allclose(twice, [0.75, 1.25, 1.75, 2.25], atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
@pytest.mark.parametrize("name", ["equivariance", "scale_equivariance"])
def test_an_equivariant_autoencoder_scores_zero(name, size):
    """Whose latent is the clip itself, or the clip in other channels."""
    video = clip(*size)
    mix = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0], jnp.float32)
    for scales in ((0.5, 0.25), (2.0,)):
        term = term_of(name, scales=scales)
        np.testing.assert_array_equal(score(term, lambda z, x: z, video, video), 0.0)
        values = score(term, lambda z, x: z @ mix.T, video @ mix, video)
        np.testing.assert_allclose(values, 0.0, atol=1e-5)


def test_turning_a_decoder_that_repeats_pixels():
    """Means of 2x2 and back: turns go through it exactly; resizing does not."""
    latent = clip(4, 4)

    def decode(z, x):
        return jnp.repeat(jnp.repeat(z, 2, axis=2), 2, axis=3)

    video = decode(latent, None)
    turned = term_of("equivariance", scales=(1.0,))
    np.testing.assert_allclose(score(turned, decode, latent, video), 0.0, atol=1e-6)
    shrunk = term_of("scale_equivariance", scales=(0.5,))
    assert np.min(score(shrunk, decode, latent, video)) > 1e-2


def test_a_decoder_that_knows_up_from_down_is_found_out():
    """It darkens from top to bottom. Every draw has the definition's value for some transform."""
    latent = video = clip(4, 4)

    def decode(z, x):
        return z * jnp.linspace(0, 1, z.shape[2])[:, None, None]

    term = term_of("equivariance", scales=(1.0, 2.0))
    values = np.asarray(score(term, decode, latent, video, range(32)))
    want = [
        float(l1(decode(z, None), z, jnp.ones(2)))
        for z in (turn_and_resize(latent, (s, s), turn) for s in (4, 8) for turn in range(4))
    ]
    assert len(set(np.round(want, 5))) == 8
    apart = np.abs(values[:, None] - np.asarray(want))
    np.testing.assert_allclose(apart.min(axis=1), 0.0, atol=1e-5)
    assert len(set(apart.argmin(axis=1))) >= 5  # of the eight


def test_padding_counts_for_nothing():
    latent = clip()
    term = term_of("scale_equivariance")

    def value(latent, mask):
        given = DecoderInputs(lambda z, x: 2 * z, latent, latent, mask, jax.random.key(1))
        return term.decoded(given, {})

    broken = latent.at[1].set(7.0)
    mask = jnp.asarray([1.0, 0.0])
    np.testing.assert_allclose(value(broken, mask), value(latent, mask), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "scales.*factors above 0"),
        ({"scales": (0.5, -1.0)}, "scales.*factors above 0"),
        ({"turns": (4,)}, "turns.*0 to 3"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(VidlatentError, match=message):
        term_of("equivariance", **options)


def test_encoder_and_decoder_learn():
    """One factor and one turn: loss and gradient of a step are those of the definition."""
    config = configs.load("dcae:demo")
    with config.unlocked():
        one = {"weight": 0.5, "scales": (0.5,), "turns": (1,)}
        config.loss = configs.ConfigDict({"equivariance": one})
        config.model.update(encoder_widths=(4, 8), decoder_widths=(4, 8), norm_scale_init=0.5)
        config.model.update(encoder_depths=(1, 1), decoder_depths=(1, 1), latent_channels=4)
        config.model.update(block_types=("res", "res"), multiscales=((), ()))
    task = TokenizerTask(config, model_of(config))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8, 3))
    batch = {"video": jnp.asarray(pixels, jnp.uint8), "mask": jnp.ones(2)}
    state = jax.jit(task.init, compiler_options=CHEAP)(jax.random.key(0))
    found = jax.jit(lambda s: task.compute_gradients(s, batch, {}), compiler_options=CHEAP)(state)

    def definition(params):
        def run(method, x):
            return task.model.apply({"params": params}, x, method=method)[0]

        video = batch["video"] / 127.5 - 1
        small = turn_and_resize(run("encode", video).mode(), (2, 2), 1)
        return l1(run("decode", small), turn_and_resize(video, (4, 4), 1), batch["mask"])

    graded = jax.jit(jax.value_and_grad(definition), compiler_options=CHEAP)
    value, gradient = graded(state["params"])
    np.testing.assert_allclose(found.report["equivariance"], value, rtol=1e-5)
    np.testing.assert_allclose(found.loss, 0.5 * value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, 0.5 * b, atol=1e-6), found.params, gradient
    )
    for side in ("encoder", "decoder"):
        assert max(np.abs(x).max() for x in jax.tree.leaves(found.params[side])) > 1e-4, side


def test_presets_of_the_regularisers():
    rows = {
        "plain": {},
        "downscale": {"scale_equivariance": (0.5, 0.25)},
        "upscale": {"scale_equivariance": (2.0,)},
        "eq": {"equivariance": (0.25, 0.5, 0.75)},
    }
    towards = configs.load("fsae:paper,stage=vf")
    for stage, terms in rows.items():
        for preset in ("paper", "demo"):
            config = configs.load(f"fsae:{preset},stage={stage}")
            make_terms(config.loss.to_dict())
            added = {k: v.scales for k, v in config.loss.items() if k.endswith("equivariance")}
            assert added == terms
        # The rows differ from that of Video VF in this term alone.
        paper = configs.load(f"fsae:paper,stage={stage}")
        assert paper.optim == towards.optim and paper.data.buckets == towards.data.buckets
        assert paper.train.steps == towards.train.steps
        assert set(paper.loss) - {*terms} == set(towards.loss) - {"vf"}


def test_patches_are_refused():
    config = configs.load("fsae:paper,stage=eq")
    config.train.patch_cells = 4
    with pytest.raises(VidlatentError, match="loss.equivariance looks at whole clips"):
        TokenizerTask(config)
