"""The discriminator in the tokenizer's step: gradients, schedule, and when it is skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.micro import Micro
from vidlatent.config import load
from vidlatent.errors import VidlatentError
from vidlatent.latents.pixels import from_pixels
from vidlatent.losses import TERMS, Term
from vidlatent.losses.adversarial import (
    discriminator_loss,
    generator_loss,
    lecam,
    lecam_anchors,
    r1_penalty,
)
from vidlatent.models.discriminators import build_discriminator
from vidlatent.models.frozen import load_frozen
from vidlatent.parallel.mesh import local_mesh
from vidlatent.train.hooks import mean_metrics
from vidlatent.train.tasks.tokenizer import TokenizerTask

QUICK = {"xla_backend_optimization_level": 0}
DISCRIMINATOR = {"name": "multiscale3d", "widths": (8, 8), "scales": 1}


def config(**changes):
    loaded = load("tests/tiny.py")
    with loaded.unlocked():
        loaded.data.buckets = ((2, 8, 8, 4),)
        loaded.discriminator.model.update(DISCRIMINATOR)
        loaded.discriminator.weight = 0.3
        loaded.discriminator.loss = "non_saturating"
        loaded.optim.warmup_steps = 0
        for key, value in changes.items():
            section, _, name = key.rpartition("__")
            node = loaded
            for part in filter(None, section.split("__")):
                node = node[part]
            node[name] = value
    return loaded


@pytest.fixture(scope="module")
def batch():
    video = np.random.default_rng(0).integers(0, 256, (4, 2, 8, 8, 3), np.uint8)
    return {"video": video, "mask": np.ones(4, np.float32)}


def run(loaded, batch, steps=1, options=None):
    """States before and after each step, and the last report."""
    step = TokenizerTask(loaded, Micro())
    states = [jax.jit(step.init, compiler_options=options)(jax.random.key(0))]
    train_step = jax.jit(step.train_step, compiler_options=options)
    for _ in range(steps):
        state, report = train_step(states[-1], batch, {})
        states.append(state)
    return states, report


def changed(a, b):
    return [bool(np.any(x != y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]


def norm(tree):
    return float(np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(tree))))


def test_both_players_get_their_own_gradient(batch):
    """Compare with plain differentiation of each side's loss while the other is held fixed."""
    states, report = run(config(), batch)
    model, discriminator = Micro(), build_discriminator(DISCRIMINATOR)
    target = from_pixels(batch["video"])
    judge = states[0]["discriminator"]["params"]

    def logits(params, video):
        return discriminator.apply({"params": params}, video, {}, True)[0]

    def generator(params):
        prediction = model.apply({"params": params}, target)[0]
        adversarial = generator_loss("non_saturating", logits(judge, prediction))
        return jnp.abs(prediction - target).mean() + 0.3 * adversarial

    def opponent(params):
        prediction = model.apply({"params": states[0]["params"]}, target)[0]
        return discriminator_loss(
            "non_saturating", logits(params, target), logits(params, prediction)
        )

    loss, grads = jax.jit(jax.value_and_grad(generator))(states[0]["params"])
    np.testing.assert_allclose(report["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(report["grad_norm"], norm(grads), rtol=1e-5)
    loss, grads = jax.jit(jax.value_and_grad(opponent))(judge)
    np.testing.assert_allclose(report["discriminator/loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(report["discriminator_grad_norm"], norm(grads), rtol=1e-5)
    assert all(changed(states[0]["discriminator"]["params"], states[1]["discriminator"]["params"]))
    assert all(changed(states[0]["params"], states[1]["params"]))


def test_adaptive_weight_is_the_ratio_of_gradients_at_the_layer(batch):
    loaded = config(discriminator__adaptive_layer="decoder/conv_out/kernel", loss__l2=0.5)
    loaded.discriminator.adaptive_terms = ("l1",)
    states, report = run(loaded, batch)
    model, discriminator = Micro(), build_discriminator(DISCRIMINATOR)
    target = from_pixels(batch["video"])

    def parts(params):
        prediction = model.apply({"params": params}, target)[0]
        judge = {"params": states[0]["discriminator"]["params"]}
        maps = discriminator.apply(judge, prediction, {}, True)[0]
        return jnp.abs(prediction - target).mean(), generator_loss("non_saturating", maps)

    gradients = jax.jit(lambda p: [jax.grad(lambda q, i=i: parts(q)[i])(p) for i in (0, 1)])
    rated, adversarial = (
        norm(found["decoder"]["conv_out"]["kernel"]) for found in gradients(states[0]["params"])
    )
    expected = 0.3 * rated / (adversarial + 1e-4)
    np.testing.assert_allclose(report["adversarial_weight"], expected, rtol=1e-4)
    with pytest.raises(VidlatentError, match="matches no parameter"):
        run(config(discriminator__adaptive_layer="decoder/nowhere"), batch)
    with pytest.raises(VidlatentError, match="adaptive_terms names 'lpips'"):
        run(config(discriminator__adaptive_terms=("lpips",)), batch)


def test_nothing_is_felt_before_the_start_and_then_it_fades_in(batch):
    loaded = config(discriminator__start_step=1, discriminator__warmup_steps=2)
    with_discriminator, _ = run(loaded, batch, steps=2)
    alone = config()
    with alone.unlocked():
        alone.discriminator.model = {}
    without, _ = run(alone, batch, steps=2)
    first = [states[1]["params"] for states in (with_discriminator, without)]
    jax.tree.map(np.testing.assert_array_equal, *first)
    assert not any(
        changed(with_discriminator[0]["discriminator"], with_discriminator[1]["discriminator"])
    )
    assert any(
        changed(with_discriminator[1]["discriminator"], with_discriminator[2]["discriminator"])
    )
    assert any(changed(with_discriminator[2]["params"], without[2]["params"]))
    step = TokenizerTask(loaded, Micro())
    state, weights = jax.jit(step.init)(jax.random.key(0)), []
    train_step = jax.jit(step.train_step)
    for _ in range(4):
        state, report = train_step(state, batch, {})
        weights.append(float(report["adversarial_weight"]))
    assert weights == pytest.approx([0, 0.15, 0.3, 0.3])


def test_pieces_of_a_batch_make_the_whole(batch):
    whole, parts = (
        run(config(optim__accumulate=pieces, discriminator__lecam_weight=0.1), batch, steps=1)
        for pieces in (1, 2)
    )
    for part in ("params", "discriminator"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
            whole[0][1][part],
            parts[0][1][part],
        )
    for name in ("discriminator/loss", "discriminator/lecam"):
        np.testing.assert_allclose(whole[1][name], parts[1][name], rtol=1e-5)
    # LeCam is logged separately, without its weight.
    state, target = whole[0][0], from_pixels(batch["video"])
    videos = target, jax.jit(Micro().apply)({"params": state["params"]}, target)[0]
    judge, discriminator = (
        {"params": state["discriminator"]["params"]},
        build_discriminator(DISCRIMINATOR),
    )
    judged = jax.jit(lambda video: discriminator.apply(judge, video, {}, True)[0])
    real, fake = map(judged, videos)
    expected = lecam(lecam_anchors(1), real, fake)
    assert expected > 0
    np.testing.assert_allclose(whole[1]["discriminator/lecam"], expected, rtol=1e-4)


def test_lazy_penalty_counts_as_often_as_it_is_left_out(batch):
    loaded = config(
        discriminator__r1_weight=10.0, discriminator__r1_every=3, discriminator__r1_crop=(2, 8, 8)
    )
    step = TokenizerTask(loaded, Micro())
    train_step = jax.jit(step.train_step)
    begin = jax.jit(step.init)(jax.random.key(0))
    state, report = train_step(begin, batch, {})
    _, idle = train_step(state, batch, {})
    discriminator = build_discriminator(DISCRIMINATOR)
    target, judge = from_pixels(batch["video"]), begin["discriminator"]["params"]

    def logits(params, video):
        return discriminator.apply({"params": params}, video, {}, True)[0]

    def loss(params):
        prediction = Micro().apply({"params": begin["params"]}, target)[0]
        own = discriminator_loss(
            "non_saturating", logits(params, target), logits(params, prediction)
        )
        penalty = r1_penalty(logits, params, target, gamma=10.0)
        return own + 3 * penalty, penalty

    grads, penalty = jax.jit(jax.grad(loss, has_aux=True))(judge)
    np.testing.assert_allclose(report["discriminator_grad_norm"], norm(grads), rtol=1e-4)
    np.testing.assert_allclose(report["discriminator/r1"], penalty, rtol=1e-4)
    assert idle["discriminator/r1"] == 0.0
    # The log shows the penalty on the steps that computed it, and nothing on the others.
    assert (
        mean_metrics([report, idle], [report, idle])["discriminator/r1"]
        == report["discriminator/r1"]
    )
    assert set(report) - set(mean_metrics([idle], [idle])) == {
        *("discriminator/r1", "discriminator/r1/share"),
        *("bad_steps", "bad_streak"),
    }
    assert np.isnan(mean_metrics([report], [])["discriminator/r1"])


def test_a_discriminator_for_one_size_of_clip(batch):
    """MAGVIT's discriminator flattens: it fits the buckets' clips, and refuses other sizes."""
    loaded = config(
        discriminator__model={
            "name": "stylegan3d",
            "widths": (4, 4),
            "hidden": 8,
            "norm": "spectral",
        }
    )
    (first, second), report = run(loaded, batch, options=QUICK)
    assert all(changed(first["discriminator"]["params"], second["discriminator"]["params"]))
    changes = changed(first["discriminator"]["stats"], second["discriminator"]["stats"])
    # The last kernel has one output, so its direction is unique up to the sign.
    assert sum(changes) >= len(changes) - 1 > 0
    assert all(np.isfinite(value) for value in report.values())
    larger = {"video": np.zeros((4, 2, 8, 16, 3), np.uint8), "mask": batch["mask"]}
    with pytest.raises(VidlatentError, match="made for another clip size than 2 frames of 8x16"):
        jax.eval_shape(TokenizerTask(loaded, Micro()).train_step, first, larger, {})


def test_equation_5_is_a_mean_in_disguise_with_a_discriminator():
    """IV-VAE: its sums at 256x256 divided by 3 * 256^2 are our means; beta is the same for both."""
    rng, latent_channels = np.random.default_rng(1), Micro().latent_spec.channels
    video = rng.integers(0, 256, (2, 2, 16, 16, 3), np.uint8)
    batch = {"video": video, "mask": np.ones(2, np.float32)}

    def gradients(reduction, kl_weight):
        terms = {"l1": 1.0, "lpips_tiny": 1.0, "kl": kl_weight}
        loaded = config(
            loss={name: {"weight": w, "reduction": reduction} for name, w in terms.items()},
            discriminator__weight=0.8,
            discriminator__loss="hinge",
            discriminator__adaptive_layer="decoder/conv_out/kernel",
        )
        step = TokenizerTask(loaded, Micro())
        state = jax.jit(step.init, compiler_options=QUICK)(jax.random.key(0))
        state["discriminator"]["params"] = jax.tree.map(
            lambda x: 20 * x, state["discriminator"]["params"]
        )
        frozen = load_frozen(step.frozen, local_mesh([1]))

        def compute(state):
            return step.compute_gradients(state, batch, frozen)

        return jax.jit(compute, compiler_options=QUICK), state

    summed, state = gradients("sum_at_256", 0.03)
    # In this model each latent value corresponds to one pixel of three channels.
    mean, _ = gradients("mean", 0.03 * latent_channels / 3)
    found, expected = summed(state), mean(state)
    scale = 3 * 256**2
    # As in latent diffusion the factor is capped at 1e4, which summed losses and a discriminator
    # with small gradients would reach.
    assert 0 < found.report["adversarial_weight"] < 0.8e4
    for name in ("l1", "lpips_tiny", "adversarial_weight"):
        value = found.report[name] / scale
        np.testing.assert_allclose(value, expected.report[name], rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(found.loss / scale, expected.loss, rtol=1e-4)

    def close(a, b):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())

    jax.tree.map(lambda a, b: close(a / scale, b), found.params, expected.params)
    # With ten times the discriminator's gradient, the total gradient stays the same.
    state["discriminator"]["params"]["head_0"] = jax.tree.map(
        lambda x: 10 * x, state["discriminator"]["params"]["head_0"]
    )
    louder, loud = mean(state), 10 * expected.report["adversarial"]
    np.testing.assert_allclose(louder.report["adversarial"], loud, rtol=1e-5)
    jax.tree.map(close, louder.params, expected.params)


def test_a_player_that_is_not_finite_stops_all(batch, monkeypatch):
    loaded = config()
    step = TokenizerTask(loaded, Micro())
    state = jax.jit(step.init)(jax.random.key(0))
    state["discriminator"]["params"] = jax.tree.map(
        lambda x: x.at[(0,) * x.ndim].set(jnp.nan), state["discriminator"]["params"]
    )
    after, report = jax.jit(step.train_step)(state, batch, {})
    for part in ("params", "opt", "ema", "discriminator"):
        jax.tree.map(np.testing.assert_array_equal, after[part], state[part])
    assert (int(report["bad_streak"]), int(after["step"])) == (1, 1)


def test_helper_parameters_of_a_term_are_trained_beside_the_model(batch, monkeypatch):
    def scaled(inputs, params, networks):
        return jnp.square(params["w"] - 1.0) + 0 * inputs.prediction.mean()

    term = Term(scaled, init=lambda key, spec: {"w": jnp.zeros(())})
    monkeypatch.setattr(TERMS, "_entries", {**TERMS._entries, "helped": lambda: term})
    states, report = run(config(loss__helped=2.0), batch, steps=3)
    assert float(states[0]["helpers"]["params"]["helped"]["w"]) == 0
    assert 0 < float(states[3]["helpers"]["params"]["helped"]["w"])
    assert "helped" in report and "w" not in states[3]["params"]


def test_the_latent_is_drawn_only_where_asked(batch):
    def losses(loaded):
        step = TokenizerTask(loaded, Micro())
        state = jax.jit(step.init)(jax.random.key(0))
        return float(jax.jit(step.train_step)(state, batch, {})[1]["l1"])

    drawn, mean = (losses(config(train__sample_latent=flag)) for flag in (True, False))
    assert drawn != mean
    assert losses(config(train__sample_latent=True)) == drawn
