"""What a Reducio-VAE must do whatever its weights, at a width that compiles in no time."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.divergence import divergence
from tests.helpers.nets import fast_jit
from tests.helpers.reducio_nets import net
from tests.helpers.tiny_tokenizers import REDUCIO as TINY
from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.models.load import abstract_params, model_of, smallest_video
from vidlatent.models.tokenizers import build
from vidlatent.models.tokenizers.reducio import tiling
from vidlatent.models.tokenizers.reducio.blocks import Convolution
from vidlatent.models.tokenizers.reducio.latent import MotionPosterior, normalise
from vidlatent.models.tokenizers.reducio.names import REDUCIO_TABLE
from vidlatent.models.tokenizers.reducio.tiling import FrameTiles
from vidlatent.models.tokenizers.reducio.variants import plan_resampling
from vidlatent.nested import flatten
from vidlatent.parallel.sharding import find_rule
from vidlatent.weights.importer import export_params, import_params


@functools.cache
def program(model, method):
    def call(params, *args, **kwargs):
        return model.apply({"params": params}, *args, **kwargs, method=method)

    return fast_jit(call)


def run(method, *args, model=None, params=None, **kwargs):
    default, weights = net()
    return program(model or default, method)(params or weights, *args, **kwargs)


def video_of(frames=4, size=(8, 8), batch=1, seed=0):
    shape = (batch, frames, *size, 3)
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, atol=atol, rtol=0)


def test_clips_know_nothing_of_each_other():
    video = video_of(8, batch=2)
    posterior, cache = run("encode", video)
    restored, _ = run("__call__", video)
    assert cache is None
    spec = net()[0].latent_spec
    assert posterior.mean.shape == (2, *spec.latent_shape(video.shape[1:4]))
    for start in (0, 4):
        clip = video[:, start : start + 4]
        close(run("encode", clip)[0].mean, posterior.mean[:, start // 2 : start // 2 + 2])
        close(run("__call__", clip)[0], restored[:, start : start + 4])


def test_norms_pool_time():
    video = video_of()
    later = run("encode", video.at[:, 3].add(0.5))[0].mean
    assert np.abs(later - run("encode", video)[0].mean)[:, 0].max() > 1e-3


def test_latent_is_normalised_clip_by_clip():
    rng = np.random.default_rng(1)
    mean, logvar, noise = (
        jnp.asarray(rng.normal(size=(2, 4, 2, 2, 3)), jnp.float32) for _ in range(3)
    )
    posterior = MotionPosterior(mean, logvar, 2)
    latent = posterior.draw(noise)
    clips = np.asarray(latent).reshape(4, -1)
    close(clips.mean(1), 0.0)
    close(clips.std(1), 1.0, 1e-4)
    raw = mean + jnp.exp(logvar / 2) * noise
    close(normalise(5.0 * raw + 3.0, 2), latent, 1e-4)
    close(normalise(latent, 2), latent, 1e-4)
    close(posterior.mode(), normalise(mean, 2))
    want = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum((1, 2, 3, 4))
    np.testing.assert_allclose(divergence(posterior), want, rtol=1e-6)
    moments = jnp.concatenate([mean, 100 * logvar], axis=-1)
    clipped = MotionPosterior.of_moments(moments, 2).logvar
    assert clipped.min() == -30 and clipped.max() == 20


def test_content_frame():
    video = video_of(8, size=(4, 4))
    clips = np.asarray(video).reshape(2, 4, 4, 4, 3)
    for content, place in (("middle", 1), ("first", 0)):
        model, params = net(content=content)
        np.testing.assert_array_equal(
            model.apply({"params": params}, video, method="pick_content_frames"), clips[:, place]
        )
    assert build({**TINY, "frames": 16}).frames == 16 and (16 - 1) // 2 == 7
    model, params = net(content="random")
    again = [model.apply({"params": params}, video, method="pick_content_frames") for _ in range(2)]
    np.testing.assert_array_equal(*again)
    drawn = set()
    for seed in range(8):
        rngs = {"content": jax.random.key(seed)}
        frames = model.apply({"params": params}, video, method="pick_content_frames", rngs=rngs)
        for clip, frame in zip(clips, np.asarray(frames), strict=True):
            drawn.add(int(np.abs(clip - frame).sum((1, 2, 3)).argmin()))
    assert len(drawn) > 2


def test_condition_as_pixels_or_features():
    video = video_of(8)
    latent = run("encode", video)[0].mode()
    whole, _ = run("__call__", video)
    features = run("make_condition", video)
    frames = video[:, 1::4]
    close(run("decode", latent, condition=features)[0], whole)
    close(run("decode", latent, condition=frames)[0], whole)
    other = run("decode", latent, condition=frames.at[:, 0].add(0.5))[0]
    assert np.abs(other - whole)[:, :4].max() > 1e-3
    close(other[:, 4:], whole[:, 4:])


def test_plain_video_autoencoder():
    model, params = net(content="none")
    assert model.condition_kind == "none" and "frame" not in params["encoder"]
    assert not any("fuse" in name for name in params["decoder"])
    latent = jnp.zeros((1, 2, 2, 2, 3))
    with pytest.raises(VidlatentError, match="takes no condition"):
        model.apply({"params": params}, latent, condition=video_of()[:, 0], method="decode")
    assert run("__call__", video_of(), model=model, params=params)[0].shape == (1, 4, 8, 8, 3)


def test_sample_with_a_latent_stream():
    model, params = net()

    def call(key):
        return model.apply({"params": params}, video_of(), rngs={"latent": key})[0]

    first, second = (fast_jit(call)(jax.random.key(seed)) for seed in range(2))
    assert np.abs(first - second).max() > 1e-3


def test_forms_agree():
    """Subpixel up operations, recomputed blocks and their gradients."""
    video = video_of()

    def loss(params, model):
        return jnp.mean(jnp.square(model.apply({"params": params}, video)[0] - video))

    _, params = net()
    results = []
    for fields in ({"up_form": "nearest"}, {"remat": True}):
        model = build({**TINY, **fields})
        results.append(fast_jit(jax.value_and_grad(functools.partial(loss, model=model)))(params))
    jax.tree.map(functools.partial(close, atol=2e-4), *results)
    # Released weights hold parts that touch nothing, and fixed tables.
    still = r"encoder/frame/(mid_block_2|norm_out)/|pos_embed"
    for path, grad in flatten(results[0][1]).items():
        assert bool(np.any(grad != 0)) != bool(re.search(still, path)), path


def test_causal_convolutions_look_back_only():
    model = build({**TINY, "time": "causal"})
    coder = model.make_layer_config(4, (1,), 1, ())
    for strides in ((1, 1, 1), (2, 2, 2)):
        conv = Convolution(coder, 4, (3, 3, 3), strides)
        x = video_of()
        params = conv.init(jax.random.key(0), x)
        a, b = conv.apply(params, x), conv.apply(params, x.at[:, 2:].add(1.0))
        close(a[:, : 2 // strides[0]], b[:, : 2 // strides[0]])
        assert a.shape[1] == 4 // strides[0]
    causal, params = net(time="causal")
    assert run("__call__", video_of(), model=causal, params=params)[0].shape == (1, 4, 8, 8, 3)


def test_halvings_lie_deep():
    assert plan_resampling(6, 2, 5) == ((False, True),) * 3 + ((True, True),) * 2
    assert plan_resampling(6, 1, 5) == ((False, True),) * 4 + ((True, True),)
    assert plan_resampling(6, 1, 4) == ((False, False), *((False, True),) * 3, (True, True))


def test_paths_match_the_sharding_rule():
    for path, leaf in flatten(net()[1]).items():
        if path.endswith("kernel"):
            assert find_rule(path, leaf.ndim) == ("fsdp", None), path


def test_weights_go_out_and_come_back():
    shapes, params = abstract_params(net()[0]), net()[1]
    tensors = export_params(params, REDUCIO_TABLE)
    tensors["loss.discriminator.main.0.weight"] = np.zeros(3)
    again = import_params(tensors, REDUCIO_TABLE, shapes)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    tensors.pop("encoder_2d.norm_out.bias")
    with pytest.raises(VidlatentError, match="1 missing: encoder/frame/norm_out/bias"):
        import_params(tensors, REDUCIO_TABLE, shapes)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.encode(video_of(5)), "use 4 or 8 frames"),
        (lambda m: m.encode(video_of(4, (8, 6))), "width 6 is not a multiple of 4"),
        (lambda m: m.encode(video_of(), cache={}), "cache=None"),
        (lambda m: m.decode(jnp.zeros((1, 3, 2, 2, 3))), "3 latent frames do not fit"),
        (lambda m: m.decode(jnp.zeros((1, 2, 2, 2, 3))), "needs the content frame of each clip"),
    ],
)
def test_wrong_calls(call, says):
    model, params = net()
    with pytest.raises(VidlatentError, match=says):
        model.apply({"params": params}, method=lambda m: call(m))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"content": "midle"}, "'middle'"),
        ({"time": "both"}, "centred"),
        ({"space_factor": 6}, "power of two"),
        ({"frames": 5}, "multiple of time_factor"),
        ({"fuse": (-1, 2, -1)}, "config.model.fuse"),
        ({"groups": 3}, "config.model.groups 3 does not divide"),
        ({"content_multipliers": (1, 1, 1, 2)}, "halve the content frame 3 times"),
        ({"fusion": 1}, "unknown field config.model.fusion"),
    ],
)
def test_wrong_fields(fields, says):
    with pytest.raises(VidlatentError, match=says):
        abstract_params(build({**TINY, **fields}))


class TestTiles:
    """FrameTiles of 16 pixels every 8, on latents of factor 4."""

    tiles = FrameTiles(8, 1.0)

    def parts(self, way, video):
        model, params = net()
        encode, condition, decode = (
            getattr(tiling, f"{job}_{way}") for job in ("encode", "condition", "decode")
        )
        posterior = encode(model, params, video, self.tiles)
        grid = condition(model, params, video[:, 1], self.tiles)
        return posterior, grid, decode(model, params, posterior.mode(), grid, self.tiles)

    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch):
        monkeypatch.setattr(tiling, "_compiled", program)

    def test_one_even_tile_is_no_tiling(self):
        video = video_of(size=(16, 16))
        whole, _ = run("__call__", video)
        posterior, grid, restored = self.parts("evenly", video)
        assert len(grid) == len(grid[0]) == 1
        close(restored, whole)
        close(posterior.mean, run("encode", video)[0].mean)

    def test_released_tiles_begin_at_the_core(self):
        """A frame within the core is one tile; a larger one, though read whole, is cut."""
        small = video_of(size=(8, 8))
        close(self.parts("published", small)[2], run("__call__", small)[0])
        _, grid, restored = self.parts("published", video_of(size=(8, 16)))
        assert (len(grid), len(grid[0])) == (1, 2) and restored.shape == (1, 4, 8, 16, 3)

    def test_even_tiles_are_alike(self):
        video = video_of(size=(16, 28))
        posterior, grid, restored = self.parts("evenly", video)
        assert restored.shape == video.shape
        assert posterior.mean.shape[1:] == net()[0].latent_spec.latent_shape(video.shape[1:4])
        assert len({tuple(map(jnp.shape, cell)) for row in grid for cell in row}) == 1
        # Away from the seams a tile's decoding stands as it is.
        latent = posterior.mode()
        first = run("decode", latent[:, :, :, :4], condition=grid[0][0])[0]
        close(restored[:, :, :, :6], first[:, :, :, :6])

    def test_shares_sum_to_one(self):
        for size in range(20, 300, 4):
            starts = tiling._starts(size, FrameTiles(64, 0.25))
            shares = tiling._shares(starts, min(80, size), size)
            total = np.zeros(size)
            for start, share in shares.items():
                assert (share > 0).all()
                total[start : start + len(share)] += share
            close(total, 1.0, 1e-12)
            assert all(b - a <= 64 for a, b in zip(starts, starts[1:], strict=False))

    def test_when_and_how(self):
        tiles = FrameTiles()
        assert (tiles.read, tiles.latent(32).read, tiles.blend_of(80)) == (320, 10, 16)
        assert tiling.needs_tiles(256, 512, tiles) and not tiling.needs_tiles(256, 512, tiles, True)
        assert not tiling.needs_tiles(320, 320, tiles)
        with pytest.raises(VidlatentError, match="do not fall on the latent's grid"):
            FrameTiles(48).latent(32)
        grid = [[None]]
        with pytest.raises(VidlatentError, match="1x1 tiles, the latent has 2x2"):
            tiling.decode_evenly(*net(), jnp.zeros((1, 2, 6, 6, 3)), grid, self.tiles)


@pytest.mark.parametrize(
    ("arg", "shape"),
    [
        ("demo", (4, 16, 16, 16)),
        ("demo,content=none", (4, 16, 16, 16)),
        ("paper", (4, 8, 8, 16)),
        ("paper,time=2,space=16", (8, 16, 16, 16)),
    ],
)
def test_config(arg, shape):
    config = load(f"configs/reducio_vae.py:{arg}")
    model = model_of(config)
    ((frames, height, width, _),) = config.data.buckets
    assert model.latent_spec.latent_shape((frames, height, width)) == shape
    video = jax.ShapeDtypeStruct(smallest_video(model.latent_spec), jnp.float32)
    restored, _ = jax.eval_shape(lambda v: model.init_with_output(jax.random.key(0), v)[0], video)
    assert restored.shape == video.shape


FLAT = {"convolutions": "2d", "time_factor": 1}


def test_frames_of_2d_convolutions_are_coded_alone():
    """Each frame as a clip of one frame; all of a clip's frames see its content frame."""
    model, params = net(**FLAT)
    single = build({**TINY, **FLAT, "frames": 1, "content": "first"})
    assert set(abstract_params(single)) == set(params)
    video = video_of(4, batch=2)
    moments = run("moments", video, model=model, params=params)
    alone = run("moments", video.reshape(8, 1, *video.shape[2:]), model=single, params=params)
    close(moments, alone.reshape(moments.shape))
    latent, content = moments[..., : model.latent_channels], video[:, 1]
    restored = run("decode", latent, model=model, params=params, condition=content)[0]
    parts = run(
        "decode",
        latent.reshape(8, 1, *latent.shape[2:]),
        model=single,
        params=params,
        condition=jnp.repeat(content, 4, axis=0),
    )[0]
    close(restored, parts.reshape(restored.shape))
    # The published kernels are 3x3: nothing but the latent's norm knows of time.
    kernels = [x for x in jax.tree.leaves(params) if x.ndim == 5]
    assert kernels and all(kernel.shape[0] == 1 for kernel in kernels)


def test_2d_convolutions_learn_from_the_content_frame():
    model, params = net(**FLAT)
    video = video_of()

    def loss(params, content):
        latent = model.apply({"params": params}, video, method="encode")[0].mode()
        shown = model.apply({"params": params}, latent, condition=content, method="decode")[0]
        return jnp.square(shown - video).sum()

    of_params, of_content = fast_jit(jax.grad(loss, argnums=(0, 1)))(params, video[:, 1])
    assert np.abs(of_content).max() > 0
    for side in ("volume", "frame", "quant"):
        assert max(np.abs(x).max() for x in jax.tree.leaves(of_params["encoder"][side])) > 0
    with pytest.raises(VidlatentError, match="time_factor to 1, not 2"):
        net(**{**FLAT, "time_factor": 2})


def test_presets_of_the_convolution_ablation():
    flat, full = (load(f"reducio_vae:paper,{arg}").model for arg in ("conv=2d", "time=1"))
    assert (flat.convolutions, full.convolutions) == ("2d", "3d")
    assert flat.time_factor == full.time_factor == 1
    spec = model_of(load("reducio_vae:demo,conv=2d")).latent_spec
    assert (spec.name, spec.t) == ("reducio-ft1-fs4-2d", 1)
