"""IV-VAE against the released network's numbers: the whole model, its stages, single operations."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlatent.layers.conv import Conv
from vidlatent.layers.temporal import TimeRule
from vidlatent.models.tokenizers import Posterior, build
from vidlatent.models.tokenizers.ivvae.blocks import (
    BranchAttention,
    ParallelDilated,
    ResBlock,
    SplitNorm,
)
from vidlatent.models.tokenizers.ivvae.names import IVVAE_TABLE, PLAIN_TABLE
from vidlatent.models.tokenizers.ivvae.resample import Down, Up
from vidlatent.models.tokenizers.ivvae.variants import Op
from vidlatent.weights.importer import export_params, import_params

TOLERANCE, OP_TOLERANCE = 1e-4, 1e-5


def channels_last(x) -> jax.Array:
    return jnp.asarray(np.moveaxis(x, 1, -1))


def model_config(tensors: dict, case: dict) -> dict:
    """Our model fields from the case: sizes and the order of modules show in its parameters."""

    def modules(pattern):
        found = (re.fullmatch(r"encoder[.]downsamples[.](\d+)[.]" + pattern, k) for k in tensors)
        return sorted(int(m[1]) for m in found if m)

    downs = modules(r"resample_2d[.]1[.]weight")
    widths = [len(tensors[f"encoder.downsamples.{i}.resample_2d.1.bias"]) for i in downs]
    widths.append(len(tensors["encoder.middle.0.residual.0.gamma"]) // 2)
    timed = modules(r"time_conv[.]weight")
    return {
        "name": "ivvae",
        "latent_channels": case["z_dim"],
        "width": case["dim"],
        "multipliers": [width // case["dim"] for width in widths],
        "blocks": case["num_res_blocks"],
        "temporal_down": [downs.index(i) for i in timed],
        "latent_scale": case["scale"],
        "latent_shift": case["shift"],
    }


class Case:
    def __init__(self, path, stages_path):
        self.arrays = dict(np.load(path))
        names = [key for key in self.arrays if key.startswith("param/")]
        self.tensors = {key.removeprefix("param/"): self.arrays[key] for key in names}
        self.stages = json.loads(stages_path.read_text())
        config = model_config(self.tensors, self.stages["config"])
        self.model = build(config)
        spec = self.model.latent_spec
        shape = (1, spec.rule.first + spec.rule.step, spec.h, spec.w, 3)
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), jnp.zeros(shape))["params"]
        self.params = import_params(self.tensors, IVVAE_TABLE, shapes)
        self.video = channels_last(self.arrays["video_u8"].astype(np.float32) / 127.5 - 1)
        self.latent = channels_last(self.arrays["latent"]) / spec.scale + spec.shift

    def run(self, method, *args):
        """One compiled program gives results and intermediate values."""
        apply = self.model.apply
        values = {"encode": "encoder_values", "decode": lambda model, z: model.decoder(z)[2]}

        def both(p, *a):
            return (
                apply({"params": p}, *a, method=method),
                apply({"params": p}, *a, method=values[method]),
            )

        return jax.jit(both)(self.params, *args)


@pytest.fixture(scope="module")
def case(reference):
    return Case(reference("ivvae", "ivvae.npz"), reference("ivvae", "ivvae_stages.json"))


@pytest.fixture(scope="module")
def encoded(case):
    (posterior, _), seen = case.run("encode", case.video)
    return posterior, seen


@pytest.fixture(scope="module")
def decoded(case):
    (video, _), seen = case.run("decode", case.latent)
    return video, seen


def close(got, want, tolerance=TOLERANCE):
    np.testing.assert_allclose(got, channels_last(want), atol=tolerance, rtol=0)


def test_moments_and_latent(case, encoded):
    posterior, _ = encoded
    close(posterior.mean, case.arrays["latent_mu"])
    close(posterior.logvar, case.arrays["latent_logvar"])
    spec = case.model.latent_spec
    drawn = Posterior(*posterior).draw(channels_last(case.arrays["eps"]))
    close(spec.scale * (drawn - spec.shift), case.arrays["latent"])


def test_reconstruction(case, decoded):
    close(decoded[0], case.arrays["recon"])


def test_values_inside(case, encoded, decoded):
    seen, arrays = encoded[1], case.arrays
    last = max(i for i, op in enumerate(_downs(seen)) if op)
    close(seen[f"downsamples_{last}"], arrays["enc_after_last_down"])
    close(_last(seen, "middle"), arrays["enc_middle_out"])
    close(seen["head"], arrays["enc_head_out"])
    close(_last(decoded[1], "middle"), arrays["dec_middle_out"])


def _downs(seen):
    """For each entry of downsamples: does it halve the height?"""
    heights = [seen["conv1"].shape[2]]
    heights += [seen[f"downsamples_{i}"].shape[2] for i in range(len(_keys(seen, "downsamples")))]
    return [b < a for a, b in zip(heights, heights[1:], strict=False)]


def _keys(seen, part):
    return [key for key in seen if key.startswith(part + "_")]


def _named(seen, name):
    return _last(seen, name) if name == "middle" else seen[name]


def _last(seen, part):
    return seen[f"{part}_{len(_keys(seen, part)) - 1}"]


def test_stages(case, encoded, decoded):
    """Shape, mean, deviation and largest value of every stage, chunk by chunk."""
    names = {"down": "downsamples_", "up": "upsamples_"}
    for stage, chunks in case.stages["stages"].items():
        side, *rest = stage.split(".")
        seen = {"enc": encoded, "dec": decoded}[side][1]
        value = seen[names[rest[0]] + rest[1]] if len(rest) == 2 else _named(seen, rest[0])
        start = 0
        for shape, mean, deviation, largest in chunks:
            x = np.asarray(value[:, start : start + shape[2]], np.float64)
            assert np.moveaxis(x, -1, 1).shape == tuple(shape), stage
            got = (x.mean(), x.std(ddof=1), np.abs(x).max())
            np.testing.assert_allclose(got, (mean, deviation, largest), atol=TOLERANCE, rtol=1e-5)
            start += shape[2]
        assert start == value.shape[1], stage


def test_image_is_frame_0(case, encoded):
    mean = jax.jit(lambda p, x: case.model.apply({"params": p}, x, method="encode")[0].mean)(
        case.params, case.video[:, :1]
    )
    np.testing.assert_allclose(mean, encoded[0].mean[:, :1], atol=1e-5)


def test_weights_return_bitwise(case):
    back = export_params(case.params, IVVAE_TABLE)
    assert set(back) == set(case.tensors)
    for name, tensor in case.tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


# Single operations. Each is imported through the table under the name of a module of its kind.


class Ops:
    def __init__(self, path):
        self.arrays = dict(np.load(path))

    def __getitem__(self, key):
        return channels_last(self.arrays[key])

    def run(self, module, prefix, place, x, cache=None, table=IVVAE_TABLE):
        """Apply ``module`` to ``x``; its parameters are read as if they were those of ``place``."""
        path = place.removesuffix(".").split(".")
        path = f"{path[0]}/{'_'.join(path[1:])}"
        io = ("x", "y", "x_first", "y_first", "cache0_after", "cache1_after")
        tensors = {
            place + key.removeprefix(prefix + "/"): value
            for key, value in self.arrays.items()
            if key.startswith(prefix + "/") and key.removeprefix(prefix + "/") not in io
        }
        args = (x,) if cache is None else (x, cache)
        shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
        side, name = path.split("/")
        params = import_params(tensors, table, {side: {name: shapes}})[side][name]
        return jax.jit(module.apply)({"params": params}, *args)


@pytest.fixture(scope="module")
def ops(reference):
    return Ops(reference("ivvae", "ivvae_ops.npz"))


def coder_of(width, **fields):
    return build({"name": "ivvae", "latent_channels": 2, "width": width, **fields}).layer_config


@pytest.mark.parametrize("group", [4, 2])
def test_group_causal_convolution(ops, group):
    prefix = f"gcconv_tc{group}"
    rule = TimeRule("group", group, "replicate", "zeros")
    x, want = ops[f"{prefix}/x"], ops.arrays[f"{prefix}/y"]
    conv = Conv(want.shape[1], time=rule)
    y, cache = ops.run(conv, prefix, "encoder.conv1.", x, table=PLAIN_TABLE)
    close(y, want, OP_TOLERANCE)
    np.testing.assert_array_equal(cache, x[:, -1:])
    y, cache = ops.run(conv, prefix, "encoder.conv1.", x[:, :1], table=PLAIN_TABLE)
    close(y, want[:, :, :1], OP_TOLERANCE)
    y, _ = ops.run(conv, prefix, "encoder.conv1.", x[:, 1:], cache, table=PLAIN_TABLE)
    close(y, want[:, :, 1:], OP_TOLERANCE)


def test_split_norm(ops):
    y = ops.run(SplitNorm(2), "sep_rms", "encoder.head.0.", ops["sep_rms/x"])
    close(y, ops.arrays["sep_rms/y"], OP_TOLERANCE)


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_down(ops, kind):
    prefix = f"downsample{kind}"
    width = ops[f"{prefix}/x"].shape[-1] // 2
    down = Down(coder_of(width), Op("down", 0, width, time=kind == "3d"))
    for suffix, cache in (("_first", None), ("", {})):
        x = ops[f"{prefix}/x{suffix}"]
        y, _ = ops.run(down, prefix, "encoder.downsamples.0.", x, cache)
        close(y, ops.arrays[f"{prefix}/y{suffix}"], OP_TOLERANCE)


@pytest.mark.parametrize("kind", ["2d", "3d"])
@pytest.mark.parametrize("form", ["nearest", "subpixel"])
def test_up(ops, kind, form):
    prefix = f"upsample{kind}"
    width = ops.arrays[f"{prefix}/y"].shape[1] // 2
    up = Up(coder_of(width, up_form=form), Op("up", 1, width, time=kind == "3d"))
    for suffix, cache in (("_first", None), ("", {})):
        x = ops[f"{prefix}/x{suffix}"]
        y, _ = ops.run(up, prefix, "decoder.upsamples.0.", x, cache)
        close(y, ops.arrays[f"{prefix}/y{suffix}"], OP_TOLERANCE)


def test_attention(ops):
    x = ops["attn/x"]
    attention = BranchAttention(coder_of(x.shape[-1] // 2))
    y, _ = ops.run(attention, "attn", "encoder.middle.1.", x)
    close(y, ops.arrays["attn/y"], OP_TOLERANCE)


def test_parallel_dilated(ops):
    features = ops.arrays["pac/y"].shape[1]
    names = (re.fullmatch(r"pac/PAC_(\d+)[.]conv[.]bias", key) for key in ops.arrays)
    dilations = tuple(sorted(int(m[1]) for m in names if m))
    module = ParallelDilated(features, 2, dilations)
    y = ops.run(module, "pac", "encoder.head.2.", ops["pac/x"])
    close(y, ops.arrays["pac/y"], OP_TOLERANCE)


def test_paired_block_and_its_caches(ops):
    x, want = ops["resblock/x"], ops.arrays["resblock/y"]
    width = want.shape[1] // 2
    # A level with groups of four frames. This form remembers input frames, as the released code.
    block = ResBlock(coder_of(width, conv_impl="taps"), Op("res", 0, width))
    y, cache = ops.run(block, "resblock", "encoder.downsamples.0.", x)
    close(y, want, OP_TOLERANCE)
    for kept, name in zip(jax.tree.leaves(cache), ("cache0_after", "cache1_after"), strict=True):
        close(kept, ops.arrays[f"resblock/{name}"], OP_TOLERANCE)
    # The usual one remembers, where that is less, what the last frame adds to the next.
    block = ResBlock(coder_of(width), Op("res", 0, width))
    y, cache = ops.run(block, "resblock", "encoder.downsamples.0.", x)
    close(y, want, OP_TOLERANCE)
    close(cache["residual_2"], ops.arrays["resblock/cache0_after"], OP_TOLERANCE)
    kernel = ops.arrays["resblock/residual.6.conv_3d.weight"][:, :, :1]
    part = jax.lax.conv_general_dilated(
        ops.arrays["resblock/cache1_after"], kernel, (1, 1, 1), ((0, 0), (1, 1), (1, 1))
    )
    close(cache["residual_6"], part, OP_TOLERANCE)


def test_joint_block(ops):
    width = ops.arrays["resblock2d/y"].shape[1] // 2
    block = ResBlock(coder_of(width), Op("res", 3, width, plane=True))
    y, _ = ops.run(block, "resblock2d", "encoder.middle.0.", ops["resblock2d/x"])
    close(y, ops.arrays["resblock2d/y"], OP_TOLERANCE)
