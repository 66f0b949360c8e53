"""Reducio's large frames are always cut into tiles: by a rule, not by the memory at hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.tiny_tokenizers import QUICK, clip, tokenizer
from vidlatent import config as configs
from vidlatent.codec.codec import Codec
from vidlatent.codec.coded import Coded
from vidlatent.codec.options import CodecOptions, plan_codec
from vidlatent.errors import VidlatentError
from vidlatent.evaluate.tokenizer import choose_eval_coder, tokenizer_eval_step
from vidlatent.losses.latent import kl
from vidlatent.models.load import abstract_params
from vidlatent.models.tokenizers import build
from vidlatent.models.tokenizers.base import LOGVAR_RANGE, Posterior
from vidlatent.models.tokenizers.cutting import make_latent_coder
from vidlatent.models.tokenizers.reducio import tiling
from vidlatent.models.tokenizers.reducio.latent import normalise
from vidlatent.parallel.mesh import AXES, make_mesh

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def small_rule(monkeypatch):
    """The rule at a twentieth of its size: tiles of 20 pixels every 16."""
    monkeypatch.setattr(tiling, "_CORE", 16)


@pytest.mark.parametrize("gigabytes", [20.0, pytest.param(140.0, marks=pytest.mark.slow), 2000.0])
def test_paper_size_is_cut_alike_on_every_machine(gigabytes):
    """With 140 GB whole frames of 512 and 1024 pixels would fit, and used to be taken."""
    model = build(configs.load("reducio_vae:paper").model, jnp.bfloat16)
    params = abstract_params(model)
    plan = plan_codec(CodecOptions.of(memory_gb=gigabytes), model)
    assert plan.cut == "tiles:256+64"
    for kind in ("encode", "decode"):
        for side, cut in (
            (256, None),
            (320, None),
            (512, (4, (320, 320))),
            (1024, (16, (320, 320))),
        ):
            coder = plan.programs.choose(kind, params, (16, side, side)).coder
            assert coder.cut == plan.cut and coder.cut_into_tiles(side, side) == cut


def test_little_and_much_memory_give_the_same_latents(small_rule):
    model, params = tokenizer("reducio")
    video = clip(4, 40, 24)
    # The smaller one is below what whole frames are estimated to need.
    some, much = (Codec(model, params, CodecOptions.of(memory_gb=g)) for g in (0.02, 100.0))
    coded = some.encode(video)
    np.testing.assert_array_equal(coded.latent, much.encode(video).latent)
    np.testing.assert_array_equal(some.decode(coded), much.decode(coded))
    named = Codec(model, params, CodecOptions.of(space="tiles", tile_pixels=16))
    np.testing.assert_array_equal(named.encode(video).latent, coded.latent)
    assert coded.cut == some.cut == named.cut == "tiles:16+4"


def test_evaluation_scores_what_the_codec_makes(small_rule):
    """Large frames in tiles, as every other mode codes them; exact ways of cutting are left out."""
    model, params = tokenizer("reducio")
    video = clip(4, 40, 24)
    step = functools.partial(tokenizer_eval_step, model, latent=True)
    coder = choose_eval_coder(configs.load("reducio_vae"), model)
    tiled = jax.jit(step(coder=coder), compiler_options=QUICK)(params, {"video": video[None]})
    codec = Codec(model, params)
    coded = codec.encode(video)
    np.testing.assert_allclose(tiled["latent"][0], coded.latent, atol=1e-4)
    restored = codec.decode(coded).astype(int)
    assert np.abs(np.asarray(tiled["reconstruction"][0]) - restored).max() <= 1
    assert choose_eval_coder(configs.load("fsae"), tokenizer("fsae")[0]) is None


def test_whole_frames_are_another_space(small_rule, tmp_path):
    model, params = tokenizer("reducio")
    video = clip(4, 40, 24)
    whole = Codec(model, params, CodecOptions.of(space="whole"))
    tiles = Codec(model, params)
    coded = whole.encode(video)
    assert np.abs(coded.latent - tiles.encode(video).latent).max() > 1e-3
    coded.save(tmp_path / "coded.npz")
    again = Coded.load(tmp_path / "coded.npz")
    assert again.cut == whole.cut == ""
    with pytest.raises(VidlatentError, match="frames cut not at all, the codec decodes those cut"):
        tiles.decode(again)
    for cut, space in (("", "whole"), ("tiles_published:32+8", "tiles_published")):
        options = CodecOptions.of().with_cut(model, cut)
        assert options.space == space and plan_codec(options, model).cut == cut
    for cut in (None, "tiles:16+4"):
        assert CodecOptions.of().with_cut(model, cut) == CodecOptions.of()
    # Tokenizers whose ways of cutting are exact have one space.
    plain = tokenizer("fsae")[0]
    assert CodecOptions.of(space="tiles").with_cut(plain, "").space == "tiles"


def test_training_from_videos_sees_the_codec_s_latents(small_rule):
    """``make_latent_coder`` inside one compiled step, for a batch."""
    model, params = tokenizer("reducio")
    videos = np.stack([clip(4, 40, 24, seed) for seed in (0, 1)])
    for codec in (CodecOptions.of(), CodecOptions.of(space="tiles_published")):
        coder, known = make_latent_coder(model, codec), Codec(model, params, codec)
        run = jax.jit(lambda p, x, coder=coder: coder.encode(p, x)[0].mode())
        found = run(params, jnp.asarray(videos, jnp.float32) / 127.5 - 1)
        for latent, video in zip(found, videos, strict=True):
            np.testing.assert_allclose(latent, known.encode(video).latent, atol=2e-4)
        assert coder.cut == known.cut


@pytest.mark.parametrize("published", [False, True])
def test_a_generated_latent_is_normalised_before_it_is_cut(published):
    """As a whole: decoding it is decoding the latent that was normalised by hand."""
    space = "tiles_published" if published else "tiles"
    options = CodecOptions.of(space=space, tile_pixels=16)
    model, params = tokenizer("reducio")
    again = tokenizer("reducio", renorm_latent=True)[0]
    rng = np.random.default_rng(0)
    # Brighter to the right, so that tiles have other statistics than the whole.
    latent = rng.normal(size=(2, 10, 6, 3)) * 3 + np.linspace(0, 9, 6)[:, None] + 1
    latent = latent.astype(np.float32)
    content = clip(1, 40, 24)
    wanted = Codec(model, params, options).decode(
        np.asarray(normalise(jnp.asarray(latent[None]), 2)[0]), content=content
    )
    found = Codec(again, params, options).decode(latent, content=content)
    np.testing.assert_array_equal(found, wanted)
    plain = Codec(model, params, options).decode(latent, content=content)
    assert np.abs(plain.astype(int) - found).mean() > 1


@pytest.mark.slow
def test_devices_that_share_rows_cut_by_the_rule_too(small_rule):
    model, params = tokenizer("reducio")
    video = clip(8, 40, 24)
    mesh = make_mesh(dict(zip(AXES, (1, 1, 4, 1), strict=True)), jax.devices()[:4])
    alone, spread = Codec(model, params), Codec(model, params, mesh=mesh)
    assert spread.cut == alone.cut == "tiles:16+4"
    coded = alone.encode(video)
    np.testing.assert_allclose(spread.encode(video).latent, coded.latent, atol=2e-4)
    apart = spread.decode(coded).astype(int) - alone.decode(coded)
    assert np.abs(apart).max() <= 1


def test_a_runaway_variance_is_drawn_within_the_bounds_of_its_loss():
    mean, noise = jnp.zeros((1, 1, 1, 1, 2)), jnp.ones((1, 1, 1, 1, 2))
    far = Posterior(mean, jnp.asarray([500.0, -500.0]).reshape(mean.shape))
    least, most = LOGVAR_RANGE
    bounds = Posterior(mean, jnp.asarray([most, least]).reshape(mean.shape))
    drawn = np.asarray(far.draw(noise)).ravel()
    np.testing.assert_allclose(drawn, np.exp([most / 2, least / 2]), rtol=1e-6)
    weights = jnp.ones(1)
    assert float(kl(far, weights)) == float(kl(bounds, weights)) < np.inf
