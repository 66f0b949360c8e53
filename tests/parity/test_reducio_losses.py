"""Reducio-VAE's discriminator, objectives and rates against numbers of the released code."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.reducio_cases import Case, channels_last, pixels
from vidlatent.kernels.conv3d import conv3d
from vidlatent.losses import l1, outlier
from vidlatent.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss
from vidlatent.losses.latent import kl
from vidlatent.losses.perceptual import lpips
from vidlatent.models.discriminators import build_discriminator
from vidlatent.models.discriminators.patch import patch_stats_table, patch_table
from vidlatent.models.tokenizers.base import Posterior
from vidlatent.train.optim import interpolate_ramp
from vidlatent.weights.importer import export_names, import_params


def load_discriminator(tensors, meta):
    """The discriminator of a case's size, its weights and running statistics, its layers."""
    kernels = {name: x for name, x in tensors.items() if x.ndim == 5}
    ordered = sorted(kernels, key=lambda name: int(name.split(".")[1]))
    taps, layers = tuple(kernels[name].shape[2] for name in ordered), len(ordered)
    discriminator = build_discriminator(
        {"name": "patch3d", "width": meta["ndf"], "time_kernels": taps}
    )
    video = jax.ShapeDtypeStruct((1, *discriminator.smallest_clip, 3), jnp.float32)
    stats = discriminator.init_stats()
    shapes = jax.eval_shape(
        lambda k, v: discriminator.init(k, v, stats, True), jax.random.key(0), video
    )
    params = import_params(tensors, patch_table(layers), shapes["params"])
    stats = import_params(tensors, patch_stats_table(layers), stats)
    return discriminator, params, stats, layers


def test_discriminator(reference):
    case = Case(reference("reducio", "disc.npz"))
    meta = case.meta
    discriminator, params, stats, layers = load_discriminator(case.tensors, meta)
    assert layers == meta["n_layers"] + 2
    apply = jax.jit(discriminator.apply, static_argnums=3)
    video = pixels(case.io["x_u8"])
    (logits,), same = apply({"params": params}, video, stats, False)
    np.testing.assert_allclose(logits, case.io["logits_eval"][:, 0], atol=1e-4)
    np.testing.assert_array_equal(same["norm_1"]["mean"], stats["norm_1"]["mean"])
    (logits,), after = apply({"params": params}, video, stats, True)
    np.testing.assert_allclose(logits, case.io["logits_train"][:, 0], atol=1e-4)
    names = {
        name.removeprefix("after_train/"): value
        for name, value in case.io.items()
        if name.startswith("after_train/")
    }
    want = import_params(names, patch_stats_table(layers), after)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after, want)
    # Written back, the names are the published ones.
    written = export_names(params, patch_table(layers))
    assert set(written) == {n for n in case.tensors if "running" not in n}


@pytest.fixture(scope="module")
def loss_case(reference):
    return Case(reference("reducio", "loss.npz"))


def rebuilt(case):
    """The case's toy generator: a convolution of given features; and its kernel."""
    features = channels_last(case.io["features"])
    kernel = jnp.asarray(case.tensors["conv_out.weight"].transpose(2, 3, 4, 1, 0))
    bias = jnp.asarray(case.tensors["conv_out.bias"])

    def generate(kernel):
        return conv3d(features, kernel, padding=((1, 1),) * 3) + bias

    return generate, kernel


def mock_lpips(params, x, y):
    return jnp.square(x - y).mean(axis=(1, 2, 3))


def terms(case, generate, discriminator_of):
    """Kernel to the unweighted terms; one function of the kernel for each."""
    target = pixels(case.io["inputs_u8"])
    mask = jnp.ones(target.shape[0])
    weight = case.meta["perceptual_weight"]

    def reconstruction(kernel):
        video = generate(kernel)
        perceptual = weight * lpips(mock_lpips, {}, video, target, mask, frames_at_once=5)
        return l1(video, target, mask) + perceptual, perceptual

    def adversarial(kernel):
        (logits,), _ = discriminator_of(generate(kernel))
        return generator_loss("hinge", logits)

    def penalty(kernel):
        return outlier(generate(kernel), mask, case.meta["penalty_radius"])

    return reconstruction, adversarial, penalty


def test_objectives(loss_case):
    case, meta, io = loss_case, loss_case.meta, loss_case.io
    own = "discriminator."
    tensors = {n.removeprefix(own): t for n, t in case.tensors.items() if n.startswith(own)}
    discriminator, params, stats, _ = load_discriminator(tensors, meta)
    generate, kernel = rebuilt(case)
    np.testing.assert_allclose(generate(kernel), channels_last(io["recon"]), atol=1e-4)
    target = pixels(io["inputs_u8"])

    def discriminator_of(video):
        return discriminator.apply({"params": params}, video, stats, True)

    @jax.jit
    def everything(kernel):
        reconstruction, adversarial, penalty = terms(case, generate, discriminator_of)
        return (
            jax.value_and_grad(reconstruction, has_aux=True)(kernel),
            jax.value_and_grad(adversarial)(kernel),
            jax.value_and_grad(penalty)(kernel),
            discriminator_of(target)[0],
            discriminator_of(generate(kernel))[0],
        )

    ((rec, perceptual), of_rec), (gan, of_gan), (bright, of_bright), real, fake = everything(kernel)
    mean, logvar = jnp.split(channels_last(io["moments"]), 2, axis=-1)
    divergence = kl(Posterior(mean, logvar), jnp.ones(mean.shape[0]), "sum_per_clip")
    weight = adaptive_weight(of_rec, of_gan, meta["disc_weight"])

    for step in (meta["disc_start"] - 1, meta["disc_start"]):
        on = float(step >= meta["disc_start"])
        want = {n.removeprefix(f"step{step}/"): v for n, v in io.items() if f"step{step}/" in n}
        total = (
            meta["rec_weight"] * rec
            + meta["kl_weight"] * divergence
            + on * weight * gan
            + meta["penalty_weight"] * bright
        )
        grad = (
            meta["rec_weight"] * of_rec + on * weight * of_gan + meta["penalty_weight"] * of_bright
        )
        parts = {
            "p_loss": perceptual,
            "nll_grads": jnp.linalg.norm(of_rec),
            "g_grads": jnp.linalg.norm(of_gan),
            "d_weight": weight,
            "nll_loss": rec,
            "penalty_loss": bright,
            "kl_loss": divergence,
            "g_loss": gan,
            "weighted_g_loss": on * weight * gan,
        }
        for name, value in parts.items():
            np.testing.assert_allclose(value, want[f"ae/{name}"], rtol=2e-5, err_msg=name)
        np.testing.assert_allclose(total, want["total"], rtol=1e-5)
        wanted = want["grad_conv_out_weight"].transpose(2, 3, 4, 1, 0)
        np.testing.assert_allclose(grad, wanted, atol=1e-5)
        halved = 0.5 * on * discriminator_loss("hinge", real, fake)
        np.testing.assert_allclose(halved, want["disc_total"], rtol=1e-5)
        np.testing.assert_allclose(real[0].mean(), want["d/logits_real"], rtol=1e-5)


def test_rates(reference):
    with np.load(reference("reducio", "schedules.npz")) as case:
        ours = jax.vmap(lambda n: interpolate_ramp(n, ((0, 1.0), (1_000_000, 0.01))))(case["steps"])
        np.testing.assert_allclose(ours, case["ae_factor"], rtol=1e-5)
        discriminator = jax.vmap(lambda n: interpolate_ramp(n, ((4999, 0.1), (5999, 1.0))))(
            case["steps"]
        )
        np.testing.assert_allclose(discriminator, case["disc_factor"], rtol=1e-5)


def test_published_names(reference):
    """The full-size discriminator's parameters and statistics are the released files' entries."""
    path = reference("reducio", "full_state_dict_keys.json")
    names = json.loads(path.read_text())["expected_discriminator"]
    prefix = "loss.discriminator."
    names = {n.removeprefix(prefix): tuple(s) for n, s in names.items() if n.startswith(prefix)}
    discriminator = build_discriminator({"name": "patch3d"})
    stats = discriminator.init_stats()
    video = jax.ShapeDtypeStruct((1, 4, 24, 24, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda k, v: discriminator.init(k, v, stats, True), jax.random.key(0), video
    )
    ours = export_names(shapes["params"], patch_table()) | export_names(stats, patch_stats_table())
    counters = {n for n in names if n.endswith("num_batches_tracked")}
    assert {n: tuple(s) for n, s in ours.items()} == {
        n: s for n, s in names.items() if n not in counters
    }
