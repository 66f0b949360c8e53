"""Reducio-VAE against numbers of the released code: whole networks, tiles, encoders, blocks."""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.divergence import divergence
from tests.parity.reducio_cases import Case, channels_last, fast_program, pixels
from vidlatent.layers.positions import interleaved_sincos
from vidlatent.models.tokenizers.reducio import blocks as parts
from vidlatent.models.tokenizers.reducio import build_reducio, tiling
from vidlatent.models.tokenizers.reducio.fusion import Fusion
from vidlatent.models.tokenizers.reducio.latent import MotionPosterior
from vidlatent.models.tokenizers.reducio.names import REDUCIO_TABLE, RELEASED
from vidlatent.weights.importer import export_names, export_params, import_params

TOLERANCE = 1e-4
PARAMETERS = {
    "reducio-ft4-fs32-attn23": (437_095_763, 141_933_984, 34_126_720, 261_033_731),
    "reducio-ft2-fs32-attn23": (432_379_219, 137_215_392, 34_126_720, 261_035_779),
}


def close(got, want, tolerance=TOLERANCE):
    np.testing.assert_allclose(got, channels_last(want), atol=tolerance, rtol=0)


def check_latent(case, posterior):
    """Posterior, its divergence, the drawn latent."""
    close(posterior.mean, case.io["mean"])
    close(posterior.logvar, case.io["logvar"])
    np.testing.assert_allclose(divergence(posterior), case.io["kl"], rtol=1e-5)
    close(posterior.draw(channels_last(case.io["eps"])), case.io["motion"])


# Names of content features in the cases -> their places in the pyramid.
PYRAMID = {"feat2": 2, "feat3": 3, "feat4": -1}


def check_network(case):
    """Moments, content features and video, from one program."""

    def all_of(model, video, frame, motion):
        pyramid = model.content_values(frame)[1]
        features = tuple(pyramid[level] for level in model.feature_levels)
        return model.moments(video), pyramid, model.decode(motion, condition=features)[0]

    motion = channels_last(case.io["motion"])
    moments, pyramid, recon = case.run(all_of, case.video, case.frame, motion)
    close(moments, case.io["moments"])
    assert PYRAMID.keys() & case.io
    for name in PYRAMID.keys() & case.io:
        close(pyramid[PYRAMID[name]], case.io[name])
    close(recon, case.io["recon"])
    return MotionPosterior.of_moments(moments, case.model.latent_frames)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae_ft4", "vae_ft2"])
def test_network(reference, name):
    case = Case(reference("reducio", f"{name}.npz")).load()
    check_latent(case, check_network(case))
    np.testing.assert_array_equal(case.frame, case.run("pick_content_frames", case.video))


@pytest.fixture(scope="module")
def tiled(reference):
    case = Case(reference("reducio", "tiling.npz")).load()
    case.tiles = tiling.FrameTiles(
        case.meta["tile_sample_min_size"], case.meta["tile_overlap_factor"]
    )
    return case


def test_tiles(tiled, monkeypatch):
    """The released tiling: blended moments, one latent norm, uncropped features, video."""
    monkeypatch.setattr(tiling, "_compiled", fast_program)
    model, params, tiles = tiled.model, tiled.params, tiled.tiles
    assert tiling.needs_tiles(*tiled.video.shape[2:4], tiles, height_only=True)
    posterior = tiling.encode_published(model, params, tiled.video, tiles)
    check_latent(tiled, posterior)
    grid = tiling.condition_published(model, params, tiled.frame, tiles)
    close(grid[1][1][model.feature_levels.index(1)], tiled.io["feat1_tile_1_1"])
    close(grid[1][0][model.feature_levels.index(-1)], tiled.io["feat_last_tile_1_0"])
    motion = channels_last(tiled.io["motion"])
    close(tiling.decode_published(model, params, motion, grid, tiles), tiled.io["recon"])


def test_weights_return_bitwise(tiled):
    back = export_params(tiled.params, REDUCIO_TABLE)
    assert set(back) == set(tiled.names)
    for name, tensor in tiled.tensors.items():
        np.testing.assert_array_equal(back[name], tensor)
    again = import_params(back, REDUCIO_TABLE, tiled.shapes)
    jax.tree.map(np.testing.assert_array_equal, again, tiled.params)


@pytest.mark.parametrize("name", PARAMETERS)
def test_released_names_and_sizes(reference, name):
    names = json.loads(reference("reducio", "full_state_dict_keys.json").read_text())[name]
    model = build_reducio(RELEASED[name], jnp.float32)
    video = jax.ShapeDtypeStruct((1, 16, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), video)["params"]
    assert export_names(shapes, REDUCIO_TABLE) == {k: tuple(v) for k, v in names.items()}

    def count(tree):
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))

    encoder, decoder = shapes["encoder"], dict(shapes["decoder"])
    decoder.pop("post_quant")
    found = (count(shapes), *map(count, (encoder["volume"], encoder["frame"], decoder)))
    assert found == PARAMETERS[name]
    spec = model.latent_spec
    t = {"reducio-ft4-fs32": 4, "reducio-ft2-fs32": 8}[spec.name]
    assert spec.latent_shape((16, 256, 256)) == (t, 8, 8, 16)


def test_video_encoder(reference):
    case = Case(reference("reducio", "encoder3d.npz")).load(prefix="encoder_3d.")
    h, levels = case.run("encoder_values", case.video)
    close(h, case.io["h"])
    for name, want in case.io.items():
        if name.endswith("_before_down"):
            close(levels[int(name[len("level") : -len("_before_down")])], want)


def test_content_encoder(reference):
    case = Case(reference("reducio", "encoder2d.npz"))
    levels = len(case.meta["ddconfig_2d"]["ch_mult"])
    fields = {
        "latent_channels": 1,
        "width": 32,
        "multipliers": (1,) * levels,
        "time_factor": 1,
        "space_factor": 2 ** (levels - 1),
        "fuse": (-1,) * levels,
        "content_width": case.meta["ddconfig_2d"]["ch"],
        "content_multipliers": case.meta["ddconfig_2d"]["ch_mult"],
        "content_blocks": case.meta["ddconfig_2d"]["num_res_blocks"],
    }
    case.load(fields, prefix="encoder_2d.")
    unused, features = case.run("content_values", pixels(case.io["image_u8"]))
    close(unused, case.io["final_unused"])
    for level, value in enumerate(features):
        close(value, case.io[f"feat{level}"])


# Single blocks, imported under the names of blocks of their kind.


@pytest.fixture(scope="module")
def single(reference):
    return Case(reference("reducio", "blocks.npz"))


def coder_of(volume, heads=8, window=0, **fields):
    model = build_reducio(
        {"latent_channels": 1, "width": 32, "heads": heads, "attention_window": window, **fields},
        jnp.float32,
    )
    return model.make_layer_config(32, (1, 1), 1, ((True, True),), volume)


def run_block(case, module, name, place, *inputs):
    """Apply a module with the weights of ``name``, read as those of ``place``."""
    tensors = {
        key.replace(name, place, 1): value
        for key, value in case.tensors.items()
        if key.startswith(name + ".")
    }
    tree = import_params(tensors, REDUCIO_TABLE, None)
    while not {"kernel", "conv1", "norm"} & set(tree):
        (tree,) = tree.values()
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    if "pos_embed" in shapes:
        tree["pos_embed"] = channels_last(case.io["pos_embed"]).transpose(0, 3, 1, 2)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), tree, dict(shapes))
    return jax.jit(module.apply)({"params": tree}, *inputs)


def video_of(case, name):
    x = case.io[name]
    return channels_last(x if x.ndim == 5 else x[:, :, None])


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_residual_block(single, kind):
    y = run_block(
        single,
        parts.ResBlock(coder_of(kind == "3d"), single.meta["cout"]),
        f"res{kind}",
        f"encoder_{kind}.down.0.block.0",
        video_of(single, f"x{kind[0]}"),
    )
    np.testing.assert_allclose(y, video_of(single, f"res{kind}"), atol=TOLERANCE)


@pytest.mark.parametrize("name", ["down2d", "down_s", "down_t", "down_st"])
def test_down(single, name):
    plane = name == "down2d"
    down = parts.Down(
        coder_of(not plane), "t" in name.split("_")[-1] and not plane, name != "down_t"
    )
    x = video_of(single, "x2" if plane else "x3")
    place = f"encoder_{'2d' if plane else '3d'}.down.0.downsample"
    y = run_block(single, down, name, place, x)
    np.testing.assert_allclose(y, video_of(single, name), atol=TOLERANCE)


@pytest.mark.parametrize("name", ["up_s", "up_t", "up_st"])
@pytest.mark.parametrize("form", ["nearest", "subpixel"])
def test_up(single, name, form):
    kind = name.split("_")[1]
    up = parts.Up(coder_of(True, up_form=form), "t" in kind, "s" in kind)
    y = run_block(single, up, name, "decoder.up.1.upsample", video_of(single, "x3"))
    np.testing.assert_allclose(y, video_of(single, name), atol=TOLERANCE)


def attend(case, name, source, window=0):
    kind = name[4:6]
    coder = coder_of(kind == "3d", case.meta["heads_attnblock"], window)
    place = f"encoder_{kind}.mid.attn_1"
    return run_block(case, parts.SelfAttention(coder), name, place, video_of(case, source))


@pytest.mark.parametrize(
    ("name", "source"), [("attn2d", "y2"), ("attn3d", "y3"), ("attn2d_win", "x2")]
)
def test_self_attention(single, name, source):
    window = tuple(single.meta["window"]) if name.endswith("win") else 0
    y = attend(single, name, source, window)
    np.testing.assert_allclose(y, video_of(single, name), atol=TOLERANCE)


def attend_in_windows(case, name, x, window):
    """The windowed block by its description, in float64 and one window at a time."""
    w = {k.removeprefix(name + "."): v.astype(np.float64) for k, v in case.tensors.items()}
    heads, channels = case.meta["heads_attnblock"], x.shape[1]
    if x.shape[2] * x.shape[3] <= window[0] * window[1]:
        window = x.shape[2:]  # small maps are not cut
    groups = x.astype(np.float64).reshape(len(x), 32, -1)
    deviation = np.sqrt(groups.var(axis=2, keepdims=True) + 1e-6)
    h = ((groups - groups.mean(axis=2, keepdims=True)) / deviation).reshape(x.shape)
    h = h * w["norm.weight"][:, None, None] + w["norm.bias"][:, None, None]
    h = np.moveaxis(h, 1, -1)
    sides = zip(h.shape[1:3], window, strict=True)
    # Zeros after the norm fill the last windows and take part.
    h = np.pad(h, ((0, 0), *((0, -size % side) for size, side in sides), (0, 0)))
    out = np.zeros_like(h)
    for i in range(0, h.shape[1], window[0]):
        for j in range(0, h.shape[2], window[1]):
            here = h[:, i : i + window[0], j : j + window[1]].reshape(len(h), -1, channels)
            q, k, v = (
                (here @ w[f"{m}.weight"].reshape(channels, channels).T + w[f"{m}.bias"])
                .reshape(len(h), -1, heads, channels // heads)
                .swapaxes(1, 2)
                for m in "qkv"
            )
            scores = q @ k.swapaxes(2, 3) / np.sqrt(channels // heads)
            share = np.exp(scores - scores.max(axis=-1, keepdims=True))
            y = (share / share.sum(axis=-1, keepdims=True) @ v).swapaxes(1, 2)
            out[:, i : i + window[0], j : j + window[1]] = y.reshape(len(h), *window, channels)
    out = out[:, : x.shape[2], : x.shape[3]]
    out = out @ w["proj_out.weight"].reshape(channels, channels).T + w["proj_out.bias"]
    return x + np.moveaxis(out, -1, 1)


@pytest.mark.parametrize("change", [(-1, 0), (1, -1), (0, 1)])
def test_rectangular_windows(single, change):
    """By a description that gives the released code's numbers for the case's own windows."""
    name, x = "attn2d_win", single.io["x2"]
    own = attend_in_windows(single, name, x, single.meta["window"])
    np.testing.assert_allclose(own, single.io[name], atol=1e-5)
    window = tuple(a + b for a, b in zip(single.meta["window"], change, strict=True))
    want = attend_in_windows(single, name, x, window)
    assert np.abs(want - own).max() > 100 * TOLERANCE
    close(attend(single, name, "x2", window)[:, 0], want)


@pytest.mark.parametrize(
    ("name", "content"), [("fuse", "ctx"), ("fuse_win", "ctx_same"), ("fuse_win_2x", "ctx")]
)
def test_fusion(single, name, content):
    weights = name.removesuffix("_2x")
    sides = single.io[content].shape[2:] if name == "fuse" else single.meta["window"]
    y = run_block(
        single,
        Fusion(single.meta["T"], tuple(sides)),
        weights,
        "decoder.mid.fuse.0",
        video_of(single, "y3"),
        channels_last(single.io[content]),
    )
    np.testing.assert_allclose(y, video_of(single, name), atol=TOLERANCE)


def test_time_sinusoid(single):
    want = single.io["pos_embed"]
    table = interleaved_sincos(want.shape[1], want.shape[3])[None, :, None]
    np.testing.assert_allclose(table, want, atol=1e-6)


@pytest.mark.slow
def test_full_width(reference):
    """The released size with procedural weights: two gigabytes, minutes."""
    case = Case(reference("reducio", "fullwidth.npz"))
    config = case.meta["config"].replace("reducio_kl_ft", "").replace("_z16", "")
    name = "reducio-ft" + config.replace("_", "-")
    keys = json.loads(reference("reducio", "full_state_dict_keys.json").read_text())[name]

    def value(key, shape):
        seed = (zlib.crc32(key.encode()) ^ case.meta["seed"]) & 0xFFFFFFFF
        u = np.random.RandomState(seed).uniform(-1, 1, size=shape)
        if len(shape) > 1:
            return (u * np.sqrt(3 / np.prod(shape[1:]))).astype(np.float32)
        return (1 + 0.5 * u if key.endswith("weight") else 0.3 * u).astype(np.float32)

    case.tensors = {k: value(k, s) for k, s in keys.items() if not k.endswith("pos_embed")}
    case.load(RELEASED[name])

    posterior = check_network(case)
    close(posterior.draw(channels_last(case.io["eps"])), case.io["motion"])
