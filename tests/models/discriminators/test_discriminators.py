"""Discriminators: sizes of the published ones, what they judge, and what they remember."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.helpers.nets import fast_jit
from vidlatent.errors import VidlatentError
from vidlatent.losses.adversarial import discriminator_loss, r1_penalty
from vidlatent.models.discriminators import DISCRIMINATORS, build_discriminator
from vidlatent.models.discriminators.layers import DiscriminatorConv, shrink, spectral_start
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.parallel.sharding import batch_sharding, constrain, shardings

PROMAG = {"name": "patch3d", "time_kernels": [3, 3, 3, 3, 3]}
TINY = {
    "patch3d": {"name": "patch3d", "width": 4},
    "patch3d_group": {**PROMAG, "width": 4, "norm": "group"},
    "patch2d": {"name": "patch2d", "width": 4, "norm": "spectral"},
    "multiscale3d": {"name": "multiscale3d", "widths": [4, 6], "scales": 2, "norm": "spectral"},
    "stylegan3d": {
        "name": "stylegan3d",
        "widths": [4, 6],
        "hidden": 8,
        "norm": "spectral",
        "remat": True,
    },
}
CLIP = (2, 4, 24, 24, 3)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def abstract(config, clip):
    """Parameters, logit maps and statistics of a discriminator, by shape."""
    discriminator = build_discriminator(config)
    stats = discriminator.init_stats()

    def run(key, video):
        params = discriminator.init(key, video, stats, True)["params"]
        return params, *discriminator.apply({"params": params}, video, stats, True)

    params, maps, after = jax.eval_shape(run, jax.random.key(0), jnp.zeros((1, *clip, 3)))
    assert jax.tree.structure(after) == jax.tree.structure(stats)
    assert len(maps) == discriminator.scales and all(m.dtype == jnp.float32 for m in maps)
    return params, [m.shape[1:] for m in maps]


@pytest.mark.parametrize(
    ("config", "clip", "parameters", "maps"),
    [
        ({"name": "patch3d"}, (16, 256, 256), 4_216_641, [(2, 30, 30)]),
        (PROMAG, (17, 256, 256), 8_293_185, [(3, 30, 30)]),
        (PROMAG, (1, 256, 256), 8_293_185, [(1, 30, 30)]),
        ({"name": "patch2d"}, (5, 256, 256), 2_765_633, [(5, 30, 30)]),
        (
            {"name": "multiscale3d"},
            (17, 256, 256),
            32_056_899,
            [(2, 16, 16), (1, 8, 8), (1, 4, 4)],
        ),
        (
            {"name": "multiscale3d"},
            (1, 200, 328),
            32_056_899,
            [(1, 13, 21), (1, 7, 11), (1, 4, 6)],
        ),
        ({"name": "stylegan3d"}, (17, 256, 256), 73_924_481, [()]),
    ],
)
def test_published_sizes(config, clip, parameters, maps):
    params, shapes = abstract(config, clip)
    assert count(params) == parameters
    assert shapes == maps


def made(name, clip=CLIP):
    discriminator = build_discriminator(TINY[name])
    stats = discriminator.init_stats()
    video = jax.random.normal(jax.random.key(1), clip)
    params = fast_jit(lambda k: discriminator.init(k, video, stats, True))(jax.random.key(0))[
        "params"
    ]
    return discriminator, params, stats, video


def test_every_kind_is_here():
    assert {TINY[name]["name"] for name in TINY} == set(DISCRIMINATORS.names())


@pytest.mark.parametrize("name", sorted(TINY))
def test_gradient_reaches_every_parameter(name):
    discriminator, params, stats, video = made(name)

    def loss(params):
        real, after = discriminator.apply({"params": params}, video, stats, True)
        fake, after = discriminator.apply({"params": params}, 0.5 * video, after, True)
        return discriminator_loss("non_saturating", real, fake), after

    grads, after = fast_jit(jax.grad(loss, has_aux=True))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(leaf).max() > 0, path
    for path, (old, new) in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda *x: x, stats, after), is_leaf=lambda x: isinstance(x, tuple)
    ):
        # A kernel with one output has only one direction.
        assert old.size == 1 or np.abs(new - old).max() > 0, path


@pytest.mark.parametrize("name", ["patch3d_group", "multiscale3d"])
def test_samples_are_judged_alone(name):
    """What R1 needs: a sample's penalty does not know its neighbour."""
    discriminator, params, stats, video = made(name)

    def judge(params, x):
        return discriminator.apply({"params": params}, x, stats, False)[0]

    penalty = fast_jit(lambda x, mask: r1_penalty(judge, params, x, mask=mask))
    both, first, second = (penalty(video, jnp.asarray(m)) for m in ((1, 1), (1, 0), (0, 1)))
    np.testing.assert_allclose(both, (first + second) / 2, rtol=1e-5)
    np.testing.assert_allclose(penalty(video.at[1].mul(3), jnp.asarray((1, 0))), first, rtol=1e-5)


def test_batch_norm_over_a_mesh_is_that_of_the_whole_batch():
    discriminator, params, stats, _ = made("patch3d")
    video = jax.random.normal(jax.random.key(2), (8, *CLIP[1:]))
    video = video * jnp.arange(1.0, 9.0)[:, None, None, None, None]

    def judge(video):
        return discriminator.apply({"params": params}, video, stats, True)

    want = fast_jit(judge)(video)
    mesh = make_mesh({"data": 8, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:8])
    spread = jax.device_put(video, NamedSharding(mesh, PartitionSpec("data")))
    got = fast_jit(judge)(spread)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), got, want)
    # Statistics of one's own sample would be another thing.
    alone = fast_jit(judge)(video[:1])[0][0]
    assert np.abs(alone - want[0][0][:1]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("patch3d", (2, 2, 2, 1)), ("patch3d", (1, 2, 2, 2)), ("multiscale3d", (2, 2, 2, 1))],
)
def test_gradients_with_rows_over_devices(name, sizes):
    """XLA's gradient of a layer from 8 rows to 7 would be wrong with its rows split in two."""
    discriminator, params, stats, video = made(name, (4, 4, 64, 24, 3))

    def loss(params, video):
        video = constrain(video, ("batch", "time", "height", "width", "channel"))
        real, _ = discriminator.apply({"params": params["discriminator"]}, video, stats, True)
        return discriminator_loss("non_saturating", real, [2 * x for x in real])

    params = {"discriminator": params}
    grad = jax.grad(loss, (0, 1))
    want = fast_jit(grad)(params, video)
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), jax.devices()[:8])
    with jax.set_mesh(mesh):
        placed = shardings(params, mesh, whole=("discriminator",)), batch_sharding(mesh)
        got = fast_jit(grad, in_shardings=placed, out_shardings=placed)(params, video)
    for ours, one in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, one, atol=1e-4 * np.abs(one).max())


def test_statistics_at_rest():
    """Outside training nothing moves and a sample is judged alone."""
    discriminator, params, stats, video = made("patch3d")
    stats = jax.tree.map(lambda x: 0.5 * x + 0.1, stats)
    judge = fast_jit(lambda x: discriminator.apply({"params": params}, x, stats, False))
    (both,), same = judge(video)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), same, stats))
    (other,), _ = judge(video.at[1].mul(3))
    np.testing.assert_array_equal(other[0], both[0])


def test_spectral_norm():
    """With the identity as input the layer is its kernel: its largest singular value is 1."""
    conv = DiscriminatorConv(6, (1, 1, 1), use_bias=False, spectral=True)
    x = jnp.eye(5)[None, None, None]
    stats = spectral_start(6)
    params = conv.init(jax.random.key(0), x, stats, True)
    apply = jax.jit(conv.apply, static_argnums=3)
    for _ in range(50):
        _, stats = apply(params, x, stats, True)
    kernel, same = apply(params, x, stats, False)
    np.testing.assert_allclose(np.linalg.svd(kernel[0, 0, 0])[1][0], 1, rtol=1e-4)
    np.testing.assert_array_equal(same["u"], stats["u"])


@pytest.mark.parametrize("length", [1, 2, 5])
def test_halving_counts_only_what_exists(length):
    x = np.random.default_rng(0).normal(size=(1, length, 3, 4, 2)).astype(np.float32)
    halve = jax.jit(shrink, static_argnums=1)
    got = halve(x, (1, 1))
    want = [
        [[x[0, t : t + 2, h : h + 2, w : w + 2].mean((0, 1, 2)) for w in (0, 2)] for h in (0, 2)]
        for t in range(0, length, 2)
    ]
    np.testing.assert_allclose(got[0], want, atol=1e-6)
    blurred = halve(jnp.full((1, length, 3, 4, 2), 0.7), (1, 3, 3, 1))
    np.testing.assert_allclose(blurred, 0.7, rtol=1e-6)
    assert blurred.shape == got.shape


def test_mistakes():
    with pytest.raises(VidlatentError, match="config.discriminator.model has no name"):
        build_discriminator({})
    with pytest.raises(
        VidlatentError, match="unknown discriminator 'patch3': did you mean 'patch3d'"
    ):
        build_discriminator({"name": "patch3"})
    with pytest.raises(
        VidlatentError, match="unknown field config.discriminator.model.widht: did you"
    ):
        build_discriminator({"name": "patch3d", "widht": 3})
    with pytest.raises(
        VidlatentError, match="config.discriminator.model.norm 'bach': did you mean"
    ):
        build_discriminator({"name": "patch3d", "norm": "bach"}).init_stats()
    with pytest.raises(VidlatentError, match="at least 4 frames of 24x24, not 1 of 64x64"):
        abstract({"name": "patch3d"}, (1, 64, 64))
    abstract({"name": "patch3d", "width": 4}, (4, 24, 24))
    discriminator, params, stats, video = made("stylegan3d")
    with pytest.raises(VidlatentError, match="made for another clip size than 4 frames of 24x16"):
        jax.eval_shape(
            lambda x: discriminator.apply({"params": params}, x, stats, True), video[..., :16, :]
        )


@pytest.mark.parametrize("name", sorted(TINY))
def test_bfloat16_inside(name):
    """The compute dtype stays inside: logits, statistics and parameters are float32."""
    discriminator = build_discriminator(TINY[name], jnp.bfloat16)
    stats = discriminator.init_stats()

    def run(key, video):
        params = discriminator.init(key, video, stats, True)["params"]
        return params, discriminator.apply({"params": params}, video, stats, True)

    shapes = jax.eval_shape(run, jax.random.key(0), jnp.zeros(CLIP, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
