"""Terms by name: options, mistakes, and numbers that stay finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vidlatent.errors import VidlatentError
from vidlatent.losses import TERMS, LossInputs, make_terms
from vidlatent.losses.perceptual import lpips
from vidlatent.models.pretrained import network_apply, random_params
from vidlatent.models.tokenizers.base import Posterior
from vidlatent.parallel.mesh import AXES, make_mesh
from vidlatent.spec import FrameRule, LatentSpec
from vidlatent.train.loss_terms import LossTerms
from vidlatent.train.optim import interpolate_ramp

SPEC = LatentSpec("toy", 4, 4, 8, 8, FrameRule(1, 4))
NEED_WEIGHTS = ("lpips_vgg", "lpips_alex")


@pytest.fixture(scope="module")
def networks():
    return {name: random_params(name) for name in ("lpips_tiny", "dinov2_tiny")}


def inputs(scale=1.0, dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    video = (2, 5, 24, 32, 3)
    latent = (2, 2, 3, 4, 4)
    prediction, target = (scale * jax.random.normal(k, video) for k in keys[:2])
    mean, logvar = (scale * jax.random.normal(k, latent) for k in keys[2:])
    arrays = (x.astype(dtype) for x in (prediction, target, jnp.ones(2)))
    decoded = {n: jnp.float32(scale) for n in ("equivariance", "scale_equivariance")}
    posterior = Posterior(mean.astype(dtype), logvar.astype(dtype))
    return LossInputs(*arrays, posterior, decoded=decoded)


CHEAP = {"xla_backend_optimization_level": 0}  # each program runs a few times on toy arrays


def made(name):
    options = {"network": "dinov2_tiny"} if name == "vf" else {}
    _, term = make_terms({name: {"weight": 1.0, **options}})[name]
    return term, term.init(jax.random.key(0), SPEC) if term.init else {}


def test_finite_float32(networks):
    """All terms at once: a non-finite one would spoil the summed gradients."""
    terms = {name: made(name) for name in sorted(set(TERMS.names()) - set(NEED_WEIGHTS))}
    trained = {name: params for name, (_, params) in terms.items()}

    def summed(inputs, trained):
        values = {n: t.value(inputs, trained[n], networks) for n, (t, _) in terms.items()}
        return sum(values.values()), values

    graded = jax.jit(jax.grad(summed, (0, 1), has_aux=True), compiler_options=CHEAP)
    equal = inputs()
    equal = equal._replace(prediction=equal.target * 0, target=equal.target * 0)
    cases = {"plain": inputs(), "huge": inputs(1e4), "tiny": inputs(1e-20), "equal": equal}
    for what, case in cases.items():
        grads, values = graded(case, trained)
        for name, value in values.items():
            assert value.shape == () and np.isfinite(value), (what, name)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)), what
    for name, (term, params) in terms.items():
        shape = jax.eval_shape(term.value, inputs(dtype=jnp.bfloat16), params, networks)
        assert shape.dtype == jnp.float32, name


def test_networks_are_named():
    assert made("vf")[0].networks == ("dinov2_tiny",)
    assert [made(n)[0].networks for n in ("lpips_vgg", "lpips_alex", "l1")] == [
        ("lpips_vgg",),
        ("lpips_alex",),
        (),
    ]


def test_vf_learns_its_map_and_ignores_the_target(networks):
    _, params = made("vf")
    assert params["projection"]["kernel"].shape == (4, 16)
    terms = LossTerms({"vf": {"weight": 0.5, "network": "dinov2_tiny"}})
    loss = jax.value_and_grad(lambda i, p: terms(i, {"vf": p}, networks), (0, 1), has_aux=True)
    (total, values), (grads, of_params) = jax.jit(loss, compiler_options=CHEAP)(inputs(), params)
    # Equations 2 and 3 have curves of their own.
    assert values["vf/cosine"] > 0 and values["vf/relation"] > 0
    assert values["vf"] == values["vf/cosine"] + values["vf/relation"] == 2 * total
    shown = terms.label_random({**values, "discriminator/loss": 1}, {"dinov2_tiny": "random"})
    assert set(shown) == {
        "vf_random",
        "vf_random/cosine",
        "vf_random/relation",
        "discriminator/loss",
    }
    assert terms.label_random(values, {"dinov2_tiny": "file.npz"}) == values
    assert np.abs(grads.posterior.mean).max() > 0
    assert np.abs(of_params["projection"]["kernel"]).max() > 0
    assert np.abs(grads.target).max() == 0 == np.abs(grads.prediction).max()


def test_frames_of_lpips_pass_in_slices(networks):
    case = inputs()
    apply, params = network_apply("lpips_tiny"), networks["lpips_tiny"]
    images = [x.reshape(-1, *x.shape[2:]) for x in (case.prediction, case.target)]

    def graded(loss, x):
        return jax.jit(jax.value_and_grad(loss), compiler_options=CHEAP)(x)

    def sliced(x):
        return lpips(apply, params, x, case.target, case.mask, frames_at_once=2)

    want, want_grad = graded(lambda x: apply(params, x, images[1]).mean(), images[0])
    value, grad = graded(sliced, case.prediction)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(grad.reshape(want_grad.shape), want_grad, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1, 1), (2, 2, 2, 1)])
def test_samples_stay_on_their_devices(networks, sizes):
    """On eight devices terms exchange sums, and nothing as large as a sample.

    Where rows are spread as well, the networks that look at frames gather them first.
    """
    config = {
        "lpips_tiny": {"weight": 1.0, "frames_at_once": 2},
        "vf": {"weight": 1.0, "network": "dinov2_tiny", "frames_at_once": 2, "rows": 16},
    }
    terms = {name: term for name, (_, term) in make_terms(config).items()}
    params = terms["vf"].init(jax.random.key(0), SPEC)
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), jax.devices()[:8])
    keys = jax.random.split(jax.random.key(3), 3)
    clips = [jax.random.normal(key, (8, 5, 24, 32, 3)) for key in keys[:2]]
    latent = jax.random.normal(keys[2], (8, 2, 3, 4, 4))

    def loss(params, latent, prediction, target):
        given = LossInputs(prediction, target, jnp.ones(8), Posterior(latent))
        values = [term.value(given, params, networks) for term in terms.values()]
        return sum(values)

    grad = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), compiler_options=CHEAP)
    want = grad(params, latent, *clips)
    rows = "context" if sizes[2] > 1 else None
    spread = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, rows))
    whole = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    given = (jax.device_put(latent, whole), *(jax.device_put(x, spread) for x in clips))
    with jax.set_mesh(mesh):
        program = grad.lower(params, *given).compile()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), program(params, *given), want
    )
    if rows:
        return
    text = program.as_text()
    assert "all-reduce" in text and "all-gather" not in text and "all-to-all" not in text
    # XLA passes one block of zeros on when it undoes the padding of the last slice.
    assert text.count(" collective-permute(") <= 1


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"l3": 1.0}, "unknown loss term 'l3'"),
        ({"kl": {"reduction": "mean"}}, "config.loss.kl has no weight"),
        ({"l1": {"weight": 1.0, "reductoin": "mean"}}, "config.loss.l1.reductoin: did you mean"),
        ({"l1": {"weight": 1.0, "reduction": "meen"}}, "config.loss.l1.reduction 'meen'"),
        ({"kl": {"weight": 1.0, "reduction": "sum"}}, "config.loss.kl.reduction 'sum'"),
        ({"pseudo_huber": {"weight": 1.0, "reduction": "x"}}, "pseudo_huber.reduction"),
        ({"lpips_vgg": {"weight": 1.0, "reduction": "x"}}, "lpips_vgg.reduction"),
    ],
)
def test_mistakes(losses, message):
    with pytest.raises(VidlatentError, match=message):
        make_terms(losses)


def test_weights_and_options():
    terms = make_terms({"l1": 1, "outlier": {"weight": 0.5, "radius": 2.0}})
    assert {name: weight for name, (weight, _) in terms.items()} == {"l1": 1.0, "outlier": 0.5}


def test_ramp():
    points = ((10, 0.0), (20, 1.0), (40, 0.5))
    steps = jnp.asarray([0, 10, 15, 20, 30, 40, 99])
    np.testing.assert_allclose(
        interpolate_ramp(steps, points), [0, 0, 0.5, 1, 0.75, 0.5, 0.5], atol=1e-6
    )
